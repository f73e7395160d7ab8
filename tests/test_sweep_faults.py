"""Sweeps killed at ten random moments, and done by two processes at once: the same bytes."""

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.json_file import read_json
from mllm_jax.training.metrics import Line
from tests.support import commands, tiny
from tests.support.sweeps import Files, written

pytestmark = pytest.mark.slow

KILLS, STEPS = 10, 6
NEW_FILES = 120  # between two kills, at most; all of the sweep are several hundred
PATIENCE = 600  # seconds for what takes twenty


class Site(Files):
    """A sweep of four runs, and how its processes are started."""

    def __init__(self, root: Path, data: Path, compiled: Path):
        super().__init__(root, data, STEPS)
        self._compiled, self._started = compiled, 0

    def start(self) -> Any:
        self._started += 1
        environment = {
            **commands.ONE_DEVICE,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self._compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        words = ["sweep", str(self.write()), "--out", str(self.out)]
        return commands.start(words, self.root / f"{self._started}.log", environment)

    @property
    def logs(self) -> list[str]:
        return [(self.root / f"{n + 1}.log").read_text() for n in range(self._started)]

    def end(self, process: Any) -> None:
        process.join(PATIENCE)
        assert process.exitcode == 0, self.logs[-1][-2000:]

    def lines(self) -> dict[str, list[Line]]:
        """Stage -> what its steps measured."""
        return {run.name: tiny.numbers(run) for run in self.out.glob("stages/*") if run.is_dir()}


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("whole")
    site = Site(folder, data, tmp_path_factory.mktemp("compiled"))
    site.end(site.start())
    assert len(site.lines()) == 5
    return site


@pytest.fixture
def site(undisturbed: Site, data: Path, tmp_path: Path) -> Site:
    return Site(tmp_path, data, undisturbed._compiled)


def begun(log: str) -> list[str]:
    """Stages that a process trained, or continued, and rows that it evaluated."""
    trained = re.findall(r"^stage (\S+) -> ", log, re.MULTILINE)
    return trained + re.findall(r"^written to .*/evaluation/(\S+)$", log, re.MULTILINE)


def finished(site: Site) -> set[str]:
    stages = [path for path in site.out.glob("stages/*.json") if read_json(path)["stages"]]
    return {path.stem for path in [*stages, *site.out.glob("runs/*.json")]}


def files(site: Site) -> int:
    """How far a sweep is: the files that it has made, those being written included."""
    return sum(len(names) for _, _, names in os.walk(site.out))


def test_killed_at_ten_random_moments(undisturbed: Site, site: Site):
    chance = random.Random(15)
    for _ in range(KILLS):
        before, target = finished(site), files(site) + chance.randrange(NEW_FILES)
        process = site.start()
        while process.is_alive() and files(site) < target:
            time.sleep(0.02)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
        assert not before & set(begun(site.logs[-1])), "what is finished is not done again"
    before = finished(site)
    site.end(site.start())
    assert not before & set(begun(site.logs[-1]))
    assert written(site.out) == written(undisturbed.out)
    assert site.lines() == undisturbed.lines()


def test_two_processes_at_once(undisturbed: Site, site: Site):
    first = site.start()
    time.sleep(0.2)
    second = site.start()
    site.end(first)
    site.end(second)
    one, other = map(begun, site.logs)
    assert sorted(one + other) == sorted(begun(undisturbed.logs[0])), "each once, by one of them"
    assert one and other, "both worked"
    assert written(site.out) == written(undisturbed.out)
    assert site.lines() == undisturbed.lines()
    assert not list((site.out / "claims").iterdir())


def test_one_of_two_is_killed(undisturbed: Site, site: Site):
    """What it had taken is free, and the other one finishes all of it."""
    first, second = site.start(), site.start()
    for _ in range(PATIENCE * 100):
        if list(site.out.glob("stages/instruct-*/checkpoints/2")):
            break
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    site.end(second)
    assert written(site.out) == written(undisturbed.out)
    assert site.lines() == undisturbed.lines()
