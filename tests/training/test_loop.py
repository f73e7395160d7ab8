"""The whole way of the data on a tiny stage: resumed = straight, 8 devices = 1, refusals."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError, Preempted
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.distributed.watchdog import heartbeat
from mllm_jax.models import mllm
from mllm_jax.training.loop import train
from mllm_jax.training.metrics import Diverged
from mllm_jax.training.writer import MetricsWriter
from tests.support import tiny


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    return one_device(tiny.config(data, tmp_path_factory.mktemp("straight") / "run"))


def one_device(config: Config, resume: bool = False) -> Path:
    return train(config, resume, jax.devices()[:1])


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([6], id="N/2"),
        pytest.param([4, 8], id="N/3 twice", marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_straight_to_the_bit(data, straight, tmp_path, stops):
    """Losses, norms, mixture shares and record ids of every step, then the parameters."""
    config = tiny.config(data, tmp_path / "run")
    for i, stop in enumerate([*stops, None]):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop))
        run = one_device(part, resume=i > 0)
    assert tiny.numbers(run) == tiny.numbers(straight)
    assert [row["step"] for row in tiny.numbers(run)] == list(range(12))
    jax.tree.map(np.testing.assert_array_equal, final_params(run), final_params(straight))


def test_a_killed_run_goes_on_from_its_last_checkpoint(data, straight, tmp_path):
    """Steps done after the last save are done again; metrics.jsonl has each once."""
    config = tiny.config(
        data, tmp_path / "run", train={"steps": 12, "save_every": 4, "stop_at": 10}
    )
    run = one_device(config)
    shutil.rmtree(run / "checkpoints" / "10")  # as if the machine had died before the save at 10
    whole = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=None))
    one_device(whole, resume=True)
    assert tiny.numbers(run) == tiny.numbers(straight)


@pytest.mark.slow
def test_the_guard_knows_of_every_wait_of_a_step(data, tmp_path, monkeypatch):
    """Fetching what all processes agree on may last for ever, as the data and the step may."""
    seen: list[str | None] = []

    class Slowest:
        def __float__(self) -> float:
            seen.append(heartbeat.waited_for())
            return 0.0

    monkeypatch.setattr("mllm_jax.distributed.processes.slowest", lambda _: Slowest())
    one_device(tiny.config(data, tmp_path / "run", train={"steps": 3, "save_every": 4}))
    assert seen == ["the others at the next step"] * 2  # the last step waits for no next one
    assert heartbeat.waited_for() is None


def final_params(run: Path):
    source = open_model(run)
    return source.load(
        mllm.abstract_params(mllm.build(source.config.model, tiny.config(run, run).compute))
    )


@pytest.mark.slow
def test_an_epoch_is_every_record_once_and_resumes_where_it_stopped(data, tmp_path):
    """The last batch has rows, and microbatches, without a record: all numbers stay finite."""
    tree = tiny.tree(data, tmp_path)
    streams = {
        name: {"epochs": times} | {k: v for k, v in of.items() if k != "weight"}
        for (name, of), times in zip(tree["data"]["streams"].items(), (1.0, 1.0, 2.0), strict=True)
    }
    fields = {"streams": streams, "length": 288}
    epochs = {"steps": None, "epochs": 1.0, "save_every": 1, "microbatches": 8}
    whole = one_device(tiny.config(data, tmp_path / "whole", data=fields, train=epochs))
    lines = tiny.numbers(whole)
    end = json.loads((whole / "data.json").read_text())["end"]
    assert end["examples"] == 24 + 24 + 2 * 12 and end["empty_rows"] > 0
    assert len(lines) == end["steps"] and all(row["finite"] for row in lines)
    totals = [lines[-1][f"total_records/stream/{name}"] for name in ("eu", "en", "text")]
    assert totals == [24, 24, 24]
    begun = tiny.config(data, tmp_path / "run", data=fields, train=epochs | {"stop_at": 1})
    run = one_device(begun)
    again = tiny.config(data, tmp_path / "run", data=fields, train=epochs)
    assert tiny.numbers(one_device(again, resume=True)) == lines
    jax.tree.map(np.testing.assert_array_equal, final_params(run), final_params(whole))


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_equal_one(data, straight, tmp_path, mesh):
    run = train(tiny.config(data, tmp_path / "run", mesh=mesh))
    one, eight = tiny.numbers(straight), tiny.numbers(run)
    for name in ("loss", "grad_norm", "loss/language/eu", "loss/stream/text"):
        first = [(row.get(name), other.get(name)) for row, other in zip(one, eight, strict=True)]
        assert all((a is None) == (b is None) for a, b in first)
        pairs = np.array([pair for pair in first if pair[0] is not None])
        np.testing.assert_allclose(pairs[:, 1], pairs[:, 0], rtol=1e-4)
    assert [row["records_crc32"] for row in one] == [row["records_crc32"] for row in eight]


def test_microbatches_equal_one_batch(data, straight, tmp_path):
    """Rows hold different numbers of trained tokens: a mean of means would differ plainly."""
    run = one_device(
        tiny.config(data, tmp_path / "run", train={"steps": 12, "save_every": 4, "microbatches": 4})
    )
    for name in ("loss", "grad_norm"):
        values = [[row[name] for row in tiny.numbers(r)] for r in (straight, run)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(data, straight, tmp_path):
    """With steps in metrics.jsonl and half of the model's files."""
    config = tiny.config(data, tmp_path / "run", train={"steps": 12, "stop_at": 2})
    run = one_device(config)
    shutil.rmtree(run / "checkpoints" / "2")
    (run / "model" / "tokenizer.json").unlink()
    one_device(tiny.config(data, run), resume=True)
    assert tiny.numbers(run) == tiny.numbers(straight)
    assert (run / "model" / "tokenizer.json").is_file()


