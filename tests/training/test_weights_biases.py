"""Weights & Biases: offline unless asked, every line, and one-line refusals."""

import dataclasses
import sys
import types

import jax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import WandbConfig
from mllm_jax.training import weights_biases
from mllm_jax.training.loop import train
from tests.support import tiny


class Fake(types.ModuleType):
    """What of wandb is used; remembers what it is told."""

    class Error(Exception):
        """As wandb.Error."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace()  # pyright: ignore
        self.started: list[dict] = []
        self.lines: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **options):
        self.started.append(options)
        if options["mode"] == "online":
            raise self.Error("api_key not configured\n(no-tty)")
        return self

    def log(self, scalars, step):
        self.lines.append((step, scalars))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_every_step_is_logged_offline(data, tmp_path, wandb):
    raw = tiny.config(data, tmp_path / "run", train={"steps": 2, "wandb": {"project": "colours"}})
    run = train(raw, False, jax.devices()[:1])
    (options,) = wandb.started
    assert options["project"] == "colours" and options["mode"] == "offline"
    assert options["dir"] == str(run) and options["group"] == "run"
    assert options["config"]["train"]["steps"] == 2
    losses = [line["loss"] for line in tiny.numbers(run)]
    assert [(step, line["loss"]) for step, line in wandb.lines] == list(enumerate(losses))
    assert wandb.finished == 1


def test_what_it_refuses_is_one_line(tmp_path, wandb):
    message = r"^train.wandb: api_key not configured.*; fix it, or set mode: offline$"
    with pytest.raises(ConfigError, match=message):
        weights_biases.WandbRun(WandbConfig("colours", "online"), tmp_path, {})


def test_a_missing_package_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    raw = tiny.config(data, tmp_path / "run")
    section = dataclasses.replace(raw.train, wandb=WandbConfig("colours"))
    with pytest.raises(ConfigError, match=r"^train.wandb: the package wandb is missing; pip"):
        train(dataclasses.replace(raw, train=section))
    assert not (tmp_path / "run" / "config.yaml").exists()
