"""What a run read is what its continuation reads, or the continuation is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.training import run_inputs
from tests.support import tiny

STEP = 4  # of the checkpoint from which the run is continued


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny.make_data(tmp_path / "data")
    (tmp_path / "run").mkdir()
    return tmp_path / "data"


def loader(config: Config) -> Loader:
    return Loader(config.data, config.model, load_tokenizer(config.init.tokenizer or ""), 0)


def begin(config: Config, step: int | None = None, accept: bool = False) -> run_inputs.Inputs:
    """Checks and writes, as `train` does; returns what was noted."""
    streams = loader(config)
    steps = config.train.steps or streams.steps(config.train.epochs or 0)
    inputs = run_inputs.check(config, step, streams, steps, accept)
    run_inputs.write(Path(config.out), inputs, streams)
    return inputs


def stage(data: Path, **train: Any) -> Config:
    return tiny.config(data, data.parent / "run", train=train)


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        begin(config, STEP)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(data: Path, how: str) -> None:
    file = data / "eu.json"
    records = json.loads(file.read_text())
    if how == "grown":
        records.append(records[0] | {"id": "new"})
    if how == "shrunk":
        records.pop()
    if how == "reordered":
        records.reverse()
    if how == "edited":  # by as many letters
        answer = records[3]["conversations"][-1]
        answer["value"] = answer["value"][::-1]
    file.write_text(json.dumps(records))


def test_the_same_data_continue_and_nothing_is_written_over(data: Path):
    config = stage(data)
    assert begin(config).report == "data.json"
    run = Path(config.out)
    (run / "data.json").write_text("the report of the beginning")
    before = (run / run_inputs.FILE).read_bytes()
    (data / "eu.json").touch()
    assert begin(config, STEP).notes == []
    assert (run / run_inputs.FILE).read_bytes() == before
    assert (run / "data.json").read_text() == "the report of the beginning"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("grown", "data.streams.eu has 25 examples, had 24"),
        ("shrunk", "data.streams.eu has 23 examples, had 24"),
        ("reordered", "data.streams.eu has other content (24 examples as before)"),
        ("edited", "data.streams.eu has other content (24 examples as before)"),
    ],
)
def test_other_data_are_refused_by_name_and_accepted_by_the_switch(data: Path, how, words):
    config = stage(data)
    begin(config)
    run = Path(config.out)
    report = (run / "data.json").read_bytes()
    change(data, how)
    assert refused(config) == (
        f"out={run}: the run began with other data: {words}; put the data back, start a new run, "
        "or continue with the changed data by --accept-changed-data"
    )
    assert begin(config, STEP, accept=True).notes == [f"accepted: {words}"]
    assert (run / "data.json").read_bytes() == report, "the streams of the first steps"
    later = json.loads((run / "data-from-4.json").read_text())["streams"]["eu"]["used"]
    entries = json.loads((run / run_inputs.FILE).read_text())["inputs"]
    assert [entry["step"] for entry in entries] == [0, 4]
    assert later == entries[1]["streams"]["eu"]["examples"]
    assert begin(config, 8).notes == [], "from here on these are the run's data"


def test_a_moved_or_renamed_file_is_the_same_data(data: Path, tmp_path: Path):
    begin(stage(data))
    shutil.copytree(data, tmp_path / "elsewhere")
    moved = tiny.config(tmp_path / "elsewhere", tmp_path / "run")
    assert begin(moved, STEP).notes == []


def test_epochs_that_are_more_steps_are_refused(data: Path):
    config = stage(data, steps=None, epochs=2)
    first = begin(config).entries[0]["steps"]
    (data / "text.jsonl").write_text(_longer(data / "text.jsonl"))
    message = refused(config)
    assert "data.streams.text has 60 examples, had 12" in message
    assert f"steps, was {first}, with other learning rates" in message
    assert "train.epochs=2.0 is " in message


def _longer(file: Path) -> str:
    lines = file.read_text().splitlines()
    again = [line.replace('"id": "t', f'"id": "{n}-t') for n in range(4) for line in lines]
    return "\n".join([*lines, *again]) + "\n"


def test_epochs_that_were_changed_on_purpose_are_not(data: Path):
    begin(stage(data, steps=None, epochs=2))
    assert begin(stage(data, steps=None, epochs=3), STEP).notes == []
    assert begin(stage(data, steps=40, epochs=None), STEP).notes == []


def test_another_template_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch):
    config = stage(data)
    begin(config)
    monkeypatch.setitem(TEMPLATES, "llama3", TEMPLATES["llama3"] + "{# newer #}")
    assert "the template of format llama3 is another one" in refused(config)


def test_a_run_of_an_older_version_continues_and_says_so(data: Path):
    config = stage(data)
    begin(config)
    file = Path(config.out) / run_inputs.FILE
    file.unlink()
    (note,) = begin(config, STEP).notes
    assert note.startswith(f"{file} is missing (a run of an older version)")
    change(data, "edited")
    assert "data.streams.eu has other content" in refused(config), "checked from now on"


@pytest.mark.parametrize("text", ["{}", '{"inputs": []}', '{"inputs": [1]}', '{"inputs": [{}]}'])
def test_a_damaged_note_is_named(data: Path, text: str):
    config = stage(data)
    (Path(config.out) / run_inputs.FILE).write_text(text)
    assert refused(config).endswith("inputs.json: damaged; remove it to continue unchecked")


def test_a_run_without_a_checkpoint_begins_with_the_data_that_are_there(data: Path):
    config = stage(data)
    begin(config)
    change(data, "grown")
    assert begin(config).entries[0]["streams"]["eu"]["examples"] == 25


def test_another_tokenizer_is_refused_always(data: Path):
    config = stage(data)
    shutil.copytree(data / "tokenizer", Path(config.out) / "model")
    run_inputs.check_tokenizer(config, STEP, load_tokenizer(data / "tokenizer"))
    other_end = load_tokenizer(data / "tokenizer")
    other_end.eos_token = "a"
    with pytest.raises(ConfigError, match="its tokenizer is not the one"):
        run_inputs.check_tokenizer(config, STEP, other_end)
    file = data / "tokenizer" / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tree))
    changed = load_tokenizer(data / "tokenizer")
    with pytest.raises(ConfigError) as error:
        run_inputs.check_tokenizer(config, STEP, changed)
    assert str(error.value) == (
        "init.tokenizer: its tokenizer is not the one that the run began with "
        f"({config.out}/model/tokenizer.json); put it back, or start a new run"
    )
    run_inputs.check_tokenizer(config, None, changed)  # nothing was trained yet
