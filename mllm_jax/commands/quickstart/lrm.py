"""Makes what LRM-LLaVA's ablation on handwritten numbers needs: data, tasks, tokenizer, configs.

    scans -> OUT/data: pictures, aligned captions and questions in English, Basque and Spanish
          -> corpus tasks -> OUT/data/align, OUT/data/instruct
          -> OUT/tokenizer, OUT/configs (configs/quickstart_lrm with the paths of OUT)

Nothing is trained here: `mllm-jax sweep OUT/configs/ablation.yaml` does that (docs/lrm.md).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from mllm_jax.commands.quickstart.stages import configs_folder, localised
from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_new, new_folder
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.corpus.tasks import files
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.digits.aligned import make_aligned_data
from mllm_jax.digits.records import Counts
from mllm_jax.digits.tokenizer import make_tokenizer

HOME = "runs/quickstart_lrm"  # what the paths in configs/quickstart_lrm begin with
COUNTS = Counts(pictures=6000, text=4000, heldout=2)
ALIGNED = {"align": ("captions.jsonl", ("mvqa",)), "instruct": ("questions.jsonl", files.TASKS)}


def run(out: str | Path = HOME, share: float = 1.0) -> Path:
    """Makes the folder; prints the tables of both stages' tasks.

    Args:
        out: a new folder.
        share: of pictures and steps, for a quick check (0 < share <= 1).

    Returns:
        OUT/configs.

    Raises:
        ConfigError: OUT is in use.
    """
    out = Path(out)
    require(0 < share <= 1, f"--share={share}: must lie in (0, 1]")
    check_new(out)
    source = configs_folder("quickstart_lrm")
    counts = COUNTS._replace(
        pictures=max(600, round(COUNTS.pictures * share)),
        text=max(600, round(COUNTS.text * share)),
        heldout=max(1, round(COUNTS.heldout * share)),
    )
    with new_folder(out) as folder:
        (folder / "configs").mkdir()
        for file in sorted(source.glob("*.yaml")):
            text = localised(file.read_text(encoding="utf-8"), out, share, HOME)
            (folder / "configs" / file.name).write_text(text, encoding="utf-8")
        model = loading.load(Config, folder / "configs" / "backbone.yaml").model
        assert model.language is not None
        texts = make_aligned_data(folder / "data", counts)
        for stage, (name, tasks) in ALIGNED.items():
            data = folder / "data"
            place, images = out / "data" / stage, str(out / "data" / "images")
            options = files.Options(tasks=tasks, images=images, format="llama3", place=place)
            files.run(JsonSource(data / name), f"{stage}, {name}", data / stage, options)
            texts += _texts(data / stage)
        make_tokenizer(texts, folder / "tokenizer", TEMPLATES["llama3"], model.language.vocab)
    print(f"\nnext: mllm-jax sweep {out / 'configs' / 'ablation.yaml'}", flush=True)
    return out / "configs"


def _texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield from (turn["value"] for turn in json.loads(line)["conversations"])
