"""Chunked loss against log_softmax over whole logits: values, gradients, what is paid for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.distributed import sharding
from mllm_jax.training import loss as loss_module
from mllm_jax.training.chunks import chunks
from mllm_jax.training.loss import weighted_loss
from tests.training import toy

B, T, D, V = 4, 37, 16, 64


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(1), 4)
    return {
        "hidden": jax.random.normal(keys[0], (B, T, D)),
        "head": jax.random.normal(keys[1], (V, D)),
        "targets": jax.random.randint(keys[2], (B, T), 0, V),
        "weights": jax.random.uniform(keys[3], (B, T)).at[1].set(0.0),
    }


def plain(hidden, head, targets, weights):
    logits = jnp.einsum("btd,vd->btv", hidden.astype(jnp.float32), head.astype(jnp.float32))
    scores = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    losses = jnp.where(weights != 0, losses, 0.0)
    return jnp.sum(losses * weights), losses


def both(case, chunk, dtype=jnp.float32):
    hidden, head = case["hidden"].astype(dtype), case["head"].astype(dtype)
    rest = case["targets"], case["weights"]
    ours = jax.value_and_grad(lambda h, w: weighted_loss(h, w, *rest, chunk), (0, 1), has_aux=True)
    theirs = jax.value_and_grad(lambda h, w: plain(h, w, *rest), (0, 1), has_aux=True)
    return jax.jit(ours)(hidden, head), jax.jit(theirs)(hidden, head)


@pytest.mark.parametrize("chunk", [1, 5, 8, 36, 37, 1000])
def test_equals_log_softmax(case, chunk):
    ((loss, tokens), grads), ((want, want_tokens), want_grads) = both(case, chunk)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(tokens, want_tokens, rtol=1e-6, atol=1e-6)
    for got, expected in zip(grads, want_grads, strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * scale)


def test_bfloat16_products_float32_softmax(case):
    ((loss, _), grads), ((want, _), want_grads) = both(case, 8, jnp.bfloat16)
    np.testing.assert_allclose(loss, want, rtol=1e-5)  # same rounded inputs, exact products
    for got, expected in zip(grads, want_grads, strict=True):
        assert got.dtype == jnp.bfloat16
        error = jnp.abs(got.astype(jnp.float32) - expected.astype(jnp.float32)).max()
        assert error < 0.02 * jnp.abs(expected.astype(jnp.float32)).max()


def test_extreme_logits_stay_finite(case):
    args = case["hidden"] * 1e4, case["head"], case["targets"], case["weights"]
    grads = jax.grad(lambda h, w: weighted_loss(h, w, *args[2:], 8)[0], (0, 1))(*args[:2])
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def preference(tokens):
    """A loss over whole answers: of the tokens' losses, not of their weighted sum."""
    answers = jnp.sum(tokens * jnp.arange(T)[None], axis=1)
    return -jax.nn.log_sigmoid(0.01 * (answers[0] - answers[2]))


DIFFERENTIATED = {
    "a third of the sum": lambda loss, tokens: loss / 3,
    "the tokens' losses": lambda loss, tokens: preference(tokens),
    "both": lambda loss, tokens: loss**2 / 1e4 + preference(tokens),
}


@pytest.mark.parametrize("what", DIFFERENTIATED)
def test_whatever_is_made_of_sum_and_token_losses_has_its_gradient(case, what):
    """By hidden states and head: neither is silently zero."""

    def made(loss):
        def value(hidden, head):
            return DIFFERENTIATED[what](*loss(hidden, head, case["targets"], case["weights"]))

        return jax.jit(jax.grad(value, (0, 1)))(case["hidden"], case["head"])

    for got, want in zip(
        made(lambda h, v, t, w: weighted_loss(h, v, t, w, 8)), made(plain), strict=True
    ):
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


def test_weights_are_data(case):
    with pytest.raises(TypeError, match="no gradient by its weights"):
        jax.grad(lambda w: weighted_loss(case["hidden"], case["head"], case["targets"], w, 8)[0])(
            case["weights"]
        )


