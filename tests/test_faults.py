"""Fifty runs killed at random moments: each comes back, and no bit of its numbers is another.

A seed decides the moment: in the start, at a step, or while a checkpoint is being written. A run is
killed up to three times before it may end.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mllm_jax import config_file
from mllm_jax.checkpoints.params import stored_leaves
from tests import forks, tiny

SEEDS = int(os.environ.get("MLLM_JAX_FAULT_SEEDS", "50"))
STEPS, SAVE_EVERY = 40, 4
PATIENCE = 240  # seconds for what takes five


class Site(NamedTuple):
    """Where runs are made, and what an undisturbed one gave."""

    folder: Path
    config: Path
    environment: dict[str, str]
    lines: list[dict[str, Any]]
    params: dict[str, bytes]

    def start(self, out: Path) -> Any:
        words = ["train", "--config", str(self.config), "--out", str(out), "--resume", "auto"]
        return forks.start(words, out.with_suffix(".log"), self.environment)


def bits(run: Path) -> dict[str, bytes]:
    leaves = stored_leaves(run / "checkpoints" / str(STEPS) / "params")
    return {path: leaf.read().tobytes() for path, leaf in leaves.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("faults")
    tiny.make_data(folder / "data")
    train = {"steps": STEPS, "save_every": SAVE_EVERY}
    config_file.dump(
        tiny.config(folder / "data", folder / "none", train=train), folder / "stage.yaml"
    )
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        # the step is compiled once for all of them
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    site = Site(folder, folder / "stage.yaml", environment, [], {})
    straight = folder / "straight"
    ended(site.start(straight), straight)
    return site._replace(lines=tiny.numbers(straight), params=bits(straight))


def ended(process: Any, out: Path) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0, out.with_suffix(".log").read_text()


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


def until(come: Callable[[], bool], process: Any) -> bool:
    """Whether the moment came before the run ended."""
    for _ in clock():
        if come():
            return True
        if not process.is_alive():
            return False
    raise AssertionError("neither the moment nor the end came")


def clock() -> Iterator[None]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(0.001)


# -------------------------------------------------------------------------------------------- tests


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_run_comes_back_to_the_bit(site, tmp_path, seed):
    chance, out = random.Random(seed), tmp_path / "run"
    for _ in range(chance.randrange(1, 4)):
        come = MOMENTS[seed % len(MOMENTS)](out, chance)
        process = site.start(out)
        if until(come, process):
            time.sleep(chance.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL), out.with_suffix(".log").read_text()
    ended(site.start(out), out)
    assert tiny.numbers(out) == site.lines
    assert bits(out) == site.params
