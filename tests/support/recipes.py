"""Recipes whose training, evaluation and export are made up: what is called, what it leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import yaml

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints, checkpoint_steps
from mllm_jax.commands.recipe import results
from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.recipe.checks import Checked
from mllm_jax.config import loading
from mllm_jax.config.stage import ComputeConfig, Config, FolderConfig
from mllm_jax.data.mixture.order import VERSION as ORDER
from mllm_jax.generation.devices import ALL
from mllm_jax.models import mllm
from mllm_jax.training import run_folder
from mllm_jax.training.optimizer import assign

MODEL = {
    "vision": {"image_size": 8, "patch_size": 4, "width": 8, "mlp": 8, "layers": 2, "heads": 2},
    "connector": {"kind": "linear"},
    "language": {
        "vocab": 16,
        "width": 8,
        "mlp": 8,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 4,
        "max_length": 64,
    },
    "image_token": 15,
}
EVERY = {"all": {"match": ".*"}}
CONNECTOR = {
    "connector": {"match": "connector/.*"},
    "rest": {"match": "(vision|language)/.*", "train": False},
}
LANGUAGE = {
    "moving": {"match": "(connector|language)/.*"},
    "still": {"match": "vision/.*", "train": False},
}


class Files:
    """A recipe of three stages on disk, and what was called while it ran."""

    def __init__(self, root: Path):
        self.root, self.out, self.calls = root, root / "out", []
        self.reports: list[Path] = []
        (root / "data.json").write_text("[]")
        self.stages = {
            "backbone": self.stage(EVERY, {"tokenizer": "somewhere"}),
            "align": self.stage(CONNECTOR, {"weights": "not this one", "fresh": "connector/.*"}),
            "instruct": self.stage(LANGUAGE, {"weights": "nor this one"}),
        }
        self.recipe: dict[str, Any] = {
            "stages": ["backbone.yaml", "align.yaml", "instruct.yaml"],
            "evaluate": {"data": str(root / "data.json"), "max_new_tokens": 5, "rows": 2},
            "export": "float32",
        }

    def stage(self, parts: dict, init: dict) -> dict:
        streams = {"all": {"path": str(self.root / "data.json"), "language": "eu"}}
        return {
            "model": MODEL,
            "init": init,
            "data": {"streams": streams, "languages": ["eu"], "length": 32, "rows": 2},
            "optimizer": {"parts": parts},
            "train": {"steps": 4},
            "compute": {"compute": "float32"},
        }

    def run(self, *overrides: str, only: Sequence[str] = ()) -> Path:
        for name, tree in {**self.stages, "recipe": self.recipe}.items():
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return recipe.run(self.root / "recipe.yaml", self.out, overrides=overrides, only=only)


def begin(config: Config) -> None:
    """What stands in a run folder before the first step."""
    model = Path(config.out) / "model"
    model.mkdir(parents=True)
    loading.dump(config, Path(config.out) / "config.yaml")
    loading.dump(FolderConfig(config.model), model / "config.yaml")
    (Path(config.out) / "data.json").write_text(json.dumps({"order": ORDER}))


def save(config: Config, step: int, spoil: str = "") -> None:
    """What a stage of `step` updates leaves: every trained parameter one larger than before.

    Likewise those whose paths begin with `spoil`.
    """
    parts = config.optimizer.parts
    shapes = mllm.abstract_params(mllm.build(config.model, ComputeConfig()))
    old = {path: jnp.full(x.shape, len(path) / 8) for path, x in shapes.items()}
    if config.init.weights is not None:
        source = open_model(config.init.weights)
        drawn = run_folder.drawn_paths(config, shapes, source.config.model)
        read = {path: x for path, x in shapes.items() if path not in drawn}
        old |= source.load(read, config.init.fresh)
    owner = assign(old, parts)
    new = {
        p: x + 1 if parts[owner[p]].train or (spoil and p.startswith(spoil)) else x
        for p, x in old.items()
    }
    checkpoints = Checkpoints(config.out, Keep(1))
    checkpoints.save(step, new, {"count": jnp.zeros(())}, {})
    checkpoints.close()


def made_up_recipe(root: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """A recipe in `root`; nothing is trained, but checkpoints are written and read."""
    made = Files(root)

    def train(
        config: Config, resume: run_folder.Resume = False, devices: Any = None, sampler: Any = None
    ) -> Path:
        name, beginning = Path(config.out).name, run_folder.check(config, resume)
        made.calls.append(f"{name}{' again' if beginning.step else ''}")
        if beginning.step is None:
            begin(config)
        save(config, 4)
        return Path(config.out)

    def evaluate_tasks(model: str, tasks: Any, out: Path, **options: Any) -> None:
        assert options["resume"] and options["devices"] == ALL
        made.calls.append(
            f"evaluate {Path(model).name} {tasks[0].max_new_tokens} {options['rows']}"
        )
        scores = {
            "languages": {"eu": {"exact_match": 0.9, "count": 10, "loss": 0.1, "perplexity": 1.1}}
        }
        Path(out).mkdir(parents=True)
        (Path(out) / "scores.json").write_text(json.dumps(scores))

    def to_hf(model: Path, out: Path, dtype: str | None = None) -> None:
        made.calls.append(f"export {model.name} {dtype}")
        out.mkdir(parents=True)

    def check_stages(stages: dict[str, Config], tree: Any, devices: Any) -> Checked:
        saved = {name: checkpoint_steps(Path(c.out) / "checkpoints") for name, c in stages.items()}
        pending = [name for name, steps in saved.items() if not steps or steps[-1] < 4]
        return Checked(pending, dict.fromkeys(stages))

    # data, tokenizers and questions are made up, too: see tests/commands/test_recipe_checks.py
    monkeypatch.setattr(recipe, "check_stages", check_stages)
    monkeypatch.setattr(recipe, "check_questions", lambda *_: None)
    monkeypatch.setattr(recipe.loop, "train", train)
    monkeypatch.setattr(results.runner, "evaluate_tasks", evaluate_tasks)
    monkeypatch.setattr(results.conversions, "to_hf", to_hf)
    monkeypatch.setattr(recipe.pages, "run", made.reports.append)
    monkeypatch.setattr("mllm_jax.checkpoints.open_model.read_processor", lambda *_: (None, "crop"))
    return made
