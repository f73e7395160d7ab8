"""launch/local.sh on its way: several real processes of one run on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import xla

ROOT = Path(__file__).resolve().parents[2]
LOST_AFTER = 10


def environment(devices: int) -> dict[str, str]:
    """Of a process that pretends to have so many devices."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    here = {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return os.environ | here | {"XLA_FLAGS": xla.flags(devices)}


class Local:
    """A run with four devices in all; its output lies beside its folder."""

    def __init__(
        self,
        file: Path,
        out: Path,
        processes: int,
        *words: str,
        verb: Sequence[str] = ("train", "--config"),
        restarts: int = 0,
        variables: Mapping[str, str] | None = None,
    ):
        self.out = out
        command = ["bash", ROOT / "launch" / "local.sh", "-n", str(processes), "-r", str(restarts)]
        command += [*verb, file, "--out", out, "--lost-after", str(LOST_AFTER)]
        self._file = open(out.parent / f"{out.name}.log", "a+")  # noqa: SIM115 (closed in `end`)
        self._shell = subprocess.Popen(
            [*command, *words],
            env=environment(4 // processes) | dict(variables or {}),
            start_new_session=True,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def reach(self, step: int) -> None:
        """Waits until metrics.jsonl has so many lines."""
        path, end = self.out / "metrics.jsonl", time.monotonic() + 120
        while not path.is_file() or path.read_text().count("\n") < step:
            if not self.alive() or time.monotonic() > end:
                self.kill()
                raise AssertionError(self.said())
            time.sleep(0.01)

    def pid(self, process: int, guard: bool) -> int:
        """Of one process's guard or trainer, which must be there."""
        found = self.find(process, guard)
        assert found is not None, f"no such process:\n{self.said()}"
        return found

    def find(self, process: int, guard: bool) -> int | None:
        """Of one process's guard or trainer, if it is there."""
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
        return None

    def kill(self) -> None:
        """Whatever is left of it, also of what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._shell.poll() is None

    def end(self) -> int:
        """The exit code."""
        try:
            code = self._shell.wait(timeout=240)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._file.close()
        return code

    def said(self) -> str:
        """All that was printed."""
        return (self.out.parent / f"{self.out.name}.log").read_text()
