"""Looks for other settings: the nearest that fit, or, for a stage that fits, a quicker one.

Candidates are chosen by formula; the few that are best are compiled where that is possible.
"""

from typing import Any, NamedTuple

from mllm_jax.preflight import settings
from mllm_jax.preflight.plans import Plans
from mllm_jax.preflight.progress import progress, say
from mllm_jax.preflight.roofline import Bound, Work
from mllm_jax.preflight.settings import Setting
from mllm_jax.preflight.work import bound, sent, work

SHOWN = 3  # settings that fit
TRIED = 4  # compilations to find them
TRIED_QUICKER = 2  # compilations to find a quicker one
NEARLY = 0.97  # of the memory: what an estimate may fill to be worth a compilation
CLEARLY = 0.99  # of the bound on time: above, a lower one alone is not worth a change
OFF = (
    0.1  # what the formula may be off by: after one that did not fit, how much less the next needs
)


class Tried(NamedTuple):
    """A setting: what it takes, by formula or compiled, and how quick it may be."""

    setting: Setting
    total: int  # bytes of memory of one device
    sent: int  # bytes over one device's links
    host: int  # bytes in the host's memory
    work: Work
    bound: Bound | None  # None: no rates are published for the chip

    @property
    def seconds(self) -> float:
        """The bound; 0 without rates."""
        return self.bound.seconds if self.bound is not None else 0.0

    @property
    def order(self) -> tuple[float, float, int, int]:
        """The quickest first: by the bound, then the time if nothing overlapped, then memory.

        Without rates by FLOPs, then by bytes sent and the fewest turns.
        """
        turns = self.setting.microbatches
        if self.bound is None:
            return self.work.done, float(self.sent), turns, self.total
        times = self.bound.compute + self.bound.memory + self.bound.links
        return self.bound.seconds, times, turns, self.total

    def is_quicker(self, than: "Tried") -> bool:
        """Whether the bound is clearly lower, or as low while less is sent (links, host).

        Without rates: no more FLOPs, and less is sent.
        """
        if self.seconds < CLEARLY * than.seconds:
            return True
        no_slower = self.seconds <= than.seconds and self.work.done <= than.work.done
        return no_slower and self.moved < than.moved

    @property
    def moved(self) -> int:
        """Bytes that leave one device in a step, and come back from the host."""
        return self.sent + 2 * self.host * self.setting.microbatches


def nearest(plans: Plans) -> list[dict[str, Any]]:
    """At most SHOWN settings that fit, no two of the same kinds of change, nearest first."""
    configured = plans.configured
    kinds: set[tuple[str, ...]] = set()
    fitting: list[dict[str, Any]] = []
    tried = 0
    candidates = settings.near(configured, plans.hardware.count)
    say(f"it does not fit; looking through {len(candidates)} settings near it")
    for setting in candidates:
        if len(fitting) == SHOWN or tried == TRIED:
            break
        if setting.changed(configured) in kinds or not plans.possible(setting):
            continue
        if plans.state_bytes(setting.split) > plans.limit:
            continue
        if plans.memory(setting).total > NEARLY * plans.limit:
            continue
        tried += plans.compiles
        one = _tried(plans, setting)
        if one is not None:
            kinds.add(setting.changed(configured))
            fitting.append(_described(plans, one))
    return fitting


def quicker(plans: Plans) -> dict[str, Any] | None:
    """The quickest setting that fits and is quicker than the stage's own, which fits; or None.

    By formula and published rates: nothing is timed.
    """
    limit, configured = NEARLY * plans.limit, _estimated(plans, plans.configured)
    fitting = [
        one for one in by_formula(plans) if one.total <= limit and one.is_quicker(configured)
    ]
    tried, now = 0, _built(plans, plans.configured)
    assert now is not None, "the stage's own setting fits"
    for estimated in fitting:
        if tried == TRIED_QUICKER:
            break
        if estimated.total > limit:
            continue
        tried += 1
        one = _tried(plans, estimated.setting)
        if one is None:
            limit = (1 - OFF) * estimated.total
        elif one.is_quicker(now):
            return _described(plans, one)
    return None


def by_formula(plans: Plans) -> list[Tried]:
    """The stage's rows and mesh under any remat and microbatches, whether they fit or not.

    The quickest first; the stage's own setting is among them.
    """
    configured = plans.configured
    others = settings.quicker(configured)
    estimates = [_estimated(plans, setting) for setting in [configured, *others]]
    return sorted(estimates, key=lambda one: one.order)


def _estimated(plans: Plans, setting: Setting) -> Tried:
    """A setting by formula."""
    formula = plans.memory(setting)
    count = sum(kind["bytes"] for kind in sent(plans, setting).values())
    asked = work(plans, setting, count)
    return Tried(setting, formula.total, count, formula.host, asked, bound(plans, asked))


def _tried(plans: Plans, setting: Setting) -> Tried | None:
    """`_built`; says so if that takes long."""
    if not plans.compiles:
        return _built(plans, setting)
    with progress(f"compiling with {setting.flags(plans.configured)}"):
        return _built(plans, setting)


def _built(plans: Plans, setting: Setting) -> Tried | None:
    """A setting that fits by formula, compiled where that is possible; None if it does not fit."""
    if not plans.compiles:
        return _estimated(plans, setting)
    program = plans.compiled(setting)
    if program.refused or program.total > plans.limit:
        return None
    count = sum(kind["bytes"] for kind in program.sent.values())
    asked = work(plans, setting, count)
    return Tried(setting, program.total, count, program.host, asked, bound(plans, asked))


def _described(plans: Plans, one: Tried) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "flags": one.setting.flags(plans.configured),
        "total": one.total,
        "margin": plans.limit - one.total,
        "sent": one.sent,
        "host": one.host,
        "bound": None if one.bound is None else one.bound._asdict(),
        "compiled": plans.compiles,
    }
