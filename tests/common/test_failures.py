"""What the operating system refuses: the reason, also inside of what libraries make of it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_jax.common import failures
from mllm_jax.common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EIO, "x"), errno.EIO),
        (ValueError("Error writing [OS error 28: ENOSPC No space left on device]"), errno.ENOSPC),
        (RuntimeError("[Errno 122] Disk quota exceeded: 'a'"), errno.EDQUOT),
        (RuntimeError("save failed: No space left on device"), errno.ENOSPC),
        (RuntimeError("a bug"), None),
    ],
)
def test_the_error_inside(error, number):
    assert failures.system_error(error) == number
    outer = RuntimeError("wrapped")
    outer.__cause__ = error
    assert failures.system_error(outer) == number


def test_a_wrapped_error_names_path_and_reason():
    with pytest.raises(OSError, match="out") as error, failures.unwrapped("out", ValueError):
        raise ValueError("RESOURCE_EXHAUSTED [OS error 28: ENOSPC No space left on device]")
    assert failures.described(error.value) == failures.Failure(1, "out: the disk is full")
    with pytest.raises(ValueError, match="shapes"), failures.unwrapped("out", ValueError):
        raise ValueError("shapes differ")  # a bug stays one


def test_the_first_touch_of_an_output_is_bad_input():
    message = "o: cannot be written: the name is too long"
    with pytest.raises(ConfigError, match=message), failures.writable("o"):
        raise OSError(errno.ENAMETOOLONG, "File name too long", "o")


def test_device_memory_is_said_and_a_bug_is_not():
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nmore")
    failure = failures.described(error)
    assert failure is not None and "out of device memory" in (failure.line or "")
    assert failures.described(RuntimeError("a bug")) is None
    assert failures.described(ValueError("a bug")) is None


def shell(command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT), "M": f"{sys.executable} -m mllm_jax"}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_closed_pipe_is_quiet():
    run = shell("set -o pipefail; $M train --help | true; echo ${PIPESTATUS[0]}")
    assert (run.stderr, run.stdout) in (("", "141\n"), ("", "0\n"))  # `true` may read it yet


def test_a_full_disk_behind_standard_output_is_one_line():
    run = shell("$M train --help > /dev/full")
    assert run.returncode == 1
    assert run.stderr == "mllm-jax: error: standard output: the disk is full\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_traceback(closed, tmp_path):
    assert shell(f"$M train --config none.yaml {closed}").returncode == 2
