"""Which positions of a row each device of the context axis has, and what goes between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.distributed import context
from mllm_jax.distributed.collectives import part, per_device
from tests.support import hlo
from tests.training import toy

ORDERS = {
    2: [0, 3, 1, 2],
    4: [0, 7, 1, 6, 2, 5, 3, 4],
}


@pytest.mark.parametrize("parts", ORDERS)
def test_a_device_has_an_early_chunk_and_a_late_one(parts):
    """Two positions a chunk; and back."""
    expected = [2 * chunk + i for chunk in ORDERS[parts] for i in (0, 1)]
    row = jnp.arange(4 * parts)[None]
    devices = context.in_parts(row, parts)
    assert devices.tolist() == [expected]
    assert context.in_a_row(devices, parts).tolist() == row.tolist()
    own = [context.positions(i, parts, 4) for i in range(parts)]
    assert np.concatenate(own).tolist() == expected


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_every_device_sees_as_many_keys(parts):
    seen = [int(np.sum(context.positions(i, parts, 6) + 1)) for i in range(parts)]
    assert len(set(seen)) == 1


def test_without_the_axis_nothing_is_moved(make_mesh):
    x = jnp.arange(12.0).reshape(2, 6)
    assert context.balanced(x) is x and context.restored(x) is x
    with jax.set_mesh(make_mesh(data=2, devices=2)):
        assert "sharding" not in str(jax.make_jaxpr(context.balanced)(x))


@pytest.fixture
def mesh(make_mesh):
    return make_mesh(data=2, fsdp=1, context=4)


def test_arrays_are_divided_and_put_back(mesh):
    x = jnp.arange(2 * 16 * 3.0).reshape(2, 16, 3)
    with jax.set_mesh(mesh):
        there = jax.jit(lambda x: context.balanced(x, "none"))(x)
        back = jax.jit(lambda x: context.restored(context.balanced(x, "none")))(x)
    assert {shard.data.shape for shard in there.addressable_shards} == {(1, 4, 3)}
    np.testing.assert_array_equal(there, context.in_parts(x, 4))
    np.testing.assert_array_equal(back, x)


def test_whole_rows_and_the_sum_of_their_gradients(mesh):
    """Device i weighs what it sees of the row by i + 1: a position's gradient is 1 + 2 + 3 + 4."""
    names = ("batch", "length", "none")
    x = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)

    def own(x):
        return context.whole_rows(x) * (part("length") + 1)

    def summed(x):
        parts = per_device(own, (names,), ("batch", "length", "none"))
        return jnp.sum(parts(context.balanced(x, "none")))

    with jax.set_mesh(mesh):
        rows = per_device(context.whole_rows, (names,), ("batch", "none", "none"))
        whole = jax.jit(lambda x: rows(context.balanced(x, "none")))(x)
        gradient = jax.jit(jax.grad(summed))(x)
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(gradient, np.full_like(x, 10))


def test_image_vectors_reach_the_positions_that_name_them(mesh):
    """Slots are divided as lengths are; two parts of a row name the same vector."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 8, 3)).astype(np.float32)
    index = rng.integers(0, 8, (2, 16), dtype=np.int32)
    weights = rng.normal(size=(2, 16, 3)).astype(np.float32)

    def taken(vectors, index, weights):
        there = context.take_vectors(vectors, context.balanced(index))
        return jnp.sum(there * context.balanced(weights, "none")), context.restored(there)

    def expected(vectors, index, weights):
        return jnp.sum(jnp.take_along_axis(vectors, index[..., None], axis=1) * weights)

    want = jax.grad(expected)(vectors, index, weights)
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(taken, has_aux=True))
        got, there = program(vectors, index, weights)
        text = toy.text(program.lower(vectors, index, weights).compile())
    np.testing.assert_array_equal(there, np.take_along_axis(vectors, index[..., None], axis=1))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    for one in hlo.collectives(text, mesh):
        assert one.axes <= {"context"} or not one.shapes[0][1], one.says()
