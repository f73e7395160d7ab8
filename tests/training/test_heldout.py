"""Held-out loss in the loop: the same tokens as `evaluate`, resumed = straight, what it decides."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.stage import Config
from mllm_jax.evaluation.runner import evaluate
from mllm_jax.training.heldout import HeldOutLoss, Lowest, due, heldout_format, is_complete
from mllm_jax.training.loop import train
from tests.support import tiny

RECORDS = 7  # of each language: the last batch has empty rows


@pytest.fixture(scope="module")
def heldout(data, tmp_path_factory) -> Path:
    """A file of records that are no training file's: the two languages one after the other."""
    path = tmp_path_factory.mktemp("heldout") / "heldout.json"
    records = []
    for language in ("en", "eu"):
        for record in json.loads((data / f"{language}.json").read_text())[:9]:
            records.append(record | {"id": f"{language}-{record['id']}"})
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def config(
    folder: Path, heldout: Path, out: Path, train: dict | None = None, /, **evaluate
) -> Config:
    images = {"images": str(folder / "images")} if "streams" not in evaluate else {}
    file = {"data": str(heldout)} if "streams" not in evaluate else {}
    section = file | images | {"every": 2, "records": RECORDS} | evaluate
    return tiny.config(
        folder, out, train={"steps": 6, "save_every": 2, "evaluate": section} | (train or {})
    )


def one_device(config: Config, resume: bool = False) -> Path:
    return train(config, resume, jax.devices()[:1])


def measured(run: Path) -> dict[int, dict[str, float]]:
    """Updates done -> what was measured then."""
    return {
        line["step"] + 1: {key: value for key, value in line.items() if key.startswith("heldout")}
        for line in tiny.numbers(run)
        if "heldout/loss" in line
    }


@pytest.fixture(scope="module")
def straight(data, heldout, tmp_path_factory) -> Path:
    return one_device(config(data, heldout, tmp_path_factory.mktemp("straight") / "run"))


def test_the_loss_is_that_of_evaluate_on_the_same_records(data, heldout, straight, tmp_path):
    """Summed in other batches: float32 sums of 200 numbers differ by less than 1e-5 of them."""
    few = tmp_path / "few.json"
    records = json.loads(heldout.read_text())
    few.write_text(json.dumps(records[:RECORDS] + records[9 : 9 + RECORDS]), encoding="utf-8")
    scores = evaluate(straight, few, tmp_path / "scores", data / "images", max_new_tokens=1)
    last, languages = measured(straight)[6], scores["languages"]
    for language in ("eu", "en"):
        assert last[f"heldout/loss/language/{language}"] == pytest.approx(
            languages[language]["loss"], rel=1e-5
        )
    tokens = {name: languages[name]["answer_tokens"] for name in ("eu", "en")}
    total = sum(languages[name]["loss"] * tokens[name] for name in tokens) / sum(tokens.values())
    assert last["heldout/loss"] == pytest.approx(total, rel=1e-5)
    assert last["heldout/tokens"] == sum(tokens.values())


def test_it_is_measured_every_few_steps_and_after_the_last(data, heldout, straight, tmp_path):
    assert list(measured(straight)) == [2, 4, 6]
    losses = [line["heldout/loss"] for line in measured(straight).values()]
    assert losses == sorted(losses, reverse=True)
    events = b"".join(path.read_bytes() for path in straight.glob("tensorboard/events*"))
    assert b"heldout/loss/language/eu" in events
    fifth = config(data, heldout, tmp_path, {"steps": 5}).train.evaluate
    assert fifth is not None
    assert [step for step in range(1, 6) if due(step, fifth.every, 5)] == [2, 4, 5]


def test_measuring_changes_no_step(data, straight, tmp_path):
    run = one_device(tiny.config(data, tmp_path / "run", train={"steps": 6, "save_every": 2}))
    without = [
        {key: value for key, value in line.items() if not key.startswith("heldout")}
        for line in tiny.numbers(straight)
    ]
    assert tiny.numbers(run) == without


def test_resumed_equals_straight_to_the_bit(data, heldout, straight, tmp_path):
    """Stopped between two evaluations: step 3 of a part is not measured, though it is its last."""
    for i, stop in enumerate([3, None]):
        part = config(data, heldout, tmp_path / "run", {"stop_at": stop})
        run = one_device(part, resume=i > 0)
    assert tiny.numbers(run) == tiny.numbers(straight)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_eight_devices_equal_one(data, heldout, straight, tmp_path, mesh):
    raw = config(data, heldout, tmp_path / "run", {"stop_at": 2})
    if "fsdp" in mesh:  # rows of a microbatch
        raw = dataclasses.replace(raw, train=dataclasses.replace(raw.train, microbatches=2))
    run = train(dataclasses.replace(raw, mesh=dataclasses.replace(raw.mesh, **mesh)))
    assert measured(run)[2] == pytest.approx(measured(straight)[2], rel=1e-4)


def test_streams_have_losses_of_their_own(data, heldout, straight, tmp_path):
    own = {"images": str(data / "images"), "format": "llama3"}
    records = json.loads(heldout.read_text())
    for language in ("eu", "en"):
        part = [record for record in records if record["language"] == language]
        (tmp_path / f"{language}.json").write_text(json.dumps(part), encoding="utf-8")
    streams = {name: own | {"path": str(tmp_path / f"{name}.json")} for name in ("eu", "en")}
    run = one_device(config(data, heldout, tmp_path / "run", streams=streams))
    for step, line in measured(run).items():
        for name in ("eu", "en"):
            assert line[f"heldout/loss/stream/{name}"] == line[f"heldout/loss/language/{name}"]
        assert line["heldout/loss"] == pytest.approx(measured(straight)[step]["heldout/loss"])