def test_the_head_is_cast_and_its_gradient_is_not(case):
    """A float32 head beside bfloat16 hidden states: products in bfloat16, no gradient rounded."""
    hidden, rest = case["hidden"].astype(jnp.bfloat16), (case["targets"], case["weights"])
    got = jax.grad(lambda w: weighted_loss(hidden, w, *rest, 8)[0])(case["head"])
    rounded = case["head"].astype(jnp.bfloat16)
    want = jax.grad(lambda w: weighted_loss(hidden, w, *rest, 8)[0])(rounded)
    assert (got.dtype, want.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(got.astype(jnp.bfloat16), want)
    assert (got != want.astype(jnp.float32)).mean() > 0.9


PRODUCTS = [((), 1), ((0,), 2), ((1,), 2), ((0, 1), 3)]


def compiled(case, wanted, wrap=lambda f: f):
    """The loss in one chunk, differentiated by `wanted` of (hidden, head), compiled."""
    loss = wrap(lambda h, w: weighted_loss(h, w, case["targets"], case["weights"], T)[0])
    function = jax.grad(loss, wanted) if wanted else loss
    return jax.jit(function).lower(case["hidden"], case["head"]).compile()


@pytest.mark.parametrize(("wanted", "products"), PRODUCTS)
def test_pays_only_the_products_it_needs(case, wanted, products):
    """Forward one; a gradient for hidden one more; for the head one more. Never the fourth."""
    one = 2 * B * T * D * V
    flops = toy.flops(compiled(case, wanted))
    elementwise = 20 * B * T * V  # softmax and comparison, generously
    assert products * one <= flops < products * one + elementwise < (products + 1) * one


def test_frozen_head_is_free_inside_a_scan_too(case):
    def twice(loss):
        def both(h, w):
            return jax.lax.scan(
                lambda total, x: (total + loss(x, w), None), 0.0, jnp.stack([h, h])
            )[0]

        return both

    frozen = toy.text(compiled(case, (0,), twice)).count(" dot(")
    trained = toy.text(compiled(case, (0, 1), twice)).count(" dot(")
    assert (frozen, trained) == (2, 3)


def test_no_array_of_all_logits(case):
    """With chunks, nothing of the size of all logits is ever allocated."""
    args = case["targets"], case["weights"]

    def temporary(chunk):
        f = jax.jit(jax.grad(lambda h, w: weighted_loss(h, w, *args, chunk)[0], (0, 1)))
        made = f.lower(jnp.zeros((B, T, D)), jnp.zeros((V, D))).compile()
        return toy.memory(made).temp_size_in_bytes

    assert temporary(4) < 4 * B * T * V <= temporary(T)


def test_chunks_are_equal(case):
    """148 positions in chunks of at most 36 x 4 are 74 and 74: not 144 and four."""
    made = jax.jit(lambda h, w: weighted_loss(h, w, case["targets"], case["weights"], 36)[0])
    program = made.lower(case["hidden"], case["head"]).as_text()
    assert f"tensor<74x{V}xf32>" in program
    assert f"tensor<144x{V}xf32>" not in program


TRAINED = {"none": 0, "one": 1, "a chunk": 32, "a chunk and one": 33, "all": B * T}


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_not_trained_costs_no_turn(case, trained, monkeypatch):
    """Chunks of 32 positions (5 for all): as many turns as the trained ones fill."""
    turns = []
    real = loss_module._chunk

    def counted(*args):
        jax.debug.callback(lambda: turns.append(1))
        return real(*args)

    monkeypatch.setattr(loss_module, "_chunk", counted)
    at = np.random.default_rng(0).permutation(B * T)[: TRAINED[trained]]
    weights = np.zeros(B * T, np.float32)
    weights[at] = np.linspace(0.5, 2, len(at))
    now = case | {"weights": jnp.asarray(weights.reshape(B, T))}
    ((loss, tokens), grads), ((want, want_tokens), want_grads) = both(now, 8)
    jax.effects_barrier()
    assert len(turns) == -(-TRAINED[trained] // 30)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(tokens, want_tokens, rtol=1e-6, atol=1e-6)
    for got, expected in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_several_chunks_where_one_would_do():
    """A device's positions in eighths, of 512 at least, however much `chunk` allows."""
    assert chunks(32, 64, 64) == (4, 512)
    assert chunks(4, 4096, 4096) == (8, 2048)
    assert chunks(4, 4096, 100) == (41, 400)
    assert chunks(1, 3, 512) == (1, 3)


@pytest.mark.parametrize("shape", [{"data": 4, "tensor": 2}, {"fsdp": 4, "tensor": 2}])
def test_sharded_equals_single(case, make_mesh, shape):
    mesh = make_mesh(**shape)
    place = sharding.shardings(mesh, {"h": ("batch", "none", "none"), "w": ("vocab", "embed")})
    rows = sharding.batch_sharding(mesh)
    targets, weights = (jax.device_put(case[n], rows) for n in ("targets", "weights"))
    grad = jax.value_and_grad(lambda h, w: weighted_loss(h, w, targets, weights, 8)[0], (0, 1))
    loss, grads = both(case, 8)[0]
    with jax.set_mesh(mesh):
        args = jax.device_put(case["hidden"], place["h"]), jax.device_put(case["head"], place["w"])
        made = jax.jit(grad).lower(*args).compile()
        got, got_grads = made(*args)
    np.testing.assert_allclose(got, loss[0], rtol=1e-6)
    for one, other in zip(got_grads, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    # logits of a chunk lie on all devices: [4 rows x 8 positions / 4, 64 words / 2]
    assert "f32[8,32]" in toy.text(made)
    assert "f32[32,64]" not in toy.text(made)
