"""A folder with one good input of every kind, and what holds for a command on a bad one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import commands, workplace
from tests.support.once import once
from tests.support.restored import Restored
from tests.support.workplace import Case

SECONDS, MEBIBYTES = 10.0, 1024.0  # what a refusal may cost
LINES, LETTERS = 2, 400  # of what is printed on standard error


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `workplace.make`, made once a session for all test processes."""
    return once(tmp_path_factory, "workplace", workplace.make)


@pytest.fixture(scope="session")
def copy(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    """A copy of it for the tests of this process to change."""
    return Restored(good, tmp_path_factory.mktemp("copy") / "place")


@pytest.fixture
def place(copy: Restored) -> Path:
    """The copy as it was before the tests that changed it."""
    return copy.restore()


@pytest.fixture
def refuse(place: Path, tmp_path: Path) -> Callable[[Case], None]:
    """Runs a case and asserts what holds for every refusal."""

    def check(case: Case) -> None:
        case.change(place)
        before = workplace.listing(place)
        ended = commands.run(case.words, place, tmp_path / "log", SECONDS * patience())
        lines = ended.err.strip().splitlines()
        assert ended.code == case.code, f"{ended.code}, not {case.code}: {ended.err[-1500:]}"
        assert "Traceback" not in ended.err + ended.out
        assert 1 <= len(lines) <= LINES, ended.err[:2000]
        assert max(map(len, lines)) <= LETTERS, ended.err[:2000]
        assert ended.err.isprintable() or ended.err.replace("\n", "").isprintable()
        assert case.names in ended.err, ended.err
        assert ended.seconds <= SECONDS * patience()
        assert ended.peak <= MEBIBYTES
        assert workplace.listing(place) == before, "something was written"

    return check


def patience() -> float:
    """How many times slower than a quiet machine of two cores this one may be."""
    return float(os.environ.get("MLLM_JAX_TEST_PATIENCE", "3"))
