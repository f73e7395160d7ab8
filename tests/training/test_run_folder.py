"""What a run folder says: the chat template of its model, what may change on the way."""

import dataclasses

import jax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config import loading
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture import order
from mllm_jax.distributed import sharding
from mllm_jax.training import run_folder
from tests.support import tiny


def config(tmp_path, streams, **data):
    named = {name: {"path": "a.json", **of} for name, of in streams.items()}
    return tiny.config(tmp_path, tmp_path / "run", data={"streams": named, **data})


def test_the_template_is_that_of_the_heaviest_conversations(tmp_path):
    streams = {
        "captions": {"format": "plain", "weight": 9.0},
        "corpus": {"format": "llama31", "weight": 8.0, "layout": "text"},
        "lines": {"path": "a.txt", "kind": "text", "weight": 7.0, "format": "llama31"},
        "chats": {"format": "llama3", "weight": 2.0},
        "others": {"format": "llama31"},
    }
    shares = {name: of.get("weight", 1.0) for name, of in streams.items()}

    def template(**others) -> str | None:
        named = config(tmp_path, streams).data.streams
        return run_folder.chat_template(named, shares | others)

    assert template() == TEMPLATES["llama3"]
    assert template(others=3.0) == TEMPLATES["llama31"]
    assert template(others=2.0) == TEMPLATES["llama3"], "the first of equal ones"
    del streams["chats"], streams["others"]
    assert template() is None


@pytest.mark.parametrize(
    ("streams", "fields", "expected"),
    [
        # 24 records of eu and en, 12 of text; those of text are longer
        ({"eu": {"epochs": 1.0}, "text": {"epochs": 1.0}}, {}, "llama3"),
        ({"eu": {"epochs": 1.0}, "text": {"epochs": 3.0}}, {}, "llama31"),
        ({"eu": {}, "text": {"weight": 1.2}}, {}, "llama31"),
        ({"eu": {}, "text": {"weight": 1.2}}, {"weights": "tokens"}, "llama3"),
        ({"eu": {"weight": 2.0}, "text": {}}, {"changes": {"10": {"text": 20.0}}}, "llama3"),
        ({"eu": {"weight": 2.0}, "text": {}}, {"changes": {"4": {"text": 20.0}}}, "llama31"),
        ({"eu": {"weight": 2.0}, "text": {}}, {"changes": {"12": {"text": 20.0}}}, "llama3"),
        (
            {"text": {"weight": 4.0}, "eu": {"weight": 3.0}, "en": {"weight": 2.0}},
            {"temperature": 1e9},
            "llama3",
        ),
    ],
)
def test_the_template_of_a_run_follows_the_records_that_it_trains(
    data, tmp_path, streams, fields, expected
):
    """Of 12 steps. With the temperature en has half of the records, text and eu share the rest."""
    tree = tiny.tree(data, tmp_path)["data"]["streams"]
    for name, of in tree.items():
        of |= {"weight": 1.0, "format": "llama31" if name == "text" else "llama3"}
        of |= {"language": "en" if name == "en" else "eu"}
    named = {name: tree[name] | of for name, of in streams.items()}
    made = tiny.config(data, tmp_path / "run", data={"streams": named, "length": 256, **fields})
    tokenizer = load_tokenizer(made.init.tokenizer or "")
    loader = Loader(made.data, made.model, tokenizer, made.seed)
    run = run_folder.prepare(made, None, loader, 12, fresh=True)
    template = (run / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == TEMPLATES[expected]


@pytest.fixture
def begun(tmp_path):
    """A run that has saved its tenth step."""
    first = config(tmp_path, {"a": {}, "b": {}})
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    loading.dump(first, tmp_path / "run" / "config.yaml")
    write_json(tmp_path / "run" / "data.json", {"order": order.VERSION})
    return first


def changed(first, **data):
    return dataclasses.replace(first, data=dataclasses.replace(first.data, **data))


def test_weights_may_change_from_a_step_on_that_lies_ahead(begun, monkeypatch):
    monkeypatch.setattr(run_folder, "checkpoint_steps", lambda _: [5, 10])
    ahead = changed(begun, changes={"10": {"b": 0.5}})
    assert run_folder.check(ahead, resume=True).notes == ["data.changes.10.b was None, is 0.5"]
    behind = changed(begun, changes={"9": {"b": 0.5}})
    with pytest.raises(ConfigError, match=r"cannot continue with another config: data.changes.9.b"):
        run_folder.check(behind, resume=True)


def test_another_length_is_said_to_change_the_learning_rates(begun):
    longer = dataclasses.replace(begun, train=dataclasses.replace(begun.train, steps=999))
    first, second = run_folder.check(longer, resume=True).notes[:2]
    assert first.startswith("train.steps was ") and first.endswith(", is 999")
    assert second.startswith("the learning rates now follow another length")


def test_what_only_says_how_batches_are_made_may_change(begun, monkeypatch):
    monkeypatch.setattr(run_folder, "checkpoint_steps", lambda _: [5, 10])
    said = run_folder.check(changed(begun, workers=2, image_cache=0), resume=True).notes
    assert said == ["data.workers was 0, is 2", "data.image_cache was 256, is 0"]
    with pytest.raises(ConfigError, match=r"data.window was 32, is 64"):
        run_folder.check(changed(begun, window=64), resume=True)


def test_auto_resumes_what_has_begun_and_starts_what_has_not(begun, tmp_path, monkeypatch):
    fresh = dataclasses.replace(begun, out=str(tmp_path / "other"))
    assert run_folder.check(fresh, resume="auto") == (False, None, [])
    monkeypatch.setattr(run_folder, "checkpoint_steps", lambda _: [5, 10])
    assert run_folder.check(begun, resume="auto") == (True, 10, [])
    with pytest.raises(ConfigError, match=r"data.window was 32, is 64"):
        run_folder.check(changed(begun, window=64), resume="auto")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        run_folder.check(fresh, resume="auto")


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("content", [{}, {"order": 1}, {"order": order.VERSION + 1}, None])
def test_a_run_under_another_order_is_refused(begun, tmp_path, monkeypatch, resume, content):
    """Its next steps would train other records; before the first checkpoint nothing is lost."""
    path = tmp_path / "run" / "data.json"
    path.unlink() if content is None else write_json(path, content)
    assert run_folder.check(begun, resume).step is None
    monkeypatch.setattr(run_folder, "checkpoint_steps", lambda _: [5, 10])
    with pytest.raises(ConfigError, match=r"run: its batches were planned in order \d, this ver"):
        run_folder.check(begun, resume)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_run_stopped_before_its_first_checkpoint_begins_again(begun, resume):
    found = run_folder.check(begun, resume)
    assert (found.resume, found.step) == (True, None)
    assert found.notes == ["the run was stopped before its first checkpoint; it begins again"]


def test_a_run_killed_at_its_first_file_begins_afresh(begun, tmp_path):
    out = tmp_path / "other"
    out.mkdir()
    (out / ".config.yaml.partial").write_text("mod")
    fresh = dataclasses.replace(begun, out=str(out))
    assert run_folder.check(fresh, resume="auto") == (False, None, [])


def test_the_machine_is_noted(tmp_path):
    run_folder.write_machine(tmp_path, sharding.make_mesh((2, 2, 1), jax.devices()[:4]))
    machine = read_json(tmp_path / run_folder.MACHINE)
    assert machine["devices"] == "4 x cpu"
    assert machine["processes"] == 1
    assert machine["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1, "context": 1}
    assert machine["versions"]["jax"] == jax.__version__
