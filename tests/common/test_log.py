"""Timed lines of a run's log, and durations as people read them."""

import io

import jax
import pytest

from mllm_jax.common.log import Log, duration


def test_a_line_says_how_long_the_run_has_taken():
    ticks, output = iter([100.0, 100.25, 223.96]), io.StringIO()
    log = Log(output, lambda: next(ticks))
    log("devices: 8 x cpu")
    log("step compiled")
    assert output.getvalue() == "[    0.2 s] devices: 8 x cpu\n[  124.0 s] step compiled\n"


def test_only_process_0_writes(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    output = io.StringIO()
    Log(output)("devices: 8 x cpu")
    assert output.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (61.0, "1 min 1 s"),
        (7_325.0, "2 h 2 min"),
        (200_000.0, "2 d 8 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
