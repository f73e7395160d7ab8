"""Bounds by hand."""

import pytest

from mllm_jax.preflight.hardware import Chip
from mllm_jax.preflight.roofline import Split, Work, bound, sent_by_formula

CHIP = Chip("tpu", "toy", "toy", None, 100, bandwidth=50.0, links=5.0)


def test_the_slowest_of_the_three_decides():
    work = Work(useful=600.0, done=800.0, memory=100.0, sent=5.0, tokens=40)
    found = bound(work, CHIP, 100.0, 2)
    assert found is not None
    assert (found.compute, found.memory, found.links) == (4.0, 2.0, 1.0)
    assert (found.by, found.seconds, found.tokens_per_second, found.mfu) == ("compute", 4, 10, 0.75)
    slow = bound(work._replace(sent=50.0), CHIP, 100.0, 2)
    assert slow is not None
    assert (slow.by, slow.seconds, slow.mfu) == ("links", 10.0, 0.3)


def test_no_rates_no_bound():
    work = Work(1.0, 1.0, 1.0, 1.0, 1)
    assert bound(work, CHIP, None, 2) is None
    assert bound(work, CHIP._replace(links=None), 1.0, 2) is None


@pytest.mark.parametrize(
    ("split", "gathered", "scattered", "reduced"),
    [
        (Split(1, 1, 1), 0, 0, 0),
        (Split(1, 4, 1), 2 * 3 * 800 * 3 // 4, 3 * 400 * 3 // 4, 0),
        (Split(2, 4, 1), 2 * 3 * 800 * 3 // 4, 3 * 400 * 3 // 4, 2 * 1000 // 2),
        (Split(1, 1, 2), 0, 0, (2 + 5) * 5 * 3 * 10),
        (Split(1, 2, 1, 2), 2 * 3 * 800 * 3 // 4, 3 * 400 * 3 // 4, 0),
    ],
)
def test_bytes_sent(split: Split, gathered: int, scattered: int, reduced: int):
    found = sent_by_formula(split, 3, 800, 400, 1000, 10, 5, False)
    assert found == {"all-gather": gathered, "reduce-scatter": scattered, "all-reduce": reduced}


def test_what_is_summed_again():
    """Two tensor devices, 5 layers, 3 microbatches of 10 bytes: attention's sum once more."""
    once, twice = (
        sent_by_formula(Split(1, 1, 2), 3, 0, 0, 0, 10, 5, again) for again in (False, True)
    )
    assert twice["all-reduce"] - once["all-reduce"] == 5 * 3 * 10


def test_keys_and_values_cross_the_context_axis_in_every_layer_and_microbatch():
    found = sent_by_formula(Split(1, 1, 1, 2), 3, 0, 0, 0, 0, 5, True, (8, 16))
    assert found == {
        "all-gather": 5 * 3 * 8 // 2,
        "reduce-scatter": 5 * 3 * 16 // 2,
        "all-reduce": 0,
    }
