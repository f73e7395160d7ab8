"""A recipe's order, its refusals, and how it goes on after a stop.

Training, evaluation and export are made up here.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints, checkpoint_steps
from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.recipe.checks import Checked
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import ComputeConfig, Config, FolderConfig
from mllm_jax.data.mixture.order import VERSION as ORDER
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
ALL = {"all": {"match": ".*"}}
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
            "backbone": self.stage(ALL, {"tokenizer": "somewhere"}),
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

    def run(self, *overrides: str) -> Path:
        for name, tree in {**self.stages, "recipe": self.recipe}.items():
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return recipe.run(self.root / "recipe.yaml", self.out, overrides=overrides)


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
        read = {p: x for p, x in shapes.items() if not run_folder.is_fresh(config.init, p)}
        old |= open_model(config.init.weights).load(read, config.init.fresh)
    owner = assign(old, parts)
    new = {
        p: x + 1 if parts[owner[p]].train or (spoil and p.startswith(spoil)) else x
        for p, x in old.items()
    }
    checkpoints = Checkpoints(config.out, Keep(1))
    checkpoints.save(step, new, {"count": jnp.zeros(())}, {})
    checkpoints.close()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = Files(tmp_path)

    def train(
        config: Config, resume: run_folder.Resume = False, devices: Any = None, sampler: Any = None
    ) -> Path:
        name, beginning = Path(config.out).name, run_folder.check(config, resume)
        made.calls.append(f"{name}{' again' if beginning.step else ''}")
        if beginning.step is None:
            begin(config)
        save(config, 4)
        return Path(config.out)

    def evaluate(
        model: Path,
        data: Any,
        out: Path,
        images: Any = None,
        max_new_tokens: int = 32,
        rows: int = 32,
    ) -> dict:
        made.calls.append(f"evaluate {model.name} {max_new_tokens} {rows}")
        scores = {
            "languages": {"eu": {"exact_match": 0.9, "count": 10, "loss": 0.1, "perplexity": 1.1}}
        }
        Path(out).mkdir(exist_ok=True)
        (Path(out) / "scores.json").write_text(json.dumps(scores))
        return scores

    def to_hf(model: Path, out: Path, dtype: str | None = None) -> None:
        made.calls.append(f"export {model.name} {dtype}")
        out.mkdir()

    def check_stages(stages: dict[str, Config], devices: Any) -> Checked:
        saved = {name: checkpoint_steps(Path(c.out) / "checkpoints") for name, c in stages.items()}
        pending = [name for name, steps in saved.items() if not steps or steps[-1] < 4]
        return Checked(pending, None)

    # data, tokenizers and questions are made up, too: see tests/commands/test_recipe_checks.py
    monkeypatch.setattr(recipe, "check_stages", check_stages)
    monkeypatch.setattr(recipe, "check_questions", lambda *_: None)
    monkeypatch.setattr(recipe.loop, "train", train)
    monkeypatch.setattr(recipe.runner, "evaluate", evaluate)
    monkeypatch.setattr(recipe.conversions, "to_hf", to_hf)
    monkeypatch.setattr(recipe.pages, "run", made.reports.append)
    monkeypatch.setattr("mllm_jax.checkpoints.open_model.read_processor", lambda *_: (None, "crop"))
    return made


WHOLE = ["backbone", "align", "instruct", "evaluate instruct 5 2", "export instruct float32"]


def test_stages_follow_each_other(files: Files, capsys: pytest.CaptureFixture[str]):
    assert files.run() == files.out
    assert files.calls == WHOLE
    assert files.reports == [files.out], "at the end, about the whole recipe"
    for name, before in (("align", "backbone"), ("instruct", "align")):
        config = loading.load(Config, files.out / name / "config.yaml")
        assert config.init.weights == str(files.out / before), (
            "the weights are the stage before, whatever the file says"
        )
    assert loading.load(FolderConfig, files.out / "instruct" / "model" / "config.yaml").scores == {
        "exact match (eu)": 0.9
    }
    summary = json.loads((files.out / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["backbone", "align", "instruct"]
    assert set(summary["seconds"]) == {"evaluation", "export"}
    assert summary["versions"]["jax"] == jax.__version__
    assert "connector" in capsys.readouterr().out
    files.run()
    assert files.calls == WHOLE, "a finished recipe does nothing again"


def test_modules_are_followed_through_the_stages(files: Files):
    files.run()
    summary = json.loads((files.out / "summary.json").read_text())
    stages = {
        stage["name"]: {m["module"]: m for m in stage["modules"]} for stage in summary["stages"]
    }
    assert list(stages["align"]) == ["vision", "connector", "language"]
    assert {m["before"] for m in stages["backbone"].values()} == {"random"}
    assert stages["align"]["connector"]["before"] == "random", "drawn anew"
    table = {
        name: [
            (stages[name][m]["trained"], stages[name][m]["before"] != stages[name][m]["after"])
            for m in stages[name]
        ]
        for name in stages
    }
    assert table["align"] == [("no", False), ("yes", True), ("no", False)]
    assert table["instruct"] == [("no", False), ("yes", True), ("yes", True)]
    for module in ("vision", "connector", "language"):
        assert stages["instruct"][module]["before"] == stages["align"][module]["after"]
        assert stages["align"][module]["parameters"] > 0


def test_a_frozen_parameter_that_moved_is_an_alarm(files: Files, monkeypatch: pytest.MonkeyPatch):
    files.run()
    config = loading.load(Config, files.out / "align" / "config.yaml")
    before = recipe.module_table(config)
    save(config, 5, spoil="language/norm")
    with pytest.raises(RuntimeError, match="1 frozen parameters changed: language/norm/scale"):
        recipe.module_table(config)
    assert {row.module: row.trained for row in before} == {
        "vision": "no",
        "connector": "yes",
        "language": "no",
    }


def test_a_stopped_stage_is_resumed(files: Files, monkeypatch: pytest.MonkeyPatch):
    whole, stop = recipe.loop.train, [True]

    def train(
        config: Config, resume: run_folder.Resume = False, devices: Any = None, sampler: Any = None
    ) -> Path:
        if Path(config.out).name == "align" and stop:
            stop.clear()
            files.calls.append("align, half")
            begin(config)
            save(config, 2)
            raise KeyboardInterrupt
        return whole(config, resume)

    monkeypatch.setattr(recipe.loop, "train", train)
    with pytest.raises(KeyboardInterrupt):
        files.run()
    files.run()
    assert files.calls == ["backbone", "align, half", "align again", *WHOLE[2:]]


def test_a_stage_stopped_before_its_first_checkpoint_begins_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    files.recipe["stages"] = ["backbone.yaml"]
    whole = recipe.loop.train

    def train(
        config: Config, resume: run_folder.Resume = False, devices: Any = None, sampler: Any = None
    ) -> Path:
        Path(config.out).mkdir(parents=True)
        loading.dump(config, Path(config.out) / "config.yaml")
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.loop, "train", train)
    with pytest.raises(KeyboardInterrupt):
        files.run()
    monkeypatch.setattr(recipe.loop, "train", whole)
    files.run()
    assert files.calls == ["backbone", "evaluate backbone 5 2", "export backbone float32"]


def set_in(tree: dict, path: str, value: Any) -> None:
    *folders, last = path.split("/")
    for key in folders:
        tree = tree[key]
    tree[last] = value


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("recipe/stages", ["backbone.yaml", "backbone.yaml"], "two files are named 'backbone'"),
        ("recipe/stages", ["backbone.yaml", "missing.yaml"], "missing.yaml: no such file"),
        (
            "instruct/data/streams/all/path",
            "gone.json",
            "data.streams.all.path: gone.json: no such file",
        ),
        ("instruct/optimizer/parts", {"some": {"match": "language/.*"}}, "no part claims"),
        (
            "instruct/model",
            {**MODEL, "language": {**MODEL["language"], "width": 16}},
            "model.language.width is 16, but 8 in the first stage",
        ),
        ("align/train", {"stepps": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    files: Files, where: str, value: Any, words: str
):
    file, _, path = where.partition("/")
    set_in(files.recipe if file == "recipe" else files.stages[file], path, value)
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")) as caught:
        files.run()
    assert "\n" not in str(caught.value)
    assert files.calls == []
    assert not files.out.exists()


def test_streams_may_be_folders_of_shards(files: Files):
    (files.root / "shards").mkdir()
    streams = {"all": {"path": str(files.root / "shards"), "kind": "parquet", "language": "eu"}}
    for stage in files.stages.values():
        stage["data"]["streams"] = streams
    files.run()
    assert files.calls == WHOLE


def test_scores_of_an_older_model_are_not_taken_for_new_ones(files: Files):
    files.recipe["stages"] = ["backbone.yaml"]
    (files.out / "evaluation").mkdir(parents=True)
    with pytest.raises(ConfigError, match="evaluation: was made from older weights than"):
        files.run()
    assert files.calls == []


def test_a_folder_of_something_else_is_refused(files: Files):
    (files.out / "instruct").mkdir(parents=True)
    (files.out / "instruct" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"instruct: exists and is not empty"):
        files.run()
    assert files.calls == []


def test_another_config_than_before_is_refused(files: Files):
    files.recipe |= {"stages": ["backbone.yaml"], "evaluate": None, "export": None}
    files.run()
    assert files.calls == ["backbone"], "evaluation and export can be left out"
    files.stages["backbone"]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate was 2e-05, is 0\.5"):
        files.run()
    assert files.calls == ["backbone"]


# ----------------------------------------------------------------------------- a model left out


def test_the_model_is_written_once(files: Files):
    for stage in ("align", "instruct"):
        del files.stages[stage]["model"]
    files.run()
    assert files.calls == WHOLE
    models = [loading.load(Config, files.out / name / "config.yaml").model for name in files.stages]
    assert models[0] == models[1] == models[2] == loading.build(ModelConfig, MODEL)


def test_a_first_stage_has_the_model_of_its_weights(files: Files):
    files.recipe |= {"stages": ["backbone.yaml"], "evaluate": None, "export": None}
    files.run()
    weights = files.out / "backbone"
    align = {key: value for key, value in files.stages["align"].items() if key != "model"}
    files.stages = {"align": align | {"init": {"weights": str(weights)}}}
    files.recipe["stages"], files.out = ["align.yaml"], files.root / "second"
    files.run()
    weights.rename(files.out / "moved")
    files.run()
    assert files.calls == ["backbone", "align"], "a finished stage does not need its weights"


# -------------------------------------------------------------------------------------- overrides


def configs(files: Files) -> dict[str, Config]:
    return {name: loading.load(Config, files.out / name / "config.yaml") for name in files.stages}


def test_overrides_are_of_all_stages_or_of_one(files: Files):
    files.run("--data.rows", "4", "--align.data.rows=8", "--evaluate.rows", "3", "--export=null")
    assert {name: config.data.rows for name, config in configs(files).items()} == {
        "backbone": 4, "align": 8, "instruct": 4,
    }  # fmt: skip
    assert files.calls == ["backbone", "align", "instruct", "evaluate instruct 5 3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trian.steps", "3"], "'trian' is not a section or a stage; did you mean 'train'?"),
        (["--alingn.seed", "3"], "'alingn' is not a section or a stage; did you mean 'align'?"),
        (["--align.trian.steps", "3"], "'trian' is not a section or a stage; did you mean 'train'"),
        (["--align.train.stepps", "3"], "train.stepps: unknown key; did you mean 'steps'?"),
        (["--evaluate.row", "3"], "evaluate.row: unknown key; did you mean 'rows'?"),
        (["--align.out", "x"], "a recipe names the folders of its stages; give --out DIR"),
        (["--train.steps"], "--train.steps: value missing"),
        (["train.steps", "3"], "unexpected argument 'train.steps'"),
    ],
)
def test_an_override_of_nothing_is_refused(files: Files, words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        files.run(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert files.calls == []


@pytest.mark.parametrize(
    ("begun", "again"),
    [
        (["--optimizer.learning_rate", "0.5"], "optimizer.learning_rate was 0.5, is 2e-05"),
        (["--align.train.steps", "3"], "train.steps was 3, is 4; give the overrides again"),
    ],
)
def test_a_recipe_continues_with_the_overrides_it_began_with(
    files: Files, begun: list[str], again: str
):
    files.run(*begun)
    with pytest.raises(ConfigError, match=re.escape(again)):
        files.run()
    files.run(*begun)
    assert files.calls == WHOLE, "nothing is trained twice"
