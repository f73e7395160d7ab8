"""Writes the README.md of a project: what is in it, and the next commands as typed."""

from pathlib import Path

from mllm_jax.commands.new.dataset import Dataset
from mllm_jax.commands.new.languages import Language

TEXT = """\
# A multimodal model for {name} ({code})

Made by `mllm-jax new`. Run the commands below in the folder in which that was run: the paths in
`configs/` start there.

| | |
|---|---|
| `configs/` | {stages}, and `recipe.yaml`: every value with its reason |
| `data/train/` | {streams} |
| `data/heldout/` | records that are never trained: the scores are of these |
| `models/start/` | CLIP and Llama joined, with a new connector |

```bash
mllm-jax prepare {out}/configs/recipe.yaml
mllm-jax inspect --config {out}/configs/{first}.yaml --out {out}/look
mllm-jax recipe {out}/configs/recipe.yaml
mllm-jax generate {out}/runs/{last} --image PICTURE --prompt "{prompt}"
```

`prepare` checks every record and decodes every picture. `inspect` writes a page of the first step
as the model gets it. `recipe` trains, answers the held-out records
(`{out}/runs/evaluation/scores.md`), exports (`{out}/runs/hf` opens with stock transformers) and
writes a page about it all, `{out}/runs/report.html`; `mllm-jax report {out}/runs` writes that page
while it trains. Stopped, it continues by the same command. A try of a few minutes, behind `recipe`:
`--train.epochs null --train.steps 20 --out {out}/try`. What fits on other hardware:
`mllm-jax preflight --hardware h100:8 --config {out}/configs/{last}.yaml
--init.weights {out}/models/start`.

To the Hub, after editing the model card `{out}/runs/hf/README.md`:

```bash
hf upload USER/NAME {out}/runs/hf --private
```

More records: run `mllm-jax new` with all of them and another folder. What is held out is decided by
hashes of pictures and texts, so no record that was trained is held out then.
"""


def readme(out: Path, language: Language, dataset: Dataset, stages: list[str]) -> str:
    """The text of README.md."""
    counts = [
        f"{name} ({stream.records:,})"
        for streams in dataset.stages.values()
        for name, stream in streams.items()
    ]
    return TEXT.format(
        name=language.name,
        code=language.code,
        out=out,
        stages=", ".join(f"`{stage}.yaml`" for stage in stages),
        streams=", ".join(counts),
        first=stages[0],
        last=stages[-1],
        prompt="..." if "instruct" in stages else "",
    )