def test_sigterm_finishes_the_step_saves_and_says_where(data, straight, tmp_path, monkeypatch):
    """At the third step; the handler that was there before is put back."""
    config, count = tiny.config(data, tmp_path / "run"), MetricsWriter.write

    def write(self, line):
        count(self, line)
        if line["step"] == 1:  # while step 2 is on its way
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MetricsWriter, "write", write)
    with pytest.raises(Preempted, match=r"SIGTERM: step 3 is saved in .*; continue with --resume"):
        one_device(config)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    run = Path(config.out)
    assert tiny.numbers(run) == tiny.numbers(straight)[:3]
    one_device(config, resume=True)
    assert tiny.numbers(run) == tiny.numbers(straight)


def test_the_loss_falls_and_the_run_folder_is_complete(straight):
    rows = tiny.numbers(straight)
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert loading.load(Config, straight / "config.yaml").train.steps == 12
    names = {path.name for path in (straight / "model").iterdir()}
    assert names >= {
        "config.yaml",
        "tokenizer.json",
        "chat_template.jinja",
        "processor_config.json",
        "generation_config.json",
    }
    assert {p.name for p in (straight / "checkpoints").iterdir() if p.name.isdigit()} == {"8", "12"}
    shares = open_model(straight).config.shares
    assert set(shares) == {"eu", "en", "text"} and sum(shares.values()) == pytest.approx(1)


def test_frozen_parts_do_not_move_and_are_not_copied(data, straight, tmp_path):
    """Align: a fresh connector of another kind; only it moves, the rest keeps every bit."""
    parts = {
        "connector": {"match": "connector/.*"},
        "rest": {"match": "(vision|language)/.*", "train": False},
    }
    config = tiny.config(
        data,
        tmp_path / "align",
        model=tiny.tree(data, tmp_path)["model"] | {"connector": {"kind": "linear"}},
        init={"weights": str(straight), "fresh": "connector/.*", "tokenizer": None},
        optimizer={"parts": parts},
        train={"steps": 4},
    )
    run = one_device(config)
    before, after = final_params(straight), final_params(run)
    assert {path for path in after if "linear_2" in path} == set()
    for path in after:
        if not path.startswith("connector/"):
            np.testing.assert_array_equal(after[path], before[path])
    moments = run / "checkpoints" / "4" / "moments"
    stored = (moments / "_METADATA").read_text()
    assert "connector" in stored and "language" not in stored


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_checkpoint(data, tmp_path):
    wild = {"learning_rate": 1.0, "warmup_ratio": 0.0, "clip_norm": None}
    config = tiny.config(data, tmp_path / "run", optimizer=wild, train={"save_every": 1})
    object.__setattr__(config.optimizer, "learning_rate", 1e38)  # more than a config may say
    with pytest.raises(
        Diverged, match=r"step \d+: .* not finite; last good checkpoint: .*checkpoints/\d+"
    ):
        one_device(config)


def test_refusals_write_nothing(data, straight, tmp_path):
    out = tmp_path / "run"
    wider = tiny.tree(data, out)["model"]
    wider["language"] = wider["language"] | {"mlp": 64}
    cases = [
        ({"init": {"tokenizer": None, "weights": str(straight)}, "model": wider},
         r"another architecture: language\.mlp is 48, the config says 64"),
        ({"init": {"tokenizer": None, "weights": str(tmp_path / "none")}}, "none: no such folder"),
        ({"init": {"tokenizer": str(tmp_path / "none")}}, "none: no such folder"),
        ({"data": {"image_slots": 1}}, "image_slots"),
        ({"optimizer": {"parts": {"a": {"match": "language/.*"}}}},
         r"optimizer\.parts: no part claims connector/linear_1/bias"),
        ({"mesh": {"data": 3}}, "data x fsdp x tensor x context = 3, but there are 8 devices"),
    ]  # fmt: skip
    for sections, message in cases:
        with pytest.raises(ConfigError, match=message):
            train(
                tiny.config(data, out, **sections),
                devices=None if "mesh" in sections else jax.devices()[:1],
            )
        assert not out.exists(), sections
    with pytest.raises(ConfigError, match="exists and is not empty"):
        train(tiny.config(data, straight))
    with pytest.raises(ConfigError, match=r"seed was 3, is 4; put it back"):
        train(dataclasses.replace(tiny.config(data, straight), seed=4), resume=True)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(tiny.config(data, out), resume=True)
