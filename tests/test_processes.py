"""Several real processes on this machine, and on two hosts: the same losses, and every end named.

All runs have four devices, so they sum in one order: whatever was lost, stopped or spread over
other processes in between, metrics.jsonl equals that of an undisturbed run to the bit.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax import config_file
from mllm_jax.data.loader import Loader
from mllm_jax.data.tokenizer import load_tokenizer
from mllm_jax.errors import LOST, PREEMPTED
from mllm_jax.train import train
from tests import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
STEPS, LOST_AFTER = 10, 10


def environment(devices: int) -> dict[str, str]:
    """Of a process that pretends to have so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    here = {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return os.environ | here | {"XLA_FLAGS": f"{flags} {quick}"}


@pytest.fixture(scope="module")
def stage(data, tmp_path_factory) -> Path:
    """The stage's file; its data is indexed, as several processes want it."""
    folder = tmp_path_factory.mktemp("stage")
    config = tiny.config(
        data,
        folder / "run",
        mesh={"data": -1},
        train={"steps": STEPS, "save_every": 5, "log_every": 1},
    )
    Loader(config.data, config.model, load_tokenizer(config.init.tokenizer or ""), config.seed)
    config_file.dump(config, folder / "stage.yaml")
    return folder / "stage.yaml"


class Local:
    """launch/local.sh on its way."""

    def __init__(self, stage: Path, out: Path, processes: int, *words: str, restarts: int = 0):
        self.out = out
        command = ["bash", ROOT / "launch" / "local.sh", "-n", str(processes), "-r", str(restarts)]
        command += ["train", "--config", stage, "--out", out, "--lost-after", str(LOST_AFTER)]
        self._file = open(out.parent / f"{out.name}.log", "a+")  # noqa: SIM115 (closed in `end`)
        self._shell = subprocess.Popen(
            [*command, *words],
            env=environment(4 // processes),
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def reach(self, step: int) -> None:
        """Waits until metrics.jsonl has so many lines."""
        path, end = self.out / "metrics.jsonl", time.monotonic() + 120
        while not path.is_file() or path.read_text().count("\n") < step:
            assert self._shell.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.01)

    def pid(self, process: int, guard: bool) -> int:
        """Of one process's guard or trainer."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            mine = str(self.out).encode() in words and b"--process" in words
            if mine and words[words.index(b"--process") + 1] == str(process).encode():
                if (b"-m" in words) != guard:
                    return int(folder.name)
        raise AssertionError(f"no such process:\n{self.said()}")

    def end(self) -> int:
        """The exit code."""
        code = self._shell.wait(timeout=180)
        self._file.close()
        return code

    def said(self) -> str:
        """All that was printed."""
        return (self.out.parent / f"{self.out.name}.log").read_text()


def run(stage: Path, out: Path, processes: int, *words: str) -> str:
    local = Local(stage, out, processes, *words)
    assert local.end() == 0, local.said()
    return local.said()


@pytest.fixture(scope="module")
def straight(stage, tmp_path_factory) -> list[dict]:
    """One process of four devices, undisturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(stage, out, 1)
    assert [line["step"] for line in tiny.numbers(out)] == list(range(STEPS))
    return tiny.numbers(out)


def test_saved_on_four_resumed_on_two_and_one(stage, straight, tmp_path):
    four = tmp_path / "four"
    said = run(stage, four, 4, "--train.stop_at", "5")
    assert tiny.numbers(four) == straight[:5]
    printed = [line for line in said.splitlines() if "step 3/10" in line]
    assert len(printed) == 1 and printed[0].startswith("[0] ")  # process 0 alone
    for processes in (2, 1):
        out = tmp_path / f"on{processes}"
        shutil.copytree(four, out)
        run(stage, out, processes, "--resume", "--train.stop_at", str(STEPS))
        assert tiny.numbers(out) == straight
    # on one device sums are taken in another order; the data is the same
    config = config_file.load(tiny.Config, stage, ["--out", str(four)])
    train(config, resume=True, devices=jax.devices()[:1])
    assert [x["records_crc32"] for x in tiny.numbers(four)] == [
        x["records_crc32"] for x in straight
    ]
    losses = [[line["loss"] for line in each] for each in (tiny.numbers(four), straight)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_sigterm_to_one_process_stops_all_at_one_step(stage, straight, tmp_path):
    local = Local(stage, tmp_path / "run", 2)
    local.reach(2)
    os.kill(local.pid(1, guard=True), signal.SIGTERM)
    assert local.end() == PREEMPTED, local.said()
    before = tiny.numbers(local.out)
    assert 2 <= len(before) < STEPS and before == straight[: len(before)]
    assert (local.out / "checkpoints" / str(len(before)) / "params").is_dir()
    assert local.said().count(f"error: SIGTERM: step {len(before)} is saved in ") == 1
    run(stage, local.out, 1, "--resume", "auto")
    assert tiny.numbers(local.out) == straight


def test_a_killed_process_is_named_and_the_run_starts_again(stage, straight, tmp_path):
    """Killed after the save at step 5, or before it was whole: both must come back."""
    local = Local(stage, tmp_path / "run", 2, restarts=1)
    local.reach(6)
    os.kill(local.pid(1, guard=False), signal.SIGKILL)
    assert local.end() == 0, local.said()
    said = local.said()
    for number in (0, 1):
        assert f"[{number}] mllm-jax: error: process 1 of 2 (host " in said, said
    assert "was killed by SIGKILL; all processes end" in said
    assert f"ended with code {LOST}; restart 1 of 1" in said
    assert tiny.numbers(local.out) == straight


def test_a_stopped_process_is_named_in_time(stage, straight, tmp_path):
    local = Local(stage, tmp_path / "run", 2)
    local.reach(3)
    os.kill(local.pid(1, guard=False), signal.SIGSTOP)
    start = time.monotonic()
    assert local.end() == LOST
    assert time.monotonic() - start < 2 * LOST_AFTER + 5
    assert "process 1 of 2 (host " in local.said() and "has stalled" in local.said()
    assert tiny.numbers(local.out) == straight[: len(tiny.numbers(local.out))]


def test_two_hosts_and_one_cut_off(stage, straight, shared, tmp_path):
    """Addresses and names of their own; then the cable is pulled in the middle of the steps."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, for network namespaces")
    out = tmp_path / "run"
    words = f"train --config {stage} --out {out} --lost-after {LOST_AFTER} --train.steps {STEPS}"
    flags = '--coordinator "$COORDINATOR" --processes "$HOST_COUNT" --process "$HOST_INDEX"'
    hosts = subprocess.Popen(
        ["bash", shared / "two_hosts.sh", "bash", "-c", f"exec mllm-jax {words} {flags}"],
        env=environment(2),
        cwd=tmp_path,
    )
    path, end = out / "metrics.jsonl", time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < 3:
        logs = [f.read_text() for f in tmp_path.glob("host*.log")]
        assert hosts.poll() is None and time.monotonic() < end, logs
        time.sleep(0.01)
    subprocess.run(["ip", "-n", "mllm1", "link", "set", "eth", "down"], check=True)
    start = time.monotonic()
    hosts.wait(timeout=120)
    assert time.monotonic() - start < 2 * LOST_AFTER + 5
    first, other = ((tmp_path / f"host{i}.log").read_text() for i in (0, 1))
    assert "process 1 of 2 (host mllm1) was not heard of for 10 s" in first, first
    assert "process 0 of 2 (host 10.77.0.1) was not heard of for 10 s" in other, other
    assert tiny.numbers(out) == straight[: len(tiny.numbers(out))]


def test_bad_input_is_said_once(stage, tmp_path):
    local = Local(stage, tmp_path / "run", 2, "--seed", "many")
    assert local.end() == 2
    # JAX may say of its own that the other has ended
    errors = [line for line in local.said().splitlines() if "mllm-jax: error" in line]
    assert errors == ["[0] mllm-jax: error: seed: expected a whole number, got 'many'"]
    assert not local.out.exists()
