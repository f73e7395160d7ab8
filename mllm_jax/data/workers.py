"""Runs worker processes that make numbered items ahead of time, in order; names one that died.

Item n is made by worker n % count, which takes its next number as soon as its last item was sent,
so each holds one item and waits for the reader: memory is bounded by the number of workers.
"""

import atexit
import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, RunError

POLL = 0.2  # seconds between two checks whether the run must end
T = TypeVar("T")


def _nothing() -> None:
    pass


class WorkerMessages(NamedTuple):
    """Text fragments for the error message about a dead worker."""

    name: str  # of each process, before its number
    doing: Callable[[int], str]  # item -> "made batch 7"
    fewer: str  # what to do when memory is short
    then: str  # what to do afterwards


class Workers(Generic[T]):
    """Processes that call `make(number)`."""

    def __init__(
        self,
        make: Callable[[int], T],
        count: int,
        messages: WorkerMessages,
        begin: Callable[[], None] = _nothing,
    ):
        """Starts `count` processes.

        Args:
            make: sent to each process once; must survive that.
            count: of the processes.
            words: for the error message about a dead worker.
            begin: called by each process before its first item.

        Raises:
            RunError: a process ended while it started.
        """
        # sent when all have started: as an argument it would keep each from starting before the
        # last has imported everything and read it
        sent = ForkingPickler.dumps(make)
        # spawned, not forked: this process runs the threads of an accelerator
        context = multiprocessing.get_context("spawn")
        self._messages = messages
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        atexit.register(self.close)  # they ignore what multiprocessing would end them by
        for number in range(count):
            ours, theirs = context.Pipe()
            name = f"{messages.name}-{number}"
            process = context.Process(target=_serve, args=(theirs, begin), name=name, daemon=True)
            with interrupts.blocked():  # the run decides what Ctrl-C ends, also while they start
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send_bytes(sent)
            except (BrokenPipeError, ConnectionResetError):
                self.close()
                self._ended(process, "started")

    def iterate(self, numbers: range, ahead: int) -> Iterator[T]:
        """Items of `numbers` in order, up to `ahead` of them asked for before they are taken.

        Raises:
            RunError: a worker ended, with its name, its signal and the item it was making.
            ConfigError: raised by `make`, when its item's turn comes.
        """
        asked = iter(numbers)
        try:
            for _, number in zip(range(max(1, ahead)), asked, strict=False):
                self._ask(number)
            for number in numbers:
                item = self._receive(number)
                for following in asked:
                    self._ask(following)
                    break
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        atexit.unregister(self.close)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _pipe(self, number: int) -> Connection:
        return self._pipes[number % len(self._pipes)]

    def _ask(self, number: int) -> None:
        # of one that has ended, the first item that does not come is named
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe(number).send(number)

    def _receive(self, number: int) -> T:
        pipe, process = self._pipe(number), self._processes[number % len(self._pipes)]
        while not (ready := wait([pipe, process.sentinel], POLL)):
            interrupts.check()
        if pipe not in ready:
            self._ended(process, self._messages.doing(number))
        try:
            good, value = pipe.recv()
        except (EOFError, ConnectionResetError):  # it ended in the middle of an item
            self._ended(process, self._messages.doing(number))
        if not good:
            raise value
        return value

    def _ended(self, process: Any, doing: str) -> NoReturn:
        process.join()
        code, fewer = process.exitcode, self._messages.fewer
        how, why = f"ended with code {code}", "its error is printed above"
        if code < 0:
            how, why = f"was killed by {signal.Signals(-code).name}", f"out of memory? {fewer}"
        raise RunError(
            f"{process.name} (process {process.pid}) {how} while it {doing} ({why}); "
            f"{self._messages.then}"
        )


def _serve(pipe: Connection, begin: Callable[[], None]) -> None:
    try:
        make = pipe.recv()
    except (EOFError, ConnectionResetError):
        return
    begin()
    while True:
        try:
            number = pipe.recv()
        except (EOFError, ConnectionResetError):  # the run is gone
            return
        try:
            answer = (True, make(number))
        except (ConfigError, RunError, OSError) as error:  # raised again in the run
            answer = (False, error)
        except MemoryError as error:  # numpy's own cannot travel
            answer = (False, MemoryError(str(error)))
        except RecursionError as error:
            answer = (False, RecursionError(str(error)))
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
