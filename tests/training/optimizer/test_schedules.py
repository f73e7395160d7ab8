"""How far: learning rates as tables."""

import numpy as np
import pytest

from mllm_jax.config.stage import OptimizerConfig, PartConfig
from mllm_jax.training import optimizer

PARTS = {"all": PartConfig(".*")}

# 100 updates, 10 of warmup: rises by a tenth per step; half way between 10 and 100 is 55
SCHEDULES = [
    ("cosine", 0.0, {0: 0.0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1.0, 55: 0.5, 100: 0.0, 500: 0.0}),
    # axolotl with cosine_min_lr_ratio 0.33: 0.67 * 0.5 * (1 + cos(pi t)) + 0.33; t = 1/3 at 40
    ("cosine", 0.33, {0: 0.0, 5: 0.5, 10: 1.0, 40: 0.8325, 55: 0.665, 70: 0.4975, 100: 0.33}),
    ("constant", 0.0, {0: 0.0, 5: 0.5, 10: 1.0, 55: 1.0, 100: 1.0}),
]


@pytest.mark.parametrize(("kind", "floor", "table"), SCHEDULES)
def test_schedule(kind, floor, table):
    config = OptimizerConfig(PARTS, schedule=kind, floor=floor, warmup_ratio=0.1)
    rate = optimizer.make_schedule(config, 100, 2e-5)
    for step, share in table.items():
        np.testing.assert_allclose(rate(step), 2e-5 * share, rtol=1e-5, atol=1e-12)


# 0.07 x 100 is 7.000000000000001
@pytest.mark.parametrize(
    ("steps", "ratio", "warmup"), [(30, 0.1, 3), (10, 0.03, 1), (7, 0.5, 4), (100, 0.07, 7)]
)
def test_warmup_is_rounded_up_as_transformers_does(steps, ratio, warmup):
    config = OptimizerConfig(PARTS, warmup_ratio=ratio)
    rate = optimizer.make_schedule(config, steps, 1.0)
    assert [float(rate(s)) < 1 for s in range(warmup)] == [True] * warmup
    assert float(rate(warmup)) == 1.0


def test_a_run_of_warmup_alone_stays_finite():
    """9.5 of 10 steps round up to all: nothing is left for the cosine."""
    rate = optimizer.make_schedule(OptimizerConfig(PARTS, warmup_ratio=0.95), 10, 1.0)
    np.testing.assert_allclose([rate(9), rate(10), rate(11)], [0.9, 1.0, 0.0], atol=1e-6)


def test_no_warmup_starts_at_the_full_rate():
    assert (
        float(optimizer.make_schedule(OptimizerConfig(PARTS, warmup_ratio=0.0), 10, 1.0)(0)) == 1.0
    )
