"""Moments in 8 bits: worked examples, bounds, and means that are right."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.training.optimizer import formats
from mllm_jax.training.optimizer.formats import Blocks

HIGH = jnp.uint32(0xFFFF)  # bits that round down


def stored(x, second, bits=HIGH):
    zeros = formats.zeros("int8", x.shape, second)
    return formats.stored_like(zeros, x, jnp.broadcast_to(bits, x.shape))


def test_worked_example_of_a_first_moment():
    """m = 8 (q / 127)^2: of 8, -2, 0.5, 0 the codes are 127, -63.5, 31.75, 0; here rounded down."""
    x = jnp.asarray([8.0, -2.0, 0.5] + [0.0] * 29)
    held = stored(x, second=False)
    assert held.codes.dtype == jnp.int8
    assert held.codes[:4].tolist() == [127, -63, 31, 0]
    assert held.largest.tolist() == [8.0]
    np.testing.assert_allclose(
        formats.dense(held)[:4], [8, -8 * (63 / 127) ** 2, 8 * (31 / 127) ** 2, 0], rtol=1e-6
    )
    # the smallest bits round up whatever is between two codes
    assert stored(x, False, jnp.uint32(0)).codes[:4].tolist() == [127, -64, 32, 0]


def test_worked_example_of_a_second_moment():
    """v = 16 (q / 255)^4: of 16, 1, 1e-9, 1e-30, 0 the codes are 255, 127.5, 1.3, 1, 0."""
    x = jnp.asarray([16.0, 1.0, 1e-9, 1e-30] + [0.0] * 28)
    held = stored(x, second=True)
    assert held.codes.dtype == jnp.uint8
    assert held.codes[:5].tolist() == [255, 127, 1, 1, 0]
    np.testing.assert_allclose(formats.dense(held)[1], 16 * (127 / 255) ** 4, rtol=1e-6)


@pytest.mark.parametrize("second", [False, True])
def test_errors_are_below_the_distance_of_two_codes_and_zero_on_average(second):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(4, 512)) * np.exp(rng.normal(size=(4, 512))))
    x = x * x if second else x
    size, last, power = 256, (255 if second else 127), (4 if second else 2)
    top = np.abs(x).reshape(4, -1, size).max(-1, keepdims=True)
    root = (np.abs(x).reshape(4, -1, size) / top) ** (1 / power) * last
    distance = top * ((np.floor(root) + 1) ** power - np.floor(root) ** power) / last**power
    total = np.zeros_like(x)
    for draw in range(256):  # the lower 16 bits in even steps
        error = np.asarray(formats.dense(stored(jnp.asarray(x), second, jnp.uint32(draw << 8))) - x)
        smallest = top / last**power * second  # a v above zero has the smallest code at least
        assert (
            np.abs(error).reshape(distance.shape) <= np.maximum(distance, smallest) * 1.001
        ).all()
        total += error
    large = (root > 2).reshape(x.shape)
    mean = np.abs(total / 256).reshape(distance.shape)[large.reshape(distance.shape)]
    assert (mean <= distance[large.reshape(distance.shape)] / 100).all()


def test_what_is_held_is_held_again():
    """A block's codes are those of the numbers they stand for, and zeros stay zeros."""
    codes = jnp.arange(256, dtype=jnp.uint8)
    held = Blocks(codes, jnp.asarray([3.0], jnp.float32))
    again = stored(formats.dense(held), True, jnp.uint32(0x8000))
    np.testing.assert_array_equal(again.codes, codes)
    empty = stored(jnp.zeros((2, 64)), True)
    assert not empty.codes.any() and not formats.dense(empty).any()


@pytest.mark.parametrize(
    ("last", "size"), [(4096, 256), (128, 128), (14336, 256), (48, 48), (577, None), (8, None)]
)
def test_blocks_divide_the_last_axis(last, size):
    assert formats.block_size((3, last)) == size


def test_small_arrays_stay_in_float32():
    assert formats.zeros("int8", (5, 8), second=True).dtype == jnp.float32
    assert formats.zeros("int8", (), second=True).dtype == jnp.float32


def test_scales_lie_like_the_codes_where_they_divide(make_mesh):
    mesh = make_mesh(fsdp=4, tensor=2)
    place = NamedSharding(mesh, P(None, "tensor", "fsdp"))
    held = formats.zeros("int8", (3, 4, 1024), second=True)
    assert formats.places(held, place).largest.spec == P(None, "tensor", "fsdp")
    held = formats.zeros("int8", (3, 4, 512), second=True)
    assert formats.places(held, place).largest.spec == P(None, "tensor", None)
