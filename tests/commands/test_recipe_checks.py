"""What a recipe finds before its first step: real data, tokenizers and configs, no training."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from mllm_jax.commands.prepare import tables as prepare
from mllm_jax.commands.recipe import checks as recipe_checks
from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.recipe.files import build_stages, load_recipe
from mllm_jax.commands.recipe.tree import check_name
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.index import build
from tests.support import tiny


class Files:
    """A recipe of two stages over the tiny data; everything can be changed before `run`."""

    def __init__(self, root: Path):
        self.root, self.out = root, root / "out"
        tiny.make_data(root / "data")
        self.stages = {name: tiny.tree(root / "data", root / "x") for name in ("align", "instruct")}
        self.stages["instruct"]["init"] = {"weights": "not there yet"}
        shutil.copy(root / "data" / "eu.json", root / "data" / "questions.json")
        self.recipe: dict[str, Any] = {
            "stages": ["align.yaml", "instruct.yaml"],
            "evaluate": {
                "data": str(root / "data" / "questions.json"),
                "images": str(root / "data" / "images"),
            },
        }

    def write(self) -> Path:
        for name, tree in {**self.stages, "recipe": self.recipe}.items():
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return self.root / "recipe.yaml"

    def run(self) -> Path:
        return recipe.run(self.write(), self.out, devices=jax.devices()[:1])

    def stream(self, stage: str, name: str) -> dict[str, Any]:
        return self.stages[stage]["data"]["streams"][name]


class Begun(Exception):
    """The first step would have been taken."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    def train(*_: Any, **__: Any) -> None:
        raise Begun

    monkeypatch.setattr(recipe.loop, "train", train)
    return Files(tmp_path)


def test_what_is_right_gets_to_the_first_step(files: Files):
    with pytest.raises(Begun):
        files.run()
    assert not files.out.exists(), "nothing is written by looking"
    assert (files.root / "data" / "text.jsonl.index").is_dir(), "the indexes of all stages"


def broken_questions(files: Files) -> None:
    Path(files.recipe["evaluate"]["data"]).write_text("[")


def no_questions(files: Files) -> None:
    Path(files.recipe["evaluate"]["data"]).unlink()


def a_question_without_its_picture(files: Files) -> None:
    (files.root / "data" / "images" / "7.png").unlink()
    for stage in files.stages.values():  # the streams do not need it
        stage["data"]["streams"] = {"text": stage["data"]["streams"]["text"]}


def a_question_that_is_too_long(files: Files) -> None:
    data = Path(files.recipe["evaluate"]["data"])
    records = json.loads(data.read_text())
    records[2]["conversations"][0]["value"] += " zein" * 500
    data.write_text(json.dumps(records))


def no_image_folder(files: Files) -> None:
    files.recipe["evaluate"]["images"] = "nope"


def a_record_of_the_second_stage(files: Files) -> None:
    file = files.root / "data" / "bad.jsonl"
    file.write_text('{"id": "1", "messages": [{"role": "user", "content": "x"}]}\n')
    files.stream("instruct", "text")["path"] = str(file)


def a_length_of_the_second_stage(files: Files) -> None:
    files.stages["instruct"]["data"]["length"] = 1024


def rows_of_the_second_stage(files: Files) -> None:
    files.stages["instruct"]["mesh"] = {"data": 3}


def the_second_stages_folder(files: Files) -> None:
    (files.out / "instruct").mkdir(parents=True)
    (files.out / "instruct" / "thesis.tex").write_text("")


def a_fresh_pattern_of_the_second_stage(files: Files) -> None:
    files.stages["instruct"]["init"]["fresh"] = "conector/.*"


def the_first_stages_weights(files: Files) -> None:
    files.stages["align"]["init"] = {"weights": str(files.root / "gone")}


def the_first_stages_tokenizer(files: Files) -> None:
    files.stages["align"]["init"] = {"tokenizer": str(files.root / "gone")}


def a_folder_where_the_export_goes(files: Files) -> None:
    (files.out / "hf").mkdir(parents=True)


