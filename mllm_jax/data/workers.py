"""Worker processes that make numbered items ahead of time, in order; a killed one is named.

Item n is made by worker n % count, which takes its next number as soon as its last item was sent,
so each holds one item and waits for the reader: memory is bounded by the number of workers.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, NoReturn, TypeVar

from mllm_jax.errors import ConfigError, RunError

T = TypeVar("T")


def _nothing() -> None:
    pass


class Workers(Generic[T]):
    """Processes that call `make(number)`."""

    def __init__(
        self,
        make: Callable[[int], T],
        count: int,
        name: str,
        told: Callable[[int], str],
        begin: Callable[[], None] = _nothing,
    ):
        """Starts `count` processes.

        Args:
            make: sent to each process once; must survive that.
            count: of the processes.
            name: of each, before its number.
            told: what a killed worker was making and what to do, for the message.
            begin: called by each process before its first item.

        Raises:
            RunError: a process ended while it started.
        """
        # spawned, not forked: this process runs the threads of an accelerator
        context = multiprocessing.get_context("spawn")
        self._told = told
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, begin), name=f"{name}-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        # as an argument it would keep each process from starting before the last has read it
        sent = ForkingPickler.dumps(make)
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send_bytes(sent)
            except (BrokenPipeError, ConnectionResetError):
                self.close()
                self._ended(process, "while it started")

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
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _pipe(self, number: int) -> Connection:
        return self._pipes[number % len(self._pipes)]

    def _ask(self, number: int) -> None:
        try:
            self._pipe(number).send(number)
        except (BrokenPipeError, ConnectionResetError):  # it ended while it waited
            self._ended(self._processes[number % len(self._pipes)], self._told(number))

    def _receive(self, number: int) -> T:
        pipe, process = self._pipe(number), self._processes[number % len(self._pipes)]
        if pipe not in wait([pipe, process.sentinel]):
            self._ended(process, self._told(number))
        try:
            good, value = pipe.recv()
        except (EOFError, ConnectionResetError):  # it ended in the middle of an item
            self._ended(process, self._told(number))
        if not good:
            raise value
        return value

    def _ended(self, process: Any, told: str) -> NoReturn:
        process.join()
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        raise RunError(f"{process.name} (process {process.pid}) {how} {told}")


def _serve(pipe: Connection, begin: Callable[[], None]) -> None:
    # the run decides what Ctrl-C ends, and after SIGTERM it finishes its step and saves
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
        except (ConfigError, RunError) as error:  # raised again in the run
            answer = (False, error)
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
