"""Real processes side by side (CPU, gloo): what several save one restores, and the other way."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.store import checkpoint_steps

ROOT = Path(__file__).resolve().parents[2]


def together(verb: str, folder: Path, count: int) -> list[str]:
    """Runs `processes.py` in `count` processes; what each printed. Fails if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("processes.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), verb, str(folder), str(i), str(count), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(count)
    ]
    try:
        said = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [f"{out}{errors}" for out, errors in said]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_restores_every_bit(tmp_path: Path, before: int, after: int):
    together("save", tmp_path, before)
    folder = tmp_path / "checkpoints"
    assert checkpoint_steps(folder) == [4, 8]
    files = manifest.read(folder / "8")["files"]
    writers = {name.split("/")[1] for name in files if "/ocdbt.process_" in name}
    assert writers == {f"ocdbt.process_{i}" for i in range(before)}
    assert all("restored 8" in words for words in together("restore", tmp_path, after))


def test_all_processes_take_the_same_checkpoint_when_the_last_is_damaged(tmp_path: Path):
    together("save", tmp_path, 2)
    path = max((tmp_path / "checkpoints" / "8").rglob("d/*"), key=lambda x: x.stat().st_size)
    os.truncate(path, path.stat().st_size - 1)
    said = together("restore", tmp_path, 2)
    assert all("restored 4" in words for words in said)
    assert [f"{path}: has" in words for words in said] == [True, False]  # process 0 alone says it
