"""A trainer without JAX, for tests of the watchdog: says that it runs, then does as it is told.

trainer.py FOLDER LOST_AFTER PROCESS ACT      ACT: sleep, done, refuse, raise, exit1, abort,
                                               or "wait for SOMETHING"
"""

import atexit
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from mllm_jax.common import interrupts
from mllm_jax.common.errors import PREEMPTED
from mllm_jax.distributed.watchdog.heartbeat import INSIDE, Heartbeat, waits_for


def main() -> None:
    folder, lost_after, process, act = Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:5]
    heartbeat = Heartbeat(int(os.environ[INSIDE]), lost_after)
    (folder / process).write_text(f"{os.getpid()} {os.getppid()}")
    if act == "refuse":
        heartbeat.end(2, "seed='x': expected a whole number")
    if act.startswith("exit"):
        sys.exit(int(act.removeprefix("exit")))
    if act == "abort":
        os.abort()
    if act == "raise":
        atexit.register(time.sleep, 60)  # as JAX waits for the others at the end
        raise ValueError("a fault of ours")
    endless = act.startswith("wait for ")
    with waits_for(act.removeprefix("wait for ")) if endless else contextlib.nullcontext():
        while act != "done" and not interrupts.came(signal.SIGTERM):
            time.sleep(0.05)
    if interrupts.came(signal.SIGTERM):
        heartbeat.end(PREEMPTED, "SIGTERM: step 7 is saved")


with interrupts.watched(), interrupts.held():
    main()
