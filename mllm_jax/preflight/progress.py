"""Says on stderr what preflight is doing: a compilation takes minutes."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Prints what is running, and every 15 seconds for how long."""
    start, done = time.perf_counter(), threading.Event()

    def tick() -> None:
        while not done.wait(15):
            say(f"{what}: {time.perf_counter() - start:.0f} s")

    say(what)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()


def say(what: str) -> None:
    """Prints one line."""
    print(f"preflight: {what}", file=sys.stderr, flush=True)