@pytest.fixture
def script(monkeypatch):
    """Evaluations that give these losses, one after the other, across runs."""

    def of(*losses: float) -> None:
        rest = iter(losses)
        line = lambda *_: {"heldout/loss": next(rest), "heldout/tokens": 1.0, "heldout/seconds": 0}  # noqa: E731
        monkeypatch.setattr(HeldOutLoss, "__call__", line)

    return of


@pytest.mark.slow
def test_the_best_checkpoints_are_kept_by_held_out_loss(data, heldout, tmp_path, script):
    script(5.0, 3.0, 4.0, 6.0)
    section = {"steps": 8, "keep": 1, "keep_best": 2, "keep_best_by": "heldout"}
    run = one_device(config(data, heldout, tmp_path / "run", section))
    assert checkpoint_steps(run / "checkpoints") == [4, 6, 8]


@pytest.mark.slow
def test_a_stage_ends_when_the_loss_no_longer_falls(data, heldout, tmp_path, script, capsys):
    """Complete, and said so; stopped on the way it ends at the same step, resumed at once."""
    script(5.0, 3.0, 3.0, 4.0)
    section, out = {"steps": 20, "save_every": 20}, tmp_path / "run"
    straight = config(data, heldout, out, section, stop_after=2)
    part = dataclasses.replace(straight, train=dataclasses.replace(straight.train, stop_at=5))
    one_device(part)
    assert not is_complete(part, 20)
    assert "stopped at step 5 of 20; continue" in capsys.readouterr().err
    run = one_device(straight, resume=True)
    assert checkpoint_steps(run / "checkpoints")[-1] == 8 and len(tiny.numbers(run)) == 8
    assert is_complete(straight, 20) and is_complete(straight, None)
    assert "has not fallen below 3.0000 (after step 4) in 2" in capsys.readouterr().err
    lines = (run / "metrics.jsonl").read_bytes()
    one_device(straight, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == lines
    assert not is_complete(config(data, heldout, out, section, stop_after=3), 20)


def test_a_stage_is_complete_when_its_last_step_is_saved(data, heldout, tmp_path):
    stage = config(data, heldout, tmp_path)
    assert not is_complete(stage, 20)
    for step in (10, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / manifest.FILE).touch()
    assert is_complete(stage, 20)
    assert not is_complete(stage, 21) and not is_complete(stage, None)


def test_the_lowest_loss_is_of_the_same_records():
    lowest = Lowest(identity="a").after(2, 3.0).after(4, 2.5).after(6, 2.5).after(8, 2.7)
    assert lowest == Lowest(2.5, 4, 2, "a") and lowest.ends(2) and not lowest.ends(3)
    assert not lowest.ends(None)
    extra = json.loads(json.dumps(lowest.extra()))
    assert Lowest.restored(extra, "a") == lowest
    assert Lowest.restored(extra, "b") == Lowest(identity="b") == Lowest.restored({}, "b")
    assert Lowest(identity="b").extra() == {}


@pytest.mark.parametrize(
    ("train_section", "section", "message"),
    [
        ({}, {"every": 0}, r"^train.evaluate.every=0 must lie in"),
        ({}, {"records": 0}, r"^train.evaluate.records=0 must lie in"),
        ({}, {"stop_after": 0}, r"^train.evaluate.stop_after=0 must lie in"),
        ({}, {"data": None, "images": None}, r"^train.evaluate: give data or streams, exactly"),
        ({"keep_best": 1, "keep_best_by": "heldout", "evaluate": None}, {}, "needs held-out"),
        ({"keep_best_by": "heldout"}, {}, r"no effect with train.keep_best=0"),
        (
            {"keep_best": 1, "keep_best_by": "heldout"},
            {"every": 4},
            r"^train.save_every=2 is not a multiple of train.evaluate.every=4",
        ),
    ],
)
def test_bad_values_are_refused(data, heldout, tmp_path, train_section, section, message):
    with pytest.raises(ConfigError, match=message):
        config(data, heldout, tmp_path / "run", train_section, **section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data": "nope.json"}, r"^train.evaluate.data='nope.json': no such file$"),
        ({"images": "nope"}, r"^train.evaluate.images='nope': no such folder$"),
    ],
)
def test_missing_files_are_refused(data, heldout, tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        one_device(config(data, heldout, tmp_path / "run", **section))
    assert not (tmp_path / "run").exists()


def test_records_that_are_trained_on_are_refused(data, heldout, tmp_path):
    """Also a copy of the file under another name."""
    copy = tmp_path / "copy.json"
    copy.write_bytes((data / "eu.json").read_bytes())
    with pytest.raises(ConfigError, match=r"records of heldout are those of data.streams.eu; give"):
        one_device(config(data, copy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_language_that_the_stage_does_not_know_is_refused(data, heldout, tmp_path):
    other = tmp_path / "other.json"
    records = json.loads(heldout.read_text())
    other.write_text(json.dumps([record | {"language": "gl"} for record in records]))
    with pytest.raises(ConfigError, match=r"^train.evaluate: .*language 'gl'"):
        one_device(config(data, other, tmp_path / "run"))


def test_a_file_has_the_format_of_most_that_is_trained():
    streams = {
        "a": StreamConfig("a", format="plain"),
        "b": StreamConfig("b", format="plain_newline"),
        "c": StreamConfig("c", format="vicuna_v1"),
        "d": StreamConfig("d", layout="text"),
    }
    for names, chat_format in {"ab": "plain_newline", "abc": "vicuna_v1", "d": "plain"}.items():
        chosen = {name: streams[name] for name in names}
        shares = {"a": 0.3, "b": 0.5, "c": 0.1, "d": 0.1}
        assert heldout_format(chosen, shares) == chat_format
