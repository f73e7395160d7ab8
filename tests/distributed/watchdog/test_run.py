"""Real watchdogs over trainers that do nothing: who is lost is named, and all end in time."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_jax.common.errors import LOST, PREEMPTED

HERE = Path(__file__).resolve().parent
LOST_AFTER = 2.0
STUCK_AFTER = 2.0


def free_port() -> int:
    """A port of which the next one is free too, and which no other connection is given meanwhile.

    The system gives away ports from 32768 on (net.ipv4.ip_local_port_range).
    """
    while True:
        port = random.randrange(20000, 32000, 2)
        with contextlib.ExitStack() as servers, contextlib.suppress(OSError):
            for one in (port, port + 1):
                servers.enter_context(socket.create_server(("", one)))
            return port


class Run:
    """Processes of one run; `acts` says what each trainer does."""

    def __init__(
        self,
        folder: Path,
        acts: list[str],
        counts: list[int],
        numbers: list[int],
        stuck_after: float,
    ):
        self.folder, self.port = folder, free_port()
        self.watchdogs = [
            subprocess.Popen(
                [sys.executable, HERE / "watched.py", f"127.0.0.1:{self.port}"]
                + [str(x) for x in (count, number, LOST_AFTER, stuck_after, folder, act)],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(HERE.parents[2])},
            )
            for act, count, number in zip(acts, counts, numbers, strict=True)
        ]

    def pids(self, process: int) -> tuple[int, int]:
        """(trainer, watchdog) once all trainers run."""
        files = [self.folder / str(i) for i in range(len(self.watchdogs))]
        end = time.monotonic() + 60
        while not all(file.is_file() and file.read_text() for file in files):
            assert time.monotonic() < end, "the trainers did not start"
            time.sleep(0.05)
        trainer, watchdog = files[process].read_text().split()
        return int(trainer), int(watchdog)

    def ends(self) -> tuple[list[int], list[str], float]:
        """(exit codes, what each said, seconds until the last ended)."""
        start = time.monotonic()
        said = [watchdog.communicate(timeout=60)[1] for watchdog in self.watchdogs]
        return [watchdog.returncode for watchdog in self.watchdogs], said, time.monotonic() - start

    def trainers_are_gone(self) -> bool:
        """Whether no trainer outlives its watchdog."""
        pids = [
            int((self.folder / str(i)).read_text().split()[0]) for i in range(len(self.watchdogs))
        ]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if not any(Path(f"/proc/{pid}").exists() for pid in pids):
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def run(tmp_path):
    """Starts a run; what is left of it is killed at the end."""
    made: list[Run] = []

    def start(*acts: str, counts=None, numbers=None, stuck_after=STUCK_AFTER) -> Run:
        n = len(acts)
        counts, numbers = counts or [n] * n, numbers or list(range(n))
        made.append(Run(tmp_path, list(acts), counts, numbers, stuck_after))
        return made[-1]

    yield start
    for watchdog in (watchdog for it in made for watchdog in it.watchdogs):
        if watchdog.poll() is None:
            watchdog.send_signal(signal.SIGCONT)
            watchdog.kill()
        watchdog.communicate()


def test_all_done(run):
    codes, said, _ = run("done", "done", "done").ends()
    assert (codes, said) == ([0, 0, 0], ["", "", ""])


@pytest.mark.parametrize("slow", [0, 1])
def test_one_that_has_finished_may_take_long_to_end(run, slow):
    """The interpreter ends without heartbeats: whoever has said that it is done has not stalled."""
    acts = ["done", "done"]
    acts[slow] = f"done, and ends in {2 * LOST_AFTER}"
    codes, said, seconds = run(*acts, stuck_after=60).ends()
    assert (codes, said) == ([0, 0], ["", ""]) and seconds > 2 * LOST_AFTER


def test_one_that_has_finished_and_never_ends_is_named(run):
    codes, said, seconds = run("done", "done, and ends in 60", stuck_after=4).ends()
    assert codes == [LOST, LOST]
    text = f"process 1 of 2 (host {socket.gethostname()}) has ended its work, but still runs: no h"
    assert 4 < seconds < 15 and all(text in words for words in said), said


def test_an_error_is_told_though_its_process_takes_long_to_end(run):
    codes, said, _ = run("sleep", f"refuse, and ends in {2 * LOST_AFTER}", stuck_after=60).ends()
    assert codes == [2, 2] and said[1] == ""
    assert "process 1 of 2 (host " in said[0] and said[0].endswith("a whole number\n")


def test_an_error_is_told_though_its_process_never_ends(run):
    codes, said, seconds = run("sleep", "refuse, and ends in 60", stuck_after=4).ends()
    assert codes == [LOST, LOST] and 4 < seconds < 15
    assert all("but still runs: no heartbeat for " in words for words in said), said
    assert all(" s; it said: " in words and "a whole number; all" in words for words in said), said


def test_a_failure_does_not_wait_for_one_that_has_finished(run):
    codes, said, seconds = run("done, and ends in 60", "exit1", stuck_after=60).ends()
    assert codes == [1, 1] and seconds < 10
    assert all("process 1 of 2 " in words and "with code 1" in words for words in said), said


def test_one_that_waits_for_what_a_finished_one_will_not_do(run):
    codes, said, _ = run("wait for the end of step 6", "done, and waits for the others").ends()
    assert codes == [LOST] * 2
    assert all("all processes are alive, but have waited" in words for words in said), said
    assert all(") for the others, at the end; all" in words for words in said), said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_trainer_is_named_by_all(run, victim):
    it = run("sleep", "sleep", "sleep")
    os.kill(it.pids(victim)[0], signal.SIGKILL)
    codes, said, seconds = it.ends()
    assert codes == [LOST] * 3 and seconds < 4
    host = socket.gethostname()
    text = f"mllm-jax: error: process {victim} of 3 (host {host}) was killed by SIGKILL; all proc"
    assert all(text in words and words.count("\n") == 1 for words in said), said
    assert it.trainers_are_gone()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_guard_takes_its_trainer_along_and_is_named(run, victim):
    it = run("sleep", "sleep", "sleep")
    os.kill(it.pids(victim)[1], signal.SIGKILL)
    codes, said, seconds = it.ends()
    assert codes == [-signal.SIGKILL if i == victim else LOST for i in range(3)] and seconds < 5
    others = [words for i, words in enumerate(said) if i != victim]
    assert all(f"process {victim} of 3 " in words and "is gone" in words for words in others), said
    assert it.trainers_are_gone()


@pytest.mark.parametrize(("victim", "which"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_stopped_process_is_named_in_time(run, victim, which):
    """SIGSTOP of a trainer (0) or its watchdog (1): connections stay open, nothing is said."""
    it = run("sleep", "sleep")
    pid = it.pids(victim)[which]
    start = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    alive = [i for i in range(2) if which == 0 or i != victim]
    for i in alive:
        words = it.watchdogs[i].communicate(timeout=30)[1]
        assert it.watchdogs[i].returncode == LOST
        what = "has stalled" if which == 0 else "was not heard of"
        assert f"process {victim} of 2 " in words and what in words, words
    assert LOST_AFTER * 0.9 < time.monotonic() - start < LOST_AFTER + 4
    if which:
        os.kill(pid, signal.SIGCONT)
        it.ends()
    assert it.trainers_are_gone()


def test_bad_input_is_said_once(run):
    codes, said, _ = run("refuse", "refuse", "refuse").ends()
    assert codes == [2, 2, 2]
    assert said == ["mllm-jax: error: seed='x': expected a whole number\n", "", ""]


def test_bad_input_of_one_ends_all_and_names_it(run):
    codes, said, _ = run("sleep", "refuse").ends()
    assert codes == [2, 2]
    assert "process 1 of 2 (host " in said[0] and said[0].endswith("a whole number\n")
    assert said[1] == ""


def test_one_that_says_why_it_ends_and_one_that_falls_with_it(run):
    """JAX aborts when process 0 has ended: that is no reason."""
    codes, said, _ = run("refuse", "abort").ends()
    assert codes == [2, 2]
    assert said[0] == "mllm-jax: error: seed='x': expected a whole number\n"
    assert "mllm-jax: error" not in said[1]


@pytest.mark.parametrize(
    ("act", "code", "how"),
    [("exit1", 1, "code 1"), ("raise", 1, "code 1"), ("abort", 1, "SIGABRT")],
)
def test_a_trainer_that_fails_by_itself_is_named(run, act, code, how):
    codes, said, _ = run("sleep", act).ends()
    assert codes == [code, code]
    assert ("ValueError: a fault of ours" in said[1]) == (act == "raise")
    assert all("process 1 of 2 " in words and how in words for words in said), said


def test_processes_that_all_wait_end_and_say_for_what(run):
    codes, said, seconds = run(*["wait for the end of step 6"] * 2, "wait for data").ends()
    assert codes == [LOST] * 3 and 2 < seconds < 10
    host = socket.gethostname()
    others = f"process 0 (host {host}), process 1 (host {host}) for the end of step 6; all"
    for words in said:
        first, seconds, rest = re.split(r"have waited for (\d+) s: ", words)
        assert "all processes are alive, but" in first and 2 <= int(seconds) < 8
        assert rest.startswith(f"process 2 (host {host}) for data; {others}"), words
        assert "tests/distributed/watchdog/trainer.py" in words  # where each of them stood
        assert words.count("mllm-jax: error") == 1


def test_who_does_not_wait_gives_the_others_time(run):
    """One compiles or saves: that may take longer than any step."""
    it = run("wait for the end of step 6", "sleep")
    it.pids(0)
    time.sleep(4)
    assert [watchdog.poll() for watchdog in it.watchdogs] == [None, None]


def test_a_trainer_that_falls_with_a_stopped_one_is_not_blamed(run):
    """A collective fails when its partner stalls: the partner is the reason."""
    it = run("sleep", "sleep")
    trainer, (stopped, _) = it.pids(0)[0], it.pids(1)
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(LOST_AFTER / 2)
    os.kill(trainer, signal.SIGABRT)
    codes, said, _ = it.ends()
    assert codes == [LOST, LOST]
    assert all("process 1 of 2 " in words and "process 0" not in words for words in said), said


def test_sigterm_reaches_the_trainers_and_is_said_once(run):
    it = run("sleep", "sleep")
    it.pids(0)
    for watchdog in it.watchdogs:
        watchdog.terminate()
    codes, said, _ = it.ends()
    assert codes == [PREEMPTED, PREEMPTED]
    assert said == ["mllm-jax: error: SIGTERM: step 7 is saved\n", ""]


@pytest.mark.parametrize("first", [0, 1])
def test_sigterm_and_one_that_falls_with_the_first_to_end(run, first):
    """JAX aborts a process when that of number 0 has ended, also if both were about to."""
    it = run(*["sleep" if i == first else "abort at SIGTERM" for i in range(2)])
    it.pids(0)
    for watchdog in it.watchdogs:
        watchdog.terminate()
    codes, said, seconds = it.ends()
    assert codes == [PREEMPTED, PREEMPTED] and seconds < LOST_AFTER
    text = f"mllm-jax: error: process {first} of 2 (host {socket.gethostname()}): "
    assert [line for line in said[0].splitlines() if "mllm-jax" in line] == [
        f"{text}SIGTERM: step 7 is saved"
    ]


def test_one_that_does_not_stop_with_the_others_is_ended(run):
    """SIGTERM before the processes could agree: who was told ends, the rest follow."""
    it = run("sleep", "sleep")
    it.pids(0)
    it.watchdogs[1].terminate()
    codes, _, seconds = it.ends()
    assert codes == [PREEMPTED, PREEMPTED] and seconds < LOST_AFTER + 4


def test_a_coordinator_that_is_not_there(run):
    codes, said, seconds = run("sleep", counts=[2], numbers=[1]).ends()
    assert codes == [1] and 1 < seconds < 15
    assert "process 1 of 2 " in said[0] and "no answer from process 0 at 127.0.0.1:" in said[0]
    assert "within 2 s" in said[0] and said[0].count("\n") == 1


def test_a_process_that_does_not_come(run):
    codes, said, _ = run("sleep", "sleep", counts=[3, 3]).ends()
    assert codes == [1, 1]
    assert said == ["mllm-jax: error: process 2 of 3 did not join within 2 s\n", ""]


def test_two_that_claim_one_number(run):
    codes, said, _ = run("sleep", "sleep", "sleep", numbers=[0, 1, 1]).ends()
    assert codes == [2, 2, 2]
    assert "process 1 on host" in said[0] and "has that number too" in said[0]


def test_processes_that_count_differently(run):
    codes, said, _ = run("sleep", "sleep", counts=[2, 3]).ends()
    assert codes == [2, 2]
    assert "counts 3 processes, process 0 counts 2" in said[0]


def test_a_stranger_at_the_port_is_ignored(run):
    it = run("done", counts=[2])
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            stranger = socket.create_connection(("127.0.0.1", it.port + 1))
            break
        assert time.monotonic() < end
    with stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        codes, said, _ = it.ends()
    assert codes == [1] and "process 1 of 2 did not join" in said[0]
