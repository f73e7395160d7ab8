"""A recipe's order, its refusals, and how it continues after a stop.

Training, evaluation and export are made up here.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import Config, FolderConfig
from mllm_jax.training import run_folder
from tests.support.recipes import MODEL, Files, begin, made_up_recipe, save


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return made_up_recipe(tmp_path, monkeypatch)


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
        ("recipe/stages", ["backbone.yaml", "backbone.yaml"], "two are named 'backbone'"),
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
            "model.language.width is 16, but 8 in stage align",
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


def test_a_later_stage_begins_to_cut_images_into_tiles(files: Files):
    """Grids are all that it may add to the model of the stages before; those after it keep them."""
    files.stages["align"]["model"] = {"grids": {"order": "hw", "sizes": [[8, 16]]}}
    del files.stages["align"]["init"]["fresh"], files.stages["instruct"]["model"]
    files.run()
    models = [loading.load(Config, files.out / name / "config.yaml").model for name in files.stages]
    assert models[0] == loading.build(ModelConfig, MODEL)
    assert models[1] == models[2] != models[0]
    stages = json.loads((files.out / "summary.json").read_text())["stages"]
    connectors = [stage["modules"][1] for stage in stages]
    assert [of["parameters"] for of in connectors] == [72, 80, 80]
    assert "random" not in {of["before"] for of in connectors[1:]}
    files.stages["instruct"]["model"] = {"grids": {"order": "wh", "sizes": [[8, 16]]}}
    files.out = files.root / "second"
    with pytest.raises(ConfigError, match=r"model.grids.order is 'wh', but 'hw' in stage align"):
        files.run()
    assert not files.out.exists()


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
