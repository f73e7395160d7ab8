"""NEFTune: how large the noise is, where it goes, and that it is all that an update changes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import NEWLINE, TEXT
from mllm_jax.distributed import sharding
from mllm_jax.models import mllm, neftune
from tests.models.test_mllm import (
    ANYRES,
    COMPUTE,
    CONFIG,
    close,
    conversation,
    inputs_of,
    row,
    tiled,
)

KEY = jax.random.key(7, impl="threefry2x32")
ALPHA = 5.0


@pytest.mark.parametrize(
    ("length", "width", "expected"), [(8192, 4096, 8.631675e-4), (8, 16, 0.4419417)]
)
def test_magnitude(length: int, width: int, expected: float):
    """alpha 5: Latxa-Instruct's, and one small enough for a hand."""
    assert neftune.magnitude(ALPHA, length, width) == pytest.approx(expected, rel=1e-6)


def test_the_noise_is_uniform():
    """Mean 0, variance m^2 / 3, fourth moment m^4 / 5, all of [-m, m) and nothing outside."""
    drawn = np.asarray(neftune.noise(ALPHA, KEY, jnp.arange(16), (256, 64)), np.float64)
    m, n = neftune.magnitude(ALPHA, 256, 64), drawn.size
    assert -m <= drawn.min() < -0.9999 * m and 0.9999 * m < drawn.max() <= m
    assert abs(drawn.mean()) < 4 * m / math.sqrt(3 * n)
    assert (drawn**2).mean() == pytest.approx(m**2 / 3, rel=4 * math.sqrt(0.8 / n))
    assert (drawn**4).mean() == pytest.approx(m**4 / 5, rel=4 * math.sqrt(16 / 9 / n))
    counts, _ = np.histogram(drawn, 64, (-m, m))
    squares = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert squares < 63 + 4 * math.sqrt(2 * 63)


def test_rows_positions_and_numbers_differ():
    """No two numbers of a row, no two rows and no two updates have noise in common."""
    drawn = np.asarray(neftune.noise(ALPHA, KEY, jnp.arange(8), (64, 32)), np.float64)
    flat = drawn.reshape(8, -1) / np.sqrt((drawn**2).mean())
    rows = flat @ flat.T / flat.shape[1]
    assert np.abs(rows - np.eye(8)).max() < 5 / math.sqrt(flat.shape[1])
    next_token = (drawn[:, 1:] * drawn[:, :-1]).mean() / (drawn**2).mean()
    next_number = (drawn[..., 1:] * drawn[..., :-1]).mean() / (drawn**2).mean()
    assert max(abs(next_token), abs(next_number)) < 5 / math.sqrt(drawn.size)
    other = neftune.noise(ALPHA, jax.random.fold_in(KEY, 1), jnp.arange(8), (64, 32))
    of_updates = (np.asarray(other, np.float64) * drawn).mean() / (drawn**2).mean()
    assert abs(of_updates) < 5 / math.sqrt(drawn.size)


def test_a_row_has_its_noise_wherever_it_is(make_mesh):
    """By itself, in a microbatch, or on one of eight devices: the same bits."""
    draw = functools.partial(neftune.noise, ALPHA, shape=(12, 16))
    whole = np.asarray(draw(KEY, jnp.arange(16)))
    np.testing.assert_array_equal(draw(KEY, jnp.asarray([5]))[0], whole[5])
    np.testing.assert_array_equal(draw(KEY, jnp.arange(16)[1::4]), whole[1::4])
    for shape in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = make_mesh(**shape)
        rows = jax.device_put(jnp.arange(16), sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            many = jax.jit(draw)(KEY, rows)
        np.testing.assert_array_equal(many, whole)


@pytest.fixture(scope="module")
def params():
    model = mllm.build(ANYRES, COMPUTE)
    return jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))


PACKED = row([tiled(1, 6), conversation(2, 0, 20), conversation(3, 1, 9)], 110, 5)
ROWS = jnp.asarray([3])


def loss(params, packed, hidden):
    """Summed over trained tokens."""
    logp = jax.nn.log_softmax(mllm.logits(hidden, mllm.head(params)))
    nll = -jnp.take_along_axis(logp, packed["targets"][:, :, None], axis=-1)[:, :, 0]
    return jnp.sum(nll * packed["weights"])


