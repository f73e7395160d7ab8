"""Which setting is quicker, and whether it is found among those that fit."""

from pathlib import Path
from typing import Any

import pytest

from mllm_jax.preflight import hardware, search, settings, table
from mllm_jax.preflight import report as preflight
from mllm_jax.preflight.plans import Plans, Program
from mllm_jax.preflight.roofline import Bound, Split, Work
from mllm_jax.preflight.search import Tried
from mllm_jax.preflight.settings import Setting
from tests.preflight.test_report import FSDP, WIDE, load, plans

WORDS = (*WIDE, *FSDP, "--data.rows", "64", "--train.microbatches", "4")
SETTING = Setting("full", 64, 4, Split(1, 8, 1))


def tried(
    compute: float, links: float = 1.0, sent: int = 100, host: int = 0, total: int = 50
) -> Tried:
    """Two seconds for memory."""
    seconds = max(compute, 2.0, links)
    limits = Bound(compute, 2.0, links, seconds, "compute", 1 / seconds, 1.0)
    work = Work(1.0, compute, 1.0, sent, 1)
    return Tried(SETTING, total, sent, host, work, limits)


def chip(monkeypatch: pytest.MonkeyPatch, name: str = "h200", **changes: Any) -> None:
    monkeypatch.setitem(hardware.CHIPS, name, hardware.CHIPS[name]._replace(**changes))


def slow(monkeypatch: pytest.MonkeyPatch, name: str = "h200", memory: int = 10**15) -> None:
    """A chip that is bound by arithmetic."""
    chip(monkeypatch, name, flops=1e6, bandwidth=1e15, links=1e15, memory=memory)


def names(setting: dict[str, Any] | None) -> str:
    assert setting is not None
    return setting["flags"]


def test_quicker_is_clearly_less_time_or_less_to_send():
    now = tried(10.0)
    assert tried(9.89, sent=200).is_quicker(now)
    assert not tried(9.91, sent=200).is_quicker(now)  # less than 1 % is not worth more traffic
    assert tried(9.91, sent=99).is_quicker(now)
    assert tried(10.0, sent=99).is_quicker(now)
    assert not tried(10.0).is_quicker(now)
    assert not tried(10.1, sent=1).is_quicker(now)
    # four microbatches go to the host and come back
    assert tried(10.0, sent=107).is_quicker(tried(10.0, host=1))
    assert not tried(10.0, sent=108).is_quicker(tried(10.0, host=1))


def test_without_rates_less_is_sent_for_no_more_flops():
    now = tried(10.0)._replace(bound=None)
    assert tried(10.0, sent=99)._replace(bound=None).is_quicker(now)
    assert not tried(9.0)._replace(bound=None).is_quicker(now)
    assert not tried(10.1, sent=99)._replace(bound=None).is_quicker(now)


def test_the_quickest_first():
    """By the bound, then by the three times one after another, then by memory."""
    ordered = [tried(8.0, 7.0), tried(9.0, 1.0), tried(9.0, 3.0, total=40), tried(9.0, 3.0)]
    shuffled = [ordered[i] for i in (2, 0, 3, 1)]
    assert sorted(shuffled, key=lambda one: one.order) == ordered
    more, less = (one._replace(bound=None) for one in (tried(2.0, sent=1), tried(1.0, sent=2)))
    assert sorted([more, less], key=lambda one: one.order) == [less, more]


