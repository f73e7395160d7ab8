"""Changes one line of the package at a time and tells whether the tests beside it notice.

    python tests/support/mutants.py                     all of mutants.yaml
    python tests/support/mutants.py --only packing -n 2 those whose file or line holds a word

mutants.yaml lists the changes:

    - file: mllm_jax/data/mixture/packing.py
      was: "key=lambda i: (-sizes[i], i)"    # stands exactly once in the file
      now: "key=lambda i: (-sizes[i], -i)"
      tests: tests/data/mixture/test_packing.py  # one or more, with options of pytest

A change that no test notices is a hole in the tests, unless it is equivalent (`equivalent: why`).
Every change is tried in a copy of the checkout, so work may go on beside it. The tests are run
there without a change first: those that fail anyway notice nothing.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_suffix(".yaml")
COPIED = ("mllm_jax", "tests", "configs", "docs", "launch")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
FAILED = (1, 2)  # exit codes of pytest: a test, or the import of the changed file
SECONDS = 600.0  # for the tests of one change; a change that makes them hang is noticed, too
SHARE = 0.9  # of the changes that are not equivalent, noticed


class Mutant(NamedTuple):
    """One changed line."""

    file: str
    was: str
    now: str
    tests: str
    equivalent: str | None = None  # why no test can notice it

    def applied(self, text: str) -> str:
        """The file's text with the change."""
        assert text.count(self.was) == 1, f"{self.file}: {text.count(self.was)} times {self.was!r}"
        return text.replace(self.was, self.now)


class Outcome(NamedTuple):
    """What the tests said of one change."""

    mutant: Mutant
    noticed: bool
    seconds: float


def load(path: Path = LIST) -> list[Mutant]:
    """The changes of a list."""
    return [Mutant(**fields) for fields in yaml.safe_load(path.read_text(encoding="utf-8"))]


def try_all(mutants: Sequence[Mutant], processes: int) -> Iterator[Outcome]:
    """Tries changes side by side, each process in a copy of its own; in their order."""
    copies: Queue[Path] = Queue()

    def one(mutant: Mutant) -> Outcome:
        copy = copies.get()
        try:
            start = time.perf_counter()
            with _changed(copy / mutant.file, mutant):
                noticed = not passes(copy, mutant.tests)
            return Outcome(mutant, noticed, time.perf_counter() - start)
        finally:
            copies.put(copy)

    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as home,
        ThreadPoolExecutor(processes) as pool,
    ):
        for number in range(processes):
            copies.put(_copy(Path(home) / f"{number}" / "checkout"))
        yield from pool.map(one, mutants)


def passes(copy: Path, tests: str) -> bool:
    """Whether tests of a copy pass.

    Raises:
        RuntimeError: there are no such tests.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = inherited | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PYTEST, *shlex.split(tests)]
    try:
        ended = subprocess.run(
            command, cwd=copy, env=environment, timeout=SECONDS, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode not in (0, *FAILED):
        raise RuntimeError(f"{tests}: pytest ended with {ended.returncode}: {ended.stderr[-500:]}")
    return ended.returncode == 0


@contextmanager
def _changed(path: Path, mutant: Mutant) -> Iterator[None]:
    text = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(text), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def _copy(copy: Path) -> Path:
    copy.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, copy / file.name)
    return copy


def failing(tests: Sequence[str], processes: int) -> list[str]:
    """Those of `tests` that fail without any change."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        copy = _copy(Path(home) / "checkout")
        with ThreadPoolExecutor(processes) as pool:
            results = pool.map(lambda words: passes(copy, words), tests)
            return [words for words, good in zip(tests, results, strict=True) if not good]


def main(words: Sequence[str] | None = None) -> int:
    """Prints a line a change and the share noticed; 1 if it is too small."""
    parser = argparse.ArgumentParser(description="changes a line at a time and runs its tests")
    parser.add_argument("--only", default="", metavar="TEXT", help="part of a file's name or line")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="processes")
    options = parser.parse_args(words)
    mutants = [m for m in load() if options.only in f"{m.file} {m.was}" and m.equivalent is None]
    if broken := failing(sorted({m.tests for m in mutants}), options.n):
        print("fail without a change:", *broken, sep="\n  ")
        return 1
    noticed = 0
    for number, (mutant, is_noticed, seconds) in enumerate(try_all(mutants, options.n), 1):
        noticed += is_noticed
        word = "noticed" if is_noticed else "NOT NOTICED"
        change = f"{mutant.was.strip()} -> {mutant.now.strip()}"
        print(
            f"{number:>3}/{len(mutants)} {word:<11} {seconds:4.0f} s  {mutant.file}: {change}",
            flush=True,
        )
    print(f"{noticed} of {len(mutants)} noticed")
    return 0 if noticed >= SHARE * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