def trained(alpha, params, packed=PACKED):
    """Loss of an update with noise."""
    model = mllm.build(ANYRES, COMPUTE, neftune_alpha=alpha)
    return loss(params, packed, mllm.hidden(model, params, inputs_of(packed), KEY, rows=ROWS))


def by_hand(params, noise, packed=PACKED):
    """Loss of a model whose embeddings have these numbers added."""
    model, inputs = mllm.build(ANYRES, COMPUTE), inputs_of(packed)
    x = mllm.embed(model, params, inputs) + noise
    hidden = mllm.apply(model, params, "language", x, inputs.segments, inputs.positions)
    return loss(params, packed, hidden)


def test_loss_and_gradient_are_those_of_embeddings_with_that_noise(params):
    """Text alone: patches, the newline vectors between them and their gradients have none."""
    index = np.asarray(PACKED["image_index"])[0]
    assert {TEXT, 0, 5 * 16} <= set(index.tolist()) and NEWLINE not in index
    drawn = np.asarray(neftune.noise(ALPHA, KEY, ROWS, (110, 32)))
    noise = np.where((index == TEXT)[None, :, None], drawn, 0)
    run = jax.jit(jax.value_and_grad(functools.partial(trained, ALPHA)))
    got, gradient = run(params)
    want, expected = jax.jit(jax.value_and_grad(by_hand))(params, noise)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for path in expected:
        close(gradient[path], expected[path])
    assert abs(got - jax.jit(by_hand)(params, 0.0)) > 1e-2
    assert abs(got - jax.jit(by_hand)(params, drawn)) > 1e-4, "noise on image vectors would show"
    unread = np.asarray(PACKED["segments"])[0] == 0
    assert unread.any() and noise[0, unread].any()
    assert got == pytest.approx(
        float(jax.jit(by_hand)(params, np.where(unread[None, :, None], 0, noise))), rel=1e-6
    )


def test_without_alpha_the_program_is_the_one_without_noise(params):
    """And an update of alpha 0 reads no numbers of rows."""

    def program(model):
        run = jax.jit(functools.partial(mllm.hidden, model))
        return run.lower(params, inputs_of(PACKED), KEY, rows=ROWS).as_text()

    plain = program(mllm.build(ANYRES, COMPUTE))
    assert program(mllm.build(ANYRES, COMPUTE, neftune_alpha=0.0)) == plain
    noisy = mllm.build(ANYRES, COMPUTE, neftune_alpha=ALPHA)
    assert program(noisy) != plain
    run = jax.jit(functools.partial(mllm.hidden, noisy))
    evaluation = run.lower(params, inputs_of(PACKED)).as_text()
    model = mllm.build(ANYRES, COMPUTE)
    run = jax.jit(functools.partial(mllm.hidden, model))
    assert evaluation == run.lower(params, inputs_of(PACKED)).as_text(), "no noise in evaluation"


def test_noise_is_added_in_float32_and_rounded_once():
    """bfloat16 embeddings keep what they can of a small m."""
    x = jnp.full((1, 64, 128), 0.01, jnp.bfloat16)
    index = jnp.full((1, 64), TEXT)
    noisy = neftune.with_noise(x, index, 0.05, KEY, ROWS)
    assert noisy.dtype == jnp.bfloat16
    exact = x.astype(jnp.float32) + neftune.noise(0.05, KEY, ROWS, (64, 128))
    np.testing.assert_array_equal(noisy, exact.astype(jnp.bfloat16))


def test_a_text_model_has_noise_on_every_token():
    text = dataclasses.replace(CONFIG, vision=None, connector=None, image_token=None)
    model = mllm.build(text, COMPUTE, neftune_alpha=ALPHA)
    drawn = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    packed = row([conversation(2, 0, 20)], 20, 0)
    changed = jax.jit(functools.partial(mllm.hidden, model))(
        drawn, inputs_of(packed), KEY, rows=ROWS
    )
    plain = jax.jit(functools.partial(mllm.hidden, model))(drawn, inputs_of(packed))
    assert np.abs(np.asarray(changed - plain)).max(axis=-1).min() > 1e-3
