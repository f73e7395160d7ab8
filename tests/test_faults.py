"""Fifty runs killed at random moments: each comes back, and no bit of its numbers is another.

A seed decides the moment: in the start, at a step, or while a checkpoint is being written. A run is
killed up to three times before it may end. Every fifth run is one of two processes, of which one is
killed, its guard or its trainer.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import LOST
from mllm_jax.config import loading
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from tests.support import commands, tiny, xla
from tests.support.local import Local

SEEDS = int(os.environ.get("MLLM_JAX_FAULT_SEEDS", "50"))
STEPS, SAVE_EVERY = 40, 4
PATIENCE = 240  # seconds for what takes five


class One:
    """A run of one process."""

    def __init__(self, site: "Site", out: Path):
        words = ["train", "--config", str(site.config), "--out", str(out), "--resume", "auto"]
        environment = site.environment | {"XLA_FLAGS": xla.flags(1)}
        self._process = commands.start(words, out.with_suffix(".log"), environment)

    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self, chance: random.Random) -> None:
        os.kill(self._process.pid, signal.SIGKILL)

    def end(self) -> int:
        self._process.join(PATIENCE)
        return self._process.exitcode

    @staticmethod
    def endings() -> tuple[int, ...]:
        return 0, -signal.SIGKILL


class Two:
    """A run of two processes."""

    def __init__(self, site: "Site", out: Path):
        words = ("--resume", "auto", "--join-within", "20")
        self._local = Local(site.config, out, 2, *words, variables=site.environment)

    def alive(self) -> bool:
        return self._local.alive()

    def kill(self, chance: random.Random) -> None:
        """One of the four that make up the run: a trainer may not have begun yet."""
        which = chance.randrange(2), chance.random() < 0.5
        while (pid := self._local.find(*which)) is None and self.alive():
            time.sleep(0.01)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)

    def end(self) -> int:
        return self._local.end()

    @staticmethod
    def endings() -> tuple[int, ...]:
        # 1: it was killed before it joined the other; 137: when the other had ended well
        return 0, LOST, 1, 128 + signal.SIGKILL


class Site(NamedTuple):
    """Where runs are made, and what an undisturbed one gave."""

    config: Path
    environment: dict[str, str]
    lines: list[dict[str, Any]]
    params: dict[str, bytes]


def bits(run: Path) -> dict[str, bytes]:
    leaves = stored_leaves(run / "checkpoints" / str(STEPS) / "params")
    return {path: leaf.read().tobytes() for path, leaf in leaves.items()}


def made(folder: Path, **sections: Any) -> Site:
    """A stage without its undisturbed run; the step is compiled once for all runs."""
    tiny.make_data(folder / "data")
    train = {"steps": STEPS, "save_every": SAVE_EVERY}
    config = tiny.config(folder / "data", folder / "none", train=train, **sections)
    Loader(config.data, config.model, load_tokenizer(config.init.tokenizer or ""), config.seed)
    loading.dump(config, folder / "stage.yaml")
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Site(folder / "stage.yaml", environment, [], {})


@pytest.fixture(scope="module")
def of_one(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("faults")
    site, out = made(folder), folder / "straight"
    code = One(site, out).end()
    assert code == 0, said(out)
    return site._replace(lines=tiny.numbers(out), params=bits(out))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> Site:
    """Undisturbed in one process, which sums through gloo as two do."""
    folder = tmp_path_factory.mktemp("faults")
    site, out = made(folder, mesh={"data": -1}), folder / "straight"
    code = Local(site.config, out, 1, variables=site.environment).end()
    assert code == 0, said(out)
    return site._replace(lines=tiny.numbers(out), params=bits(out))


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


# ------------------------------------------------------------------------------------------ moments


def at_the_start(out: Path, chance: random.Random) -> Callable[[], bool]:
    until = time.monotonic() + chance.uniform(0, 3)
    return lambda: time.monotonic() > until


def at_a_step(out: Path, chance: random.Random) -> Callable[[], bool]:
    done = steps(out) + chance.randrange(1, STEPS // 2)
    return lambda: steps(out) >= done


def at_a_save(out: Path, chance: random.Random) -> Callable[[], bool]:
    """While a checkpoint lies there under a temporary name."""
    folder, left = out / "checkpoints", chance.randrange(1, 5)
    before: set[str] = set()

    def come() -> bool:
        nonlocal left
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        now = {name for name in names if not name.isdecimal()}
        left -= len(now - before)
        before.update(now)
        return left <= 0

    return come


MOMENTS = (at_the_start, at_a_step, at_a_save, at_a_save)


def steps(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def until(come: Callable[[], bool], run: One | Two) -> bool:
    """Whether the moment came before the run ended."""
    for _ in clock():
        if come():
            return True
        if not run.alive():
            return False
    raise AssertionError("neither the moment nor the end came")


def clock() -> Iterator[None]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(0.001)


# -------------------------------------------------------------------------------------------- tests


@pytest.mark.slow
@pytest.mark.parametrize("seed", [seed for seed in range(SEEDS) if seed % 5 != 4])
def test_a_killed_run_comes_back_to_the_bit(of_one, tmp_path, seed):
    comes_back(One, of_one, tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, SEEDS, 5))
def test_a_run_of_two_of_which_one_is_killed_comes_back_to_the_bit(of_two, tmp_path, seed):
    comes_back(Two, of_two, tmp_path / "run", seed)


def comes_back(kind: type[One] | type[Two], site: Site, out: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 4)):
        come = MOMENTS[seed % len(MOMENTS)](out, chance)
        run = kind(site, out)
        if until(come, run):
            time.sleep(chance.uniform(0, 0.03))
            run.kill(chance)
        assert run.end() in kind.endings(), said(out)
    assert kind(site, out).end() == 0, said(out)
    assert tiny.numbers(out) == site.lines
    assert bits(out) == site.params
