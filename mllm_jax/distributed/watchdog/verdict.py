"""Decides whether to abort the run and which process caused it, from each one's last status."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mllm_jax.common.errors import LOST, PREEMPTED
from mllm_jax.distributed.cluster import Timeouts
from mllm_jax.distributed.watchdog.heartbeat import interval


@dataclass
class Member:
    """The last known status of one process; times are those of `time.monotonic`."""

    host: str
    heard: float  # last message of its watchdog
    heartbeat: float  # last one of its training process
    waits: tuple[str, float] | None = None  # what its main thread waits for, and for how long
    code: int | None = None  # exit code of its training process, below 0 by a signal
    error: str | None = None  # error message of its training process
    ending: bool = False  # its training process has finished its work, or told its error
    gone: bool = False  # its watchdog's connection was closed
    since: float = float("inf")  # when it was seen to end


class Verdict(NamedTuple):
    """Why all processes end."""

    message: str
    code: int
    everywhere: bool  # printed by every process, not only by process 0
    stacks: bool = False  # each training process first prints its threads' stacks


def decide(members: Mapping[int, Member], now: float, timeouts: Timeouts) -> Verdict | None:
    """The verdict, if the run must end; lost processes come before those that failed with them.

    A process that ended with a traceback or an abort may have done so because another one died: the
    verdict waits as long as another process may still turn out to be lost. JAX also aborts those
    that end later than process 0, of processes that SIGTERM stops: that is no failure.
    """

    def name(i: int) -> str:
        return f"process {i} of {len(members)} (host {members[i].host})"

    lost_after = timeouts.lost_after
    lost = [f"{name(i)} {how}" for i, m in members.items() if (how := lost_how(m, now, timeouts))]
    if lost:
        return Verdict(f"{'; '.join(lost)}; all processes end", LOST, True)
    stopped = {i: m for i, m in members.items() if m.code == PREEMPTED}
    fine = (None, 0, PREEMPTED, *([-signal.SIGABRT] if stopped else []))
    failed = {i: m for i, m in members.items() if m.code not in fine}
    told = {i: m for i, m in failed.items() if m.error is not None}
    waited = now - min((m.since for m in failed.values()), default=now)
    ended = all(m.code is not None for m in members.values())
    if told and (waited > 1 or ended):
        i = min(told)
        same = len({m.error for m in told.values()}) == 1 and (i == 0 or len(told) > 1)
        error, code = told[i].error or "", told[i].code or 1
        return Verdict(error if same else f"{name(i)}: {error}", code, False)
    at_work = [m for m in members.values() if m.code is None and not m.ending]
    quiet = [m for m in at_work if _quiet(m, now, lost_after)]
    if failed and waited > 1 and not quiet:
        i = min(failed, key=lambda i: failed[i].since)
        code = failed[i].code or 1
        how = f"with code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
        message = f"{name(i)} ended {how}; see what it printed; all processes end"
        return Verdict(message, max(code, 1), True)
    aborted = ended and any(m.code == -signal.SIGABRT for m in members.values())
    if stopped and (aborted or now - max(m.since for m in stopped.values()) > lost_after):
        i = min(stopped)
        return Verdict(f"{name(i)}: {stopped[i].error}", PREEMPTED, False)
    return _stuck(members, timeouts.stuck_after)


def _stuck(members: Mapping[int, Member], stuck_after: float) -> Verdict | None:
    """The verdict if all are alive and all wait; what the fewest wait for is named first."""
    waits = {i: m.waits for i, m in members.items() if m.code is None and m.waits}
    if len(waits) < len(members) or min(s for _, s in waits.values()) <= stuck_after:
        return None
    waiting: dict[str, list[int]] = {}
    for i, (what, _) in waits.items():
        waiting.setdefault(what, []).append(i)
    groups = sorted(waiting.items(), key=lambda group: (len(group[1]), group[0]))
    waits_by_group = "; ".join(f"{_names(members, who)} for {what}" for what, who in groups)
    seconds = f"{min(s for _, s in waits.values()):.0f} s"
    text = f"all processes are alive, but have waited for {seconds}: {waits_by_group}"
    return Verdict(f"{text}; all processes end", LOST, True, stacks=True)


def _names(members: Mapping[int, Member], who: list[int]) -> str:
    if len(who) > 4:
        return f"{len(who)} processes"
    return ", ".join(f"process {i} (host {members[i].host})" for i in who)


def lost_how(m: Member, now: float, timeouts: Timeouts) -> str | None:
    if m.code is not None and m.code < 0 and -m.code != signal.SIGABRT:
        return f"was killed by {signal.Signals(-m.code).name}"
    if m.code is not None:
        return None
    if m.gone:
        return "is gone: its connection was closed"
    lost_after = timeouts.lost_after
    if now - m.heard > lost_after:
        return f"was not heard of for {now - m.heard:.0f} s (host down, stopped or cut off)"
    patience = max(lost_after, timeouts.stuck_after) if m.ending else lost_after
    if now - m.heartbeat > patience and not now - m.heard > 3 * interval(lost_after):
        how = "has ended its work, but still runs" if m.ending else "has stalled"
        said = "" if m.error is None else f"; it said: {m.error}"
        return f"{how}: no heartbeat for {now - m.heartbeat:.0f} s{said}"
    return None


def _quiet(m: Member, now: float, lost_after: float) -> bool:
    return now - min(m.heard, m.heartbeat) > 3 * interval(lost_after)
