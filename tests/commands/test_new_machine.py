"""What `mllm-jax new` chooses for a machine: the quickest setting that fits, by formula."""

import jax
import pytest

from mllm_jax.commands.new import machine
from mllm_jax.commands.new.choices import Choice
from mllm_jax.common.hardware import CHIPS
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import search
from mllm_jax.preflight.hardware import Devices, Hardware
from mllm_jax.preflight.plans import Plans
from tests.support.valid_config import TREE

EIGHT = Hardware("h100:8", "h100", CHIPS["h100"], 8)
FLAGS = "--data.rows 64 --mesh.data 1 --mesh.fsdp -1 --compute.remat full"
FLAGS += " --compute.attention blocks"  # which is traced anywhere


@pytest.fixture
def config(monkeypatch) -> Config:
    """A stage whose devices here count as H100."""
    monkeypatch.setattr(machine, "_hardware", lambda: EIGHT)
    return loading.build(Config, loading.overridden(TREE, FLAGS.split()))


def estimates(config: Config) -> list[search.Tried]:
    return search.by_formula(Plans(config, EIGHT, Devices(jax.devices(), True)))


def with_memory(monkeypatch, size: float) -> None:
    monkeypatch.setattr(machine, "memory", lambda: int(size / machine.USED))


def test_with_room_for_all_nothing_is_computed_again(config, monkeypatch):
    with_memory(monkeypatch, 2**40)
    fit = machine.fit(config, Choice(64, "ours"))
    assert (fit.microbatches.value, fit.remat.value, fit.fits) == (1, "none", True)
    assert fit.remat.why == "machine: everything is kept for the backward pass"


@pytest.mark.slow
def test_with_less_room_the_quickest_that_fits(config, monkeypatch):
    tried = estimates(config)
    assert {one.setting.remat for one in tried} == {"none", "dots", "attention", "full"}
    assert {one.setting.microbatches for one in tried} == {1, 2, 4, 8}
    sizes = sorted(one.total for one in tried)
    for size in sizes[:: len(sizes) // 4]:
        with_memory(monkeypatch, size + machine.USED)
        fit = machine.fit(config, Choice(64, "ours"))
        best = min((one for one in tried if one.total <= size), key=lambda one: one.order)
        assert (fit.microbatches.value, fit.remat.value) == (
            best.setting.microbatches,
            best.setting.remat,
        )
        assert fit.fits and f"{64 // best.setting.microbatches} rows at" in fit.microbatches.why


def test_where_nothing_fits_the_smallest_is_named(config, monkeypatch):
    smallest = min(estimates(config), key=lambda one: one.total)
    with_memory(monkeypatch, smallest.total / 2)
    fit = machine.fit(config, Choice(64, "ours"))
    assert not fit.fits
    assert (fit.microbatches.value, fit.remat.value) == (
        smallest.setting.microbatches,
        smallest.setting.remat,
    )


def test_rows_grow_to_a_multiple_of_the_devices(config, monkeypatch):
    with_memory(monkeypatch, 2**40)
    fit = machine.fit(config, Choice(12, "ours"))
    assert fit.rows == Choice(16, "ours; a multiple of 8 devices")


@pytest.mark.parametrize("kind", ["cpu", "unknown"])
def test_without_rates_no_more_turns_than_memory_asks_for(config, monkeypatch, kind):
    chip = CHIPS["cpu"] if kind == "cpu" else CHIPS["h100-pcie"]
    monkeypatch.setattr(machine, "_hardware", lambda: Hardware(f"{kind}:8", kind, chip, 8))
    with_memory(monkeypatch, 2**40)
    fit = machine.fit(config, Choice(64, "ours"))
    assert (fit.microbatches.value, fit.remat.value) == (1, "none")