@pytest.mark.slow
def test_of_all_that_fit_none_has_a_lower_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is shown is what the flags give, and none of the others that fit is quicker."""
    words = [*WORDS, "--compute.remat", "full"]
    here = plans(tmp_path, "h200:8", *words)
    needs = [here.memory(here.configured._replace(microbatches=n)).total for n in (1, 2)]
    for memory in (10**9, *(int(need / search.NEARLY) + 1 for need in needs)):
        chip(monkeypatch, memory=memory)
        result = preflight.estimate(load(tmp_path, *words), "h200:8")
        one = result["quicker"]
        assert not one["compiled"]
        again = preflight.estimate(load(tmp_path, *words, *one["flags"].split()), "h200:8")
        assert again["memory"]["fits"] is True
        assert one["total"] == again["memory"]["total"]
        assert one["margin"] == memory - one["total"]
        assert one["sent"] == sum(kind["bytes"] for kind in again["collectives"].values())
        assert one["bound"] == again["bound"]
        assert again["quicker"] is None
        others = [search._estimated(here, other) for other in settings.quicker(here.configured)]
        least = min(o.seconds for o in others if o.total <= search.NEARLY * memory)
        assert one["bound"]["seconds"] == least < result["bound"]["seconds"]


@pytest.mark.slow
def test_less_remat_where_arithmetic_takes_the_time(tmp_path: Path, monkeypatch):
    """The least that fits: with more microbatches than configured where only that makes room."""
    slow(monkeypatch)
    here = plans(tmp_path, "h200:8", *WORDS, "--compute.remat", "full")
    need = {
        (remat, count): here.memory(here.configured._replace(remat=remat, microbatches=count)).total
        for remat in ("none", "dots", "attention", "full")
        for count in (1, 2, 4, 8)
    }
    assert need["none", 8] < need["none", 4]

    def found(memory: int) -> dict[str, Any] | None:
        slow(monkeypatch, memory=memory)
        return preflight.estimate(here.config, "h200:8")["quicker"]

    room = 1 / search.NEARLY
    assert names(found(10**12)) == "--compute.remat none --train.microbatches 1"
    assert names(found(int(need["none", 4] * room) + 1)) == "--compute.remat none"
    eight = "--compute.remat none --train.microbatches 8"
    assert names(found(int(need["none", 4] * room) - 1)) == eight
    # of such narrow layers attention is as much arithmetic as the products; these need weights
    assert names(found(int(need["none", 8] * room) - 1)) == "--compute.remat dots"
    slow(monkeypatch, memory=need["full", 8])
    words = (*WORDS, "--compute.remat", "full", "--train.microbatches", "8")
    assert preflight.estimate(load(tmp_path, *words), "h200:8")["quicker"] is None


def test_the_page_says_what_is_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slow(monkeypatch)
    result = preflight.estimate(load(tmp_path, *WORDS), "h200:8")
    one, page = result["quicker"], table.render(result)
    assert f"quicker, and it fits\n  {one['flags']}\n    {table.size(one['total'])}, " in page
    before, after = result["bound"], one["bound"]
    assert (
        f"no step is faster than {table.seconds(after['seconds'])} instead of "
        f"{table.seconds(before['seconds'])}: MFU at most {100 * after['mfu']:.1f} % instead of "
        f"{100 * before['mfu']:.1f} %\n" in page
    )
    sent = sum(kind["bytes"] for kind in result["collectives"].values())
    assert f"sends {table.size(one['sent'])} instead of {table.size(sent)}" in page
    result = preflight.estimate(load(tmp_path, *WORDS, *one["flags"].split()), "h200:8")
    assert "quicker" not in table.render(result)


def test_leaving_the_host_alone_is_a_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slow(monkeypatch)
    words = (*WIDE, *FSDP, "--compute.attention", "blocks", "--compute.remat", "offload")
    here = plans(tmp_path, "h200:8", *words)
    attention = here.memory(here.configured._replace(remat="attention")).total
    # no room for dots, whose products take more than attention's results
    slow(monkeypatch, memory=int(attention / search.NEARLY) + 1)
    result = preflight.estimate(here.config, "h200:8")
    assert names(result["quicker"]) == "--compute.remat attention"
    host = table.size(result["memory"]["host"])
    assert f"leaves to the host 0 B instead of {host}" in table.render(result)


# -------------------------------------------------------------------------------------- compilation


def compiling(here: Plans, monkeypatch: pytest.MonkeyPatch, fitting: Any) -> list[Setting]:
    """Pretends to compile: what `fitting` accepts takes what the formula says."""
    asked: list[Setting] = []

    def compiled(self: Plans, setting: Setting) -> Program:
        if setting != here.configured:
            asked.append(setting)
        if setting == here.configured or fitting(setting):
            return Program(1.0, {"temporary": self.memory(setting).total}, [], None)
        return Program(1.0, {}, [], "RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(Plans, "compiled", compiled)
    return asked


def test_few_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two at most; what is refused says that the next must need clearly less."""
    slow(monkeypatch, "cpu")
    here = plans(tmp_path, "cpu:8", *WORDS, "--compute.remat", "full")
    assert here.compiles
    asked = compiling(here, monkeypatch, lambda setting: True)
    one = search.quicker(here)
    assert names(one) == "--compute.remat none --train.microbatches 1"
    assert one is not None and one["compiled"]
    assert len(asked) == 1
    asked = compiling(here, monkeypatch, lambda setting: setting.microbatches > 1)
    assert names(search.quicker(here)) == "--compute.remat none --train.microbatches 2"
    first, second = (here.memory(setting).total for setting in asked)
    assert second <= 0.9 * first
    asked = compiling(here, monkeypatch, lambda setting: False)
    assert search.quicker(here) is None
    assert len(asked) == search.TRIED_QUICKER == 2
    first, second = (here.memory(setting).total for setting in asked)
    assert second <= 0.9 * first


def test_after_one_that_did_not_fit_the_next_needs_clearly_less(tmp_path: Path, monkeypatch):
    """The formula is within a tenth: of 100, 95 and 80 bytes the second is not compiled."""
    here = plans(tmp_path, "cpu:8", *WORDS)
    given = [here.configured._replace(microbatches=n) for n in (1, 2, 8)]
    monkeypatch.setattr(settings, "quicker", lambda _: given)
    needs = {1: 100, 2: 95, 8: 80, 4: 70}  # by microbatches; the last is configured

    def estimated(_: Plans, setting: Setting) -> Tried:
        count = setting.microbatches
        one = tried(20.0 if count == 4 else 10.0, float(count), total=needs[count])
        return one._replace(setting=setting)

    monkeypatch.setattr(search, "_estimated", estimated)
    asked = compiling(here, monkeypatch, lambda setting: False)
    assert search.quicker(here) is None
    assert [setting.microbatches for setting in asked] == [1, 8]


def test_what_a_compiled_program_sends_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fewer microbatches that send no less in the end are not shown."""
    slow(monkeypatch, "cpu")
    here = plans(tmp_path, "cpu:8", *WORDS, "--compute.remat", "none")
    compiling(here, monkeypatch, lambda setting: True)  # programs without collectives
    assert search._estimated(here, here.configured).sent > 0
    assert search.quicker(here) is None
