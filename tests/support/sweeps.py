"""Small sweeps on disk: a recipe of two stages over the tiny data, shares and seeds."""

import json
from pathlib import Path
from typing import Any

import jax
import yaml

from mllm_jax.commands.sweep import stages as sweep
from tests.support import tiny

TABLES = ("results.json", "results.md", "results.tex", "results.html", "pairs.json")


class Files:
    """A recipe and a sweep file, changed before they are written."""

    def __init__(self, root: Path, data: Path, steps: int = 2):
        self.root, self.out = root, root / "out"
        stage = tiny.tree(data, root / "x") | {"train": {"steps": steps, "save_every": 2}}
        self.stages = {"align": stage, "instruct": {**stage, "init": {"weights": "before"}}}
        self.recipe: dict[str, Any] = {
            "stages": ["align.yaml", "instruct.yaml"],
            "evaluate": {
                "data": str(root / "heldout.json"),
                "images": str(data / "images"),
                "max_new_tokens": 4,
                "devices": 1,
            },
        }
        self.sweep: dict[str, Any] = {
            "recipe": "recipe.yaml",
            "axes": {
                "share": {
                    "0": {"instruct.data.streams.eu": None},
                    "50": {"instruct.data.streams.eu.weight": 0.5},
                },
                "seed": {"1": {"instruct.seed": 1}, "2": {"instruct.seed": 2}},
            },
            "figure": {"x": "share", "over": "seed"},
        }
        heldout = []
        for language in ("eu", "en"):
            records = json.loads((data / f"{language}.json").read_text())[:4]
            heldout += [{**record, "id": f"{language}-{record['id']}"} for record in records]
        (root / "heldout.json").write_text(json.dumps(heldout))

    def write(self) -> Path:
        for name, tree in {**self.stages, "recipe": self.recipe, "sweep": self.sweep}.items():
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return self.root / "sweep.yaml"

    def run(self, **options: Any) -> Path:
        return sweep.run(self.write(), self.out, devices=jax.devices()[:1], **options)


def written(out: Path) -> dict[str, bytes]:
    """The bytes of everything that a sweep writes at its end."""
    figures = sorted(path.name for path in out.glob("*.svg"))
    return {name: (out / name).read_bytes() for name in (*TABLES, *figures)}
