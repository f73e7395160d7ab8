"""Signals as a flag: noted anywhere, raised at safe points, and an end that nothing can hold up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_jax.common import interrupts
from mllm_jax.common.errors import INTERRUPTED, PREEMPTED, Interrupted, Preempted

ROOT = Path(__file__).resolve().parents[2]


def test_a_signal_is_raised_at_the_next_safe_point_only():
    with interrupts.watched():
        interrupts.check()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.came(signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.check()
    interrupts.check()  # the next command begins without it


def test_sigterm_waits_where_a_run_saves_first():
    with interrupts.watched():
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            interrupts.check()
            assert interrupts.came(signal.SIGTERM)
        with (
            interrupts.advising("continue with --resume"),
            pytest.raises(Preempted, match="SIGTERM: nothing is lost; continue with --resume"),
        ):
            interrupts.check()


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.watched():
        pass
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


# what the main thread does: C code that no exception of a handler reaches
ENDLESS = """
import sys, time, zlib
from functools import partial
from pathlib import Path
from mllm_jax.common import interrupts
interrupts.GRACE = float(sys.argv[1])
with interrupts.watched(), interrupts.undoing(partial(Path(sys.argv[2]).unlink)):
    Path(sys.argv[2]).touch()
    print("ready", flush=True)
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
"""


@pytest.mark.parametrize(
    ("sent", "grace", "code", "line"),
    [
        ([signal.SIGTERM], 0.3, PREEMPTED, "mllm-jax: error: SIGTERM: nothing is lost; start the "),
        ([signal.SIGINT], 0.3, INTERRUPTED, "mllm-jax: interrupted\n"),
        ([signal.SIGINT, signal.SIGINT], 60, INTERRUPTED, "mllm-jax: interrupted\n"),
    ],
)
def test_a_main_thread_that_does_not_listen_is_ended(tmp_path, sent, grace, code, line):
    file = tmp_path / "half-written"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(grace), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in sent:
        process.send_signal(number)
        time.sleep(0.2)  # two of one kind become one
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.count("\n")) == (code, 1)
    assert err.startswith(line)
    assert not file.exists()
