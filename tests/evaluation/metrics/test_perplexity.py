"""Perplexity three ways, by hand."""

import math

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.metrics.perplexity import mean_perplexity, perplexities, token_weighted

LOSSES, TOKENS = [1.2, 0.8, 7.5], [3, 10, 2]


def test_three_ways_by_hand():
    """Own perplexities 3.3201, 2.2255 and 1808.04; 3 x 1.2 + 10 x 0.8 + 2 x 7.5 = 26.6 nats."""
    assert [math.exp(loss) for loss in LOSSES] == pytest.approx([3.3201, 2.2255, 1808.04], rel=2e-5)
    assert perplexities(LOSSES, TOKENS) == {
        "perplexity": pytest.approx(5.890456, abs=5e-7),
        "perplexity_ndino": pytest.approx(2.772829, abs=5e-7),
        "dropped": 1,
        "perplexity_documents": pytest.approx(math.exp(26.6 / 3)),
    }
    assert token_weighted(LOSSES, TOKENS) == pytest.approx(26.6 / 15)


def test_what_cannot_be_a_number_is_absent():
    assert mean_perplexity([7.5, 7.0]) == (None, 2)
    assert mean_perplexity([math.log(1000), 7.0])[1] == 1  # 1000 itself counts
    assert perplexities([8.0], [200]) == {"perplexity": pytest.approx(math.exp(8)), "dropped": 1}


@pytest.mark.parametrize("loss", [math.nan, math.inf, 701.0])
def test_refusals(loss):
    with pytest.raises(ConfigError, match=r"the loss on 'eu' is .* per token: .*broken"):
        token_weighted([loss], [3], "'eu'")
    with pytest.raises(ConfigError, match="no answer tokens"):
        perplexities([], [])
