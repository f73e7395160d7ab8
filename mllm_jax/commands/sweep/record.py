"""OUT/sweep.json: which models the runs of a sweep's folder end in.

A folder takes further runs, but none that ends in another model under a name that it has.
"""

from pathlib import Path

from mllm_jax.commands.sweep.plan import Plan
from mllm_jax.common.errors import cut, require
from mllm_jax.common.folders import LOCK, in_use
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.locks import claimed

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
    before, now = read_json(file).get("runs", {}), _ends(plan)
    common = [name for name in now if name in before]
    require(
        bool(common),
        f"--out={out}: holds another sweep, of runs {cut(', '.join(before), 80)}; give another "
        "folder",
    )
    for name in common:
        require(
            before[name] == now[name],
            f"--out={out}: run {name} was begun there with other settings, weights or data (it "
            f"ends in {before[name]}, now in {now[name]}); put them back, or give another folder",
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
        before = read_json(file)["runs"] if file.is_file() else {}
        if before | _ends(plan) != before:
            write_json(file, {"runs": before | _ends(plan)})


def _ends(plan: Plan) -> dict[str, str]:
    return {row.name: row.run.model or plan.tree.variants[row.name] for row in plan.rows}
