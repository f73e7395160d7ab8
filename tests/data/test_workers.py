"""Worker processes: items in order, few at a time, and a name for whoever dies."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError, RunError
from mllm_jax.data import workers as workers_module
from mllm_jax.data.workers import WorkerMessages, Workers


def square(number: int) -> int:
    return number * number


def sometimes(number: int) -> int:
    if number == 5:
        raise ConfigError("image 5 is broken")
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 9:
        raise ZeroDivisionError("a fault of ours")
    return number


def refused_by_the_machine(number: int) -> int:
    if number == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    if number == 2:
        np.empty(2**50)  # a MemoryError of numpy's own: sent as the plain one
    if number == 3:
        return refused_by_the_machine(number)
    return number


WORDS = WorkerMessages("helper", "made number {}".format, "take fewer", "start again")


def workers(make: Callable[[int], int], count: int) -> Workers[int]:
    return Workers(make, count, WORDS)


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (2, 0), (3, 8)])
def test_items_come_in_order(count, ahead):
    pool = workers(square, count)
    assert list(pool.iterate(range(3, 20), ahead)) == [n * n for n in range(3, 20)]
    assert not any(process.is_alive() for process in pool._processes)


def test_what_make_raises_comes_when_its_turn_comes():
    items = workers(sometimes, 2).iterate(range(3, 20), 4)
    assert [next(items), next(items)] == [3, 4]
    with pytest.raises(ConfigError, match="image 5 is broken"):
        next(items)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (1, OSError, "No space left on device"),
        (2, MemoryError, "Unable to allocate"),
        (3, RecursionError, "maximum recursion depth"),
    ],
)
def test_what_the_machine_refuses_is_raised_as_it_was(number: int, error, words: str):
    with pytest.raises(error, match=words) as raised:
        next(workers(refused_by_the_machine, 1).iterate(range(number, number + 1), 1))
    assert type(raised.value) is error


def test_a_killed_worker_is_named():
    items = workers(sometimes, 2).iterate(range(6, 20), 4)
    assert next(items) == 6
    with pytest.raises(
        RunError,
        match=r"helper-1 \(process \d+\) was killed by SIGKILL while it made number 7 "
        r"\(out of memory\? take fewer\); start again",
    ):
        next(items)


def test_a_fault_of_ours_ends_the_run_too(capfd):
    items = workers(sometimes, 2).iterate(range(9, 20), 2)
    with pytest.raises(
        RunError, match=r"helper-1 .* code 1 while it made number 9 \(its error is pri"
    ):
        next(items)
    assert "ZeroDivisionError: a fault of ours" in capfd.readouterr().err


def test_one_killed_from_outside_while_it_waits():
    pool = workers(square, 2)
    items = pool.iterate(range(100), 2)
    next(items)
    time.sleep(0.2)
    os.kill(pool._processes[1].pid, signal.SIGKILL)
    with pytest.raises(RunError, match="helper-1 "):
        list(items)


def mark() -> None:
    os.environ["MLLM_JAX_TEST_MARK"] = "1"


def marked(number: int) -> bool:
    return "MLLM_JAX_TEST_MARK" in os.environ


def slow(number: int) -> int:
    if number == 6:
        time.sleep(1)
    return sometimes(number)


def test_the_item_that_was_made_is_named_not_one_that_was_asked_for_later():
    """Worker 1 dies over 7 while 6 is waited for; 9 is asked of it afterwards."""
    items = workers(slow, 2).iterate(range(6, 20), 3)
    assert next(items) == 6
    with pytest.raises(RunError, match=r"helper-1 .* while it made number 7"):
        list(items)


LEAVES = """
from mllm_jax.data.workers import WorkerMessages, Workers
from tests.data.test_workers import WORDS, square
if __name__ == "__main__":
    items = Workers(square, 2, WORDS).iterate(range(100), 4)
    next(items)
    raise ValueError("a fault of ours")
"""


def test_a_program_that_fails_ends_its_workers(tmp_path):
    """multiprocessing waits for them at its end, and they ignore the signal that it sends."""
    (tmp_path / "leaves.py").write_text(LEAVES)
    paths = os.pathsep.join([str(Path.cwd()), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "leaves.py"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "a fault of ours" in done.stderr


def test_each_process_begins():
    assert list(Workers(marked, 2, WORDS, mark).iterate(range(3), 2)) == [True] * 3


def leave(*_: Any) -> None:
    os._exit(3)


class Large:
    """More than a pipe holds."""

    def __init__(self):
        self.much = bytes(2**22)

    def __call__(self, number: int) -> int:
        return len(self.much)


def test_much_can_be_sent():
    assert list(workers(Large(), 2).iterate(range(3), 2)) == [2**22] * 3


def test_one_that_ends_while_it_starts(monkeypatch):
    monkeypatch.setattr(workers_module, "_serve", leave)
    with pytest.raises(
        RunError, match=r"helper-0 \(process \d+\) ended with code 3 while it started"
    ):
        workers(Large(), 2)
