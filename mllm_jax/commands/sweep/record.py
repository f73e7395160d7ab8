"""OUT/sweep.json: which models the runs of a sweep's folder end in, and what they are asked.

A folder takes further runs, but none that ends in another model under a name that it has, and no
other questions.
"""

from pathlib import Path
from typing import Any

from mllm_jax.commands.sweep.plan import Plan
from mllm_jax.common.errors import cut, quoted, require
from mllm_jax.common.folders import LOCK, in_use
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.locks import claimed
from mllm_jax.evaluation.results.settings import file_digest

FILE = "sweep.json"
WAIT = 60.0  # seconds for other processes, which write it in milliseconds


def check(out: Path, plan: Plan) -> None:
    """Refuses a folder of something else, or of other runs.

    Raises:
        ConfigError: what differs is named.
    """
    file = out / FILE
    if not file.is_file():
        require(
            not in_use(out),
            f"--out={out}: exists and is not the folder of a sweep ({FILE} is missing); give "
            "another folder",
        )
        return
    before, now = read_json(file), _content(plan)
    runs: dict[str, str] = before.get("runs", {})
    common = [name for name in now["runs"] if name in runs]
    require(
        bool(common),
        f"--out={out}: holds another sweep, of runs {cut(', '.join(runs), 80)}; give another "
        "folder",
    )
    for name in common:
        old, new = runs[name], now["runs"][name]
        require(
            old == new,
            f"--out={out}: run {name} was begun there with other settings, weights or data (it "
            f"ends in {old}, now in {new}); put them back, or give another folder",
        )
    questions: dict[str, Any] = before.get("evaluate", {})
    for key, value in now["evaluate"].items():
        require(
            questions.get(key, value) == value,
            f"--out={out}: was begun with evaluate.{key}={quoted(questions.get(key), 80)}, now "
            f"{quoted(value, 80)}; put it back, or give another folder",
        )


def write(out: Path, plan: Plan) -> None:
    """Notes the runs, those of before included.

    Raises:
        ConfigError: as `check`; another process may just have begun another sweep there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with claimed(out / LOCK, out, WAIT):
        check(out, plan)
        file = out / FILE
        before = read_json(file) if file.is_file() else {}
        now = _content(plan)
        now["runs"] = before.get("runs", {}) | now["runs"]
        if now != before:
            write_json(file, now)


def _content(plan: Plan) -> dict[str, Any]:
    """Rows and their models, and what decides the answers' scores."""
    section = plan.evaluate
    return {
        "runs": {row.name: row.run.model or plan.tree.variants[row.name] for row in plan.rows},
        "evaluate": {
            "max_new_tokens": section.max_new_tokens,
            "data": file_digest(Path(section.data)) if Path(section.data).is_file() else None,
        },
    }
