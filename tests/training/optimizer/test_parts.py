"""Who moves: every parameter is claimed by exactly one part."""

import jax.numpy as jnp
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import OptimizerConfig, PartConfig
from mllm_jax.training import optimizer

PARTS = {
    "vision": PartConfig("vision/.*", train=False),
    "connector": PartConfig("connector/.*"),
    "language": PartConfig("language/.*"),
}
PATHS = ["vision/a", "connector/b/kernel", "language/c", "language/d/kernel"]


def test_every_path_has_one_owner():
    assert optimizer.assign(PATHS, PARTS) == {
        "vision/a": "vision",
        "connector/b/kernel": "connector",
        "language/c": "language",
        "language/d/kernel": "language",
    }


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"v": PARTS["vision"], "c": PARTS["connector"]}, r"no part claims language/c, language/d"),
        ({**PARTS, "x": PartConfig("language/d/.*")}, r"more than one .* language/d/kernel \(lang"),
        ({**PARTS, "lora": PartConfig("lora/.*")}, r"claims nothing: lora \(match: 'lora/"),
        ({"all": PartConfig("language")}, r"no part claims vision/a"),  # the whole path must match
    ],
)
def test_refuses_what_is_not_claimed_exactly_once(parts, words):
    with pytest.raises(ConfigError, match=words) as caught:
        optimizer.assign(PATHS, parts)
    assert "\n" not in str(caught.value)


def test_long_lists_are_shortened_with_a_count():
    with pytest.raises(ConfigError, match=r"language/4 and 95 more \(100 in all\)"):
        optimizer.assign(
            [f"language/{i}" for i in range(100)] + ["vision/a"], {"v": PARTS["vision"]}
        )


def test_split_and_merge_are_inverse():
    params = {"vision/a": 1, "connector/b/kernel": 2, "language/c": 3}
    trainable, frozen = optimizer.split(params, PARTS)
    assert trainable == {"connector/b/kernel": 2, "language/c": 3}
    assert frozen == {"vision/a": 1}
    assert optimizer.merge(trainable, frozen) == params
    with pytest.raises(ValueError, match="both hold vision/a"):
        optimizer.merge(frozen, params)


def test_a_frozen_path_in_the_trainable_tree_is_refused():
    with pytest.raises(ValueError, match="vision/a"):
        optimizer.make_optimizer(OptimizerConfig(PARTS), 10, {"vision/a": jnp.zeros(2)})
