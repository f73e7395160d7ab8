"""Which checkpoints stay, as literal tables; the mean loss between saves."""

import pytest

from mllm_jax.checkpoints.retention import Keep, Mean, retained

LOSSES = {100: 4.0, 200: 3.0, 300: 1.0, 400: 2.5, 500: 1.5, 600: 2.0}
CASES = [
    (Keep(1), {600}),
    (Keep(2), {500, 600}),
    (Keep(9), set(LOSSES)),
    (Keep(1, every=200), {200, 400, 600}),
    (Keep(1, best=1), {300, 600}),
    (Keep(1, best=2), {300, 500, 600}),
    (Keep(1, every=400, best=1), {300, 400, 600}),
]


@pytest.mark.parametrize(("keep", "steps"), CASES)
def test_kept(keep: Keep, steps: set[int]):
    assert retained(LOSSES, keep) == steps


def test_what_was_not_measured_is_never_the_best_and_of_equal_ones_the_later_is():
    assert retained({1: None, 2: 1.0, 3: 1.0, 4: None}, Keep(1, best=1)) == {3, 4}
    assert retained({1: None, 2: None}, Keep(1, best=1)) == {2}
    assert retained({1: 0.0, 2: 1.0, 3: None}, Keep(1, best=1)) == {1, 3}
    assert retained({}, Keep(2)) == set()


def test_the_mean_is_over_tokens_and_begins_anew():
    mean = Mean()
    mean.add(2.0, 10.0)
    mean.add(8.0, 20.0)
    mean.add(float("nan"), 0.0)  # a step without a trained token
    assert mean.take() == 6.0
    assert mean.take() is None
    mean.add(1.0, 5.0)
    assert mean.take() == 1.0
