"""Work on each device's own part, and the lookup, against the same without a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.distributed import collectives, sharding
from tests.support import hlo
from tests.training import toy

V, D, B, T = 24, 16, 8, 5
SHAPES = [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 2}]


def test_per_device_gives_what_the_whole_gives(make_mesh):
    names = ("batch", "length", "heads", "head_dim")

    def run(x: jax.Array) -> jax.Array:
        return jnp.cumsum(x, axis=1)

    x = jnp.arange(8 * 3 * 4 * 2.0).reshape(8, 3, 4, 2)
    assert collectives.per_device(run, (names,), names) is run
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        made = jax.jit(lambda x: collectives.per_device(run, (names,), names)(x))(x)
    np.testing.assert_array_equal(made, run(x))


@pytest.fixture(scope="module")
def case():
    """A table, tokens that repeat over rows and devices, and what weighs the gradient."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, D)).astype(np.float32)
    tokens = rng.integers(0, V, (B, T), dtype=np.int32)
    tokens[:, 0] = [0, V - 1] * (B // 2)
    return table, tokens, rng.normal(size=(B, T, D)).astype(np.float32)


def summed_lookup(table, tokens, weights, dtype=jnp.float32):
    x = collectives.lookup(table, tokens, dtype)
    return jnp.sum(x.astype(jnp.float32) * weights), x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lookup_equals_take(case, make_mesh, shape):
    """The same vectors to the bit; the gradient's sums are taken in another order."""
    mesh = make_mesh(**shape)
    names = {"table": ("vocab", "embed"), "tokens": ("batch", "none"), "weights": ("batch",)}
    args = jax.device_put(case, tuple(sharding.shardings(mesh, names).values()))
    grad = jax.jit(jax.grad(summed_lookup, has_aux=True))
    want, vectors = grad(*case)
    np.testing.assert_array_equal(vectors, case[0][case[1]])
    with jax.set_mesh(mesh):
        got, placed = grad(*args)
        text = toy.text(grad.lower(*args).compile())
    np.testing.assert_array_equal(placed, vectors)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert got.sharding.is_equivalent_to(sharding.shardings(mesh, ("vocab", "embed")), 2)
    for made in hlo.collectives(text, mesh):
        assert made.kind in ("all-gather", "all-to-all", "all-reduce"), made.says()
        assert made.kind != "all-gather" or made.shapes[0][0] == "s32", made.says()


@pytest.mark.parametrize("shape", [{"data": 8}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_a_bfloat16_table_gets_exact_sums_on_every_mesh(make_mesh, shape):
    """A word that stands 4,096 times has 4,096 times the gradient of one: 256 in bfloat16 sums."""
    mesh = make_mesh(**shape)
    tokens, table = jnp.zeros((B, 512), jnp.int32), jnp.ones((V, D), jnp.bfloat16)

    def summed(table):
        return jnp.sum(collectives.lookup(table, tokens, jnp.bfloat16), dtype=jnp.float32)

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(summed))(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[0], 4096)
    assert not gradient[1:].any()


def test_lookup_casts_what_it_found(case):
    _, x = summed_lookup(*map(jnp.asarray, case), dtype=jnp.bfloat16)
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x, case[0][case[1]].astype(jnp.bfloat16))


def test_a_word_gets_the_float32_sum_of_its_uses_on_a_mesh(make_mesh):
    """Of 4,096 in bfloat16, all the same word; sums in bfloat16 end at 256."""
    tokens = jnp.zeros((B, 512), jnp.int32)
    with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
        run = lambda table: summed_lookup(table, tokens, 1.0, jnp.bfloat16)[0]  # noqa: E731
        gradient = jax.jit(jax.grad(run))(jnp.ones((V, D)))
    np.testing.assert_array_equal(gradient[0], tokens.size)
    assert not gradient[1:].any()


def test_the_smallest_part_crosses_data(make_mesh):
    """A gradient is divided over fsdp before it is summed over data."""
    mesh = make_mesh(data=2, fsdp=4)
    rows = jnp.ones((B, D))
    with jax.set_mesh(mesh):
        run = functools.partial(_reduced, over=collectives.token_axes())
        work = collectives.per_device(run, (("batch", "none"),), ("none", "embed"))
        text = toy.text(jax.jit(work).lower(rows).compile())
    crossing = [made for made in hlo.collectives(text, mesh) if "data" in made.axes]
    assert [made.shapes for made in crossing] == [[("f32", (D, D // 4))]]


def _reduced(rows, over):
    return collectives.reduced(rows.T @ rows, over, "none", "embed")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_parts(make_mesh, shape):
    """What a loss does over rows and words, with and without a mesh."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(B, V)).astype(np.float32)
    vectors = rng.normal(size=(B, D)).astype(np.float32)

    def run(scores, vectors, over):
        words = collectives.part("vocab") * scores.shape[1] + jnp.arange(scores.shape[1])
        peak = collectives.highest(jnp.max(scores, axis=1), "vocab")
        centre = collectives.summed(jnp.sum(scores * words[None], axis=1), "vocab")
        return peak, centre, collectives.reduced(scores.T @ vectors, over, "vocab", "embed")

    inputs = ("batch", "vocab"), ("batch", "none")
    outputs = ("batch",), ("batch",), ("vocab", "embed")
    mesh = make_mesh(**shape)
    with jax.set_mesh(mesh):
        run = functools.partial(run, over=collectives.token_axes())
        work = collectives.per_device(run, inputs, outputs)
        peak, centre, gradient = jax.jit(work)(scores, vectors)
    np.testing.assert_array_equal(peak, scores.max(axis=1))
    np.testing.assert_allclose(centre, scores @ np.arange(V), rtol=1e-4)
    np.testing.assert_allclose(gradient, scores.T @ vectors, rtol=1e-4, atol=1e-5)
    assert gradient.sharding.is_equivalent_to(sharding.shardings(mesh, ("vocab", "embed")), 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_replicas_add_up_once(make_mesh, shape):
    """A sum over turns of rows: the same number, and nothing crosses data while it is made."""
    rng = np.random.default_rng(2)
    kernel, rows = (rng.normal(size=size).astype(np.float32) for size in ((D, D), (4 * B, D)))

    def turns(kernel, rows):
        def add(total, x):
            x = sharding.constrain(jnp.tanh(x @ kernel), "batch", "none")
            return total + x.T @ x, None

        parts = rows.reshape(4, -1, D)
        return jax.lax.scan(add, jnp.zeros((D, D)), parts)[0]

    mesh = make_mesh(**shape)
    with jax.set_mesh(mesh):
        work = jax.jit(functools.partial(collectives.summed_at_the_end, turns))
        made = work.lower(kernel, rows).compile()
    np.testing.assert_allclose(made(kernel, rows), turns(kernel, rows), rtol=1e-4, atol=1e-4)
    hlo.assert_crosses_in_no_loop(made.as_text() or "", mesh, "data")
    with jax.set_mesh(mesh):
        program = jax.jit(turns).lower(kernel, rows).compile().as_text() or ""
    if mesh.shape["data"] > 1:
        with pytest.raises(AssertionError, match="crosses data in a loop"):
            hlo.assert_crosses_in_no_loop(program, mesh, "data")
