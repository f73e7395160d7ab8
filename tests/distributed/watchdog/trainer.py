"""A trainer without JAX, for tests of the watchdog: says that it runs, then does as it is told.

trainer.py FOLDER LOST_AFTER PROCESS ACT      ACT: sleep, done, refuse, raise, exit1, abort,
                                               "wait for SOMETHING"; "done, and ends in 4"
                                               seconds, "refuse, and ends in 4"; "abort at
                                               SIGTERM"; "done, and waits for the others"
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from mllm_jax.common import interrupts
from mllm_jax.common.errors import PREEMPTED
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, Heartbeat, waits_for


class Slow:
    """Is deleted when the interpreter ends, at which daemon threads no longer run."""

    def __init__(self, seconds: float):
        self.seconds, self.sleep = seconds, time.sleep

    def __del__(self):
        self.sleep(self.seconds)


slow = None


def end_slowly(seconds: float) -> None:
    """Lets `os._exit` take so long without threads, as when the system frees much memory."""
    end, sleep = os._exit, ctypes.PyDLL(None).usleep  # keeps Python's lock

    def end_late(code: int) -> NoReturn:
        sleep(int(seconds * 1e6))
        end(code)

    os._exit = end_late


def main() -> None:
    global slow
    folder, lost_after, process, act = Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:5]
    heartbeat = Heartbeat(int(os.environ[INSIDE]), lost_after)
    (folder / process).write_text(f"{os.getpid()} {os.getppid()}")
    if act.startswith("refuse"):
        end_slowly(float(act.rpartition(" ")[2]) if act != "refuse" else 0)
        heartbeat.end(2, "seed='x': expected a whole number")
    if act.startswith("exit"):
        sys.exit(int(act.removeprefix("exit")))
    if act == "abort":
        os.abort()
    if act == "raise":
        atexit.register(time.sleep, 60)  # as JAX waits for the others at the end
        raise ValueError("a fault of ours")
    if act == "done, and waits for the others":
        atexit.register(time.sleep, 60)  # as JAX waits for them, with heartbeats
        return heartbeat.finish()
    if act.startswith("done"):
        slow = Slow(float(act.rpartition(" ")[2])) if act != "done" else None
        return heartbeat.finish()
    endless = act.startswith("wait for ")
    with waits_for(act.removeprefix("wait for ")) if endless else contextlib.nullcontext():
        while not interrupts.came(signal.SIGTERM):
            time.sleep(0.05)
    if act == "abort at SIGTERM":
        os.abort()
    if interrupts.came(signal.SIGTERM):
        heartbeat.end(PREEMPTED, "SIGTERM: step 7 is saved")


with interrupts.watched(), interrupts.held():
    main()
