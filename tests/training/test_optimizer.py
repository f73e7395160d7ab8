"""Who moves, how far and when: claims, schedules as tables, AdamW against torch."""

import jax
import jax.numpy as jnp
import numpy as np
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


SHAPES = {"connector/b": (7,), "language/a/kernel": (5, 3), "language/norm/scale": (3,)}


def random_params(seed, scale):
    rng = np.random.default_rng(seed)
    return {p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()}


@pytest.mark.parametrize("clip", [0.7, None])
def test_equals_torch_adamw(clip):
    """Twenty steps with clipping (half of them over the norm), decay, two rates, a schedule.

    No constant is its default, so that every one of the config's must arrive.
    """
    torch = pytest.importorskip("torch")
    parts = {
        "connector": PartConfig("connector/.*", learning_rate=3e-2),
        "language": PartConfig("language/.*"),
    }
    config = OptimizerConfig(
        parts,
        learning_rate=1e-2,
        weight_decay=0.1,
        beta1=0.8,
        beta2=0.95,
        eps=1e-3,
        clip_norm=clip,
        warmup_ratio=0.2,
        floor=0.33,
    )
    params = random_params(0, 1.0)
    made = optimizer.make_optimizer(config, 20, params)
    assert set(made.rates) == {"connector", "language"}
    moments = made.init(params)
    theirs = {p: torch.nn.Parameter(torch.tensor(np.asarray(x))) for p, x in params.items()}
    groups = [
        {"params": [theirs["connector/b"]], "lr": 3e-2, "weight_decay": 0.1},
        {"params": [theirs["language/a/kernel"]], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [theirs["language/norm/scale"]], "lr": 1e-2, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3)
    bases = [group["lr"] for group in adamw.param_groups]
    factor = optimizer.make_schedule(config, 20, 1.0)
    update = jax.jit(made.update)
    for step in range(20):
        grads = random_params(step + 1, 0.1 if step % 2 else 2.0)
        updates, moments = update(grads, moments, params, step)
        params = optimizer.apply_updates(params, updates)
        for path, grad in grads.items():
            theirs[path].grad = torch.tensor(np.asarray(grad))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        for group, base in zip(adamw.param_groups, bases, strict=True):
            group["lr"] = base * float(factor(step))
        adamw.step()
    for path, ours in params.items():
        np.testing.assert_allclose(ours, theirs[path].detach().numpy(), rtol=1e-6, atol=2e-6)


def test_bfloat16_parameters_keep_float32_moments_and_round_once():
    params = {"connector/b": jnp.ones((4,), jnp.bfloat16)}
    config = OptimizerConfig({"c": PartConfig("connector/.*")}, learning_rate=0.3, warmup_ratio=0.0)
    made = optimizer.make_optimizer(config, 10, params)
    moments = made.init(params)
    floats = [x for x in jax.tree.leaves(moments) if x.ndim]
    assert len(floats) == 2
    assert all(x.dtype == jnp.float32 for x in floats)
    updates, _ = made.update({"connector/b": jnp.ones((4,))}, moments, params, 0)
    assert updates["connector/b"].dtype == jnp.float32
    moved = optimizer.apply_updates(params, updates)["connector/b"]
    assert moved.dtype == jnp.bfloat16
    expected = (1 + updates["connector/b"]).astype(jnp.bfloat16)
    assert (moved == expected).all()


def test_an_update_is_added_before_it_is_rounded():
    """1 + 2^-8 is half-way to the next bfloat16: what an update has beside that decides."""
    params, update = {"a/b": jnp.ones(1, jnp.bfloat16)}, {"a/b": jnp.full(1, 2.0**-8)}
    more = {"a/b": update["a/b"] + 2.0**-17}
    assert optimizer.apply_updates(params, update)["a/b"] == 1
    assert optimizer.apply_updates(params, more)["a/b"] == 1 + 2.0**-7


TOWER = {
    "vision/layers/kernel": (3, 2),
    "vision/post_norm/scale": (2,),
    "language/head/kernel": (4, 2),
}
USED = {"vision/layers/kernel": 2, "vision/post_norm/scale": 0}  # of three layers; nothing of it


def test_what_never_gets_a_gradient_stays_and_has_no_moments():
    """As torch leaves a parameter whose grad is None: no decay, no state; the rest moves."""
    fresh = {path: jnp.ones(shape) for path, shape in TOWER.items()}
    config = OptimizerConfig(
        {"all": PartConfig(".*")}, learning_rate=1e-2, weight_decay=0.5, warmup_ratio=0.0
    )
    made = optimizer.make_optimizer(config, 10, fresh, USED)
    moments, params = made.init(fresh), fresh
    shapes = {path: x.shape for path, x in moments[1].mu.items()}
    assert shapes == {"vision/layers/kernel": (2, 2), "language/head/kernel": (4, 2)}
    for number in range(10):
        used = made.used(params)
        grads = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), used)
        updates, moments = made.update(grads, moments, used, number)
        params = optimizer.apply_updates(params, updates)
    assert (params["vision/layers/kernel"][2] == 1).all()
    assert (params["vision/post_norm/scale"] == 1).all()
    assert (params["vision/layers/kernel"][:2] < 0.95).all()
    assert (params["language/head/kernel"] < 0.95).all()
    still = optimizer.apply_updates(params, updates, jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, still, params)


def test_a_stage_that_trains_what_no_row_uses_is_refused():
    """The connector alone, but rows without images."""
    with pytest.raises(ConfigError, match=r"no trained parameter is used.*connector/b.*image_slo"):
        optimizer.make_optimizer(
            OptimizerConfig(PARTS), 10, {"connector/b": jnp.zeros(2)}, {"connector/b": 0}
        )


def test_a_frozen_path_in_the_trainable_tree_is_refused():
    with pytest.raises(ValueError, match="vision/a"):
        optimizer.make_optimizer(OptimizerConfig(PARTS), 10, {"vision/a": jnp.zeros(2)})