def a_field_of_a_stage_file(files: Files) -> None:
    files.stages["instruct"]["data"]["rows"] = 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_questions, r"^evaluate: .*questions.json.*not JSON"),
        (no_questions, r"^evaluate: .*questions.json: no such file"),
        (a_question_without_its_picture, r"^evaluate: .*7.png"),
        (a_question_that_is_too_long, r"^evaluate: record '2'.*max_length=512"),
        (no_image_folder, r"^evaluate: images='nope': no such folder"),
        (a_record_of_the_second_stage, r"^instruct: .*bad.jsonl"),
        (a_length_of_the_second_stage, r"^instruct: data.length=1024 is longer than"),
        (rows_of_the_second_stage, r"^instruct: mesh: .*there are 1 devices"),
        (the_second_stages_folder, r"^instruct: out=.*exists and is not empty"),
        (a_fresh_pattern_of_the_second_stage, r"^instruct: init.fresh='conector/.\*' matches no"),
        (the_first_stages_weights, r"^align: .*gone: no such folder"),
        (the_first_stages_tokenizer, r"^align: .*gone: no such folder"),
        (a_folder_where_the_export_goes, r"hf: was made from older weights"),
        (a_field_of_a_stage_file, r"instruct.yaml: data.rows=0 must lie in"),
    ],
)
def test_what_is_wrong_anywhere_is_found_before_the_first_step(files: Files, spoil, message: str):
    spoil(files)
    before = set(files.out.rglob("*"))
    with pytest.raises(ConfigError, match=message) as error:
        files.run()
    assert "\n" not in str(error.value)
    assert set(files.out.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    "field", [{"max_new_tokens": 0}, {"rows": -1}, {"rows": 0}, {"max_new_tokens": 10**9}]
)
def test_numbers_of_the_evaluation_have_ranges(files: Files, field: dict[str, int]):
    files.recipe["evaluate"] |= field
    ((name, value),) = field.items()
    with pytest.raises(ConfigError, match=rf"^evaluate\.{name}={value} must lie in "):
        files.run()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"identifier": "lid.bin"},
            r"^evaluate\.identifier: is used with evaluate\.fidelity",
        ),
        ({"fidelity": ["en", "es"]}, "^evaluate: fidelity: task free: language 'eu' is not among"),
        ({"fidelity": ["eu"]}, "^evaluate: fidelity: task free: .* needs two languages or more"),
        ({"fidelity": ["eu", "en"], "identifier": "lid.bin"}, r"^evaluate: lid\.bin: no such file"),
        ({"chrf": 1}, r"^evaluate\.chrf: expected true or false, got 1"),
    ],
)
def test_what_is_computed_beside_scores_is_checked(files: Files, fields: dict, message: str):
    files.recipe["evaluate"] |= fields
    with pytest.raises(ConfigError, match=message):
        files.run()
    assert not files.out.exists()


@pytest.mark.parametrize("name", ["hf", "HF", "evaluation", "summary.json", ".", ".hidden"])
def test_a_stage_is_not_named_as_what_a_recipe_writes(files: Files, name: str):
    files.stages[name] = files.stages.pop("instruct")
    files.recipe["stages"] = ["align.yaml", f"{name}.yaml"]
    with pytest.raises(ConfigError, match=r"^stages: .* which is not free for a stage"):
        files.run()


def test_capitals_do_not_tell_stages_apart():
    check_name("data", ["align"])
    with pytest.raises(ConfigError, match="two are named 'Align'"):
        check_name("Align", ["align"])


def test_several_processes_find_the_second_stages_missing_index(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(files.root / "data" / "text.jsonl", files.root / "data" / "more.jsonl")
    for stage in files.stages.values():
        stage["data"]["streams"] = {"text": stage["data"]["streams"]["text"]}
    files.stages["instruct"]["data"]["streams"] = {
        "more": {**files.stream("align", "text"), "path": str(files.root / "data" / "more.jsonl")}
    }
    files.recipe["evaluate"] = None
    path = files.write()
    read = load_recipe(path)
    stages = build_stages(read, files.out)
    prepare.run(stages["align"], workers=1)
    monkeypatch.setattr(recipe_checks.jax, "process_count", lambda: 2)
    one = jax.devices()[:1]
    with pytest.raises(ConfigError, match=r"^instruct: .*no length index for data.streams.more"):
        recipe_checks.check_stages(stages, read.tree, one)
    prepare.run_recipe(path, workers=1)
    assert recipe_checks.check_stages(stages, read.tree, one).pending == ["align", "instruct"]


# ---------------------------------------------------------------------------------- prepare RECIPE


def test_prepare_makes_the_indexes_of_all_stages(files: Files, monkeypatch, capsys):
    files.stream("instruct", "text")["format"] = "llama31"
    files.stages["instruct"]["data"]["length"] = 192
    found = prepare.run_recipe(files.write(), workers=1, json_file=files.root / "report.json")
    assert json.loads((files.root / "report.json").read_text()) == found
    assert {stage: list(streams) for stage, streams in found["stages"].items()} == {
        "align": ["en", "eu", "text"],
        "instruct": ["en", "eu", "text"],
    }
    table = capsys.readouterr().out
    assert table.index("stage align:") < table.index("stage instruct:")
    monkeypatch.setattr(build, "read_chunk", None)
    with pytest.raises(Begun):
        files.run()


def test_prepare_takes_some_of_the_stages(files: Files):
    a_record_of_the_second_stage(files)
    report = prepare.run_recipe(files.write(), workers=1, only=["align"])
    assert list(report["stages"]) == ["align"]


def test_prepare_names_the_stage_that_is_wrong(files: Files):
    a_record_of_the_second_stage(files)
    with pytest.raises(ConfigError, match=r"^instruct: .*bad.jsonl"):
        prepare.run_recipe(files.write(), workers=1)


def test_a_stage_file_is_not_a_recipe(files: Files):
    files.write()
    with pytest.raises(ConfigError, match=r"align\.yaml: a stage file, where a recipe is expected"):
        load_recipe(files.root / "align.yaml")
