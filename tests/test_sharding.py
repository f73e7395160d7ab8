"""The mesh, the table logical axis -> mesh axis, and the refusals, on eight pretended devices."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax import sharding
from mllm_jax.config import MeshConfig
from mllm_jax.errors import ConfigError


def test_eight_devices_are_pretended():
    assert len(jax.devices()) == 8 or jax.default_backend() == "gpu"


def test_shapes_and_types_are_checked_in_tests():
    # the pytest option --jaxtyping-packages is on: a wrong argument never passes unseen
    with pytest.raises(jaxtyping.TypeCheckError):
        sharding.spec(5)  # pyright: ignore[reportArgumentType]


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.add(jnp.ones((2, 3)), jnp.ones(3))


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "sizes"),
    [
        (-1, 1, 1, (8, 1, 1)),
        (1, -1, 1, (1, 8, 1)),
        (1, 1, -1, (1, 1, 8)),
        (2, -1, 2, (2, 2, 2)),
        (-1, 4, 2, (1, 4, 2)),
        (2, 2, 2, (2, 2, 2)),
        (8, 1, 1, (8, 1, 1)),
    ],
)
def test_mesh_sizes(data: int, fsdp: int, tensor: int, sizes: tuple[int, ...]):
    mesh = sharding.make_mesh(MeshConfig(data, fsdp, tensor))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == sizes
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_a_mesh_over_some_of_the_devices():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(-1, -1, 1), "mesh: -1 stands at most once, got data=-1 fsdp=-1 tensor=1"),
        (MeshConfig(0, 1, 1), "mesh: sizes must be positive or -1, got [0, 1, 1]"),
        (MeshConfig(-2, 1, 1), "mesh: sizes must be positive or -1, got [-2, 1, 1]"),
        (
            MeshConfig(-1, 3, 1),
            "mesh: 8 devices do not divide by 3 (data, fsdp, tensor = [-1, 3, 1])",
        ),
        (MeshConfig(2, 2, 1), "mesh: data x fsdp x tensor = 4, but there are 8 devices"),
        (MeshConfig(4, 4, 1), "mesh: data x fsdp x tensor = 16, but there are 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config: MeshConfig, message: str):
    with pytest.raises(ConfigError) as error:
        sharding.make_mesh(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("layers", "embed", "mlp"), P(None, "fsdp", "tensor")),
        (("layers", "mlp", "embed"), P(None, "tensor", "fsdp")),
        (("layers", "embed", "heads", "head_dim"), P(None, "fsdp", "tensor", None)),
        (("layers", "embed", "kv_heads", "head_dim"), P(None, "fsdp", "tensor", None)),
        (("vocab", "embed"), P("tensor", "fsdp")),
        (("batch", "length"), P(("data", "fsdp"), None)),
        (("none",), P(None)),
        ((), P()),
    ],
)
def test_the_table(names: tuple[str, ...], expected: P):
    assert sharding.spec(names) == expected


def test_the_table_names_only_axes_of_the_mesh():
    assert {axis for axes in sharding.TABLE.values() for axis in axes} <= set(sharding.AXES)


def test_a_typing_slip_is_an_error():
    with pytest.raises(KeyError, match="embd"):
        sharding.spec(("layers", "embd"))


@pytest.mark.parametrize(
    "names", [("heads", "mlp"), ("embed", "embed"), ("batch", "embed"), ("vocab", "kv_heads")]
)
def test_two_dimensions_on_one_mesh_axis_are_an_error(names: tuple[str, ...]):
    with pytest.raises(AssertionError, match="want mesh axis"):
        sharding.spec(names)


def test_shardings_keep_the_tree(make_mesh):
    mesh = make_mesh(fsdp=4, tensor=2)
    made = sharding.shardings(mesh, {"a": {"kernel": ("embed", "mlp")}, "b": ()})
    assert made == {
        "a": {"kernel": NamedSharding(mesh, P("fsdp", "tensor"))},
        "b": NamedSharding(mesh, P()),
    }


def test_a_laid_out_array_holds_its_numbers_and_each_device_its_part(make_mesh):
    mesh = make_mesh(fsdp=4, tensor=2)
    values = np.arange(8 * 6.0).reshape(8, 6)
    placed = jax.device_put(values, sharding.shardings(mesh, ("embed", "mlp")))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed, values)


def test_dimensions_that_divide_pass(make_mesh):
    axes = {"a": ("embed", "mlp"), "b": ("none",)}
    shapes = {"a": np.zeros((8, 6)), "b": np.zeros(5)}
    sharding.check_divides(make_mesh(fsdp=4, tensor=2), axes, shapes)


def test_a_dimension_that_does_not_divide_is_named(make_mesh):
    axes = {"language": {"embedding": ("vocab", "embed")}}
    shapes = {"language": {"embedding": jax.ShapeDtypeStruct((103, 64), jnp.float32)}}
    with pytest.raises(ConfigError) as error:
        sharding.check_divides(make_mesh(fsdp=4, tensor=2), axes, shapes)
    message = str(error.value)
    for part in ("language", "embedding", "vocab=103", "2 devices", "'fsdp': 4"):
        assert part in message
    assert "\n" not in message


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((4, 2))
    assert sharding.constrain(x, "batch", "length") is x


def test_constrain_lays_out_under_a_mesh(make_mesh):
    # `with mesh:` is the old way, under which a constraint silently does nothing: jax.set_mesh
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        made = jax.jit(lambda x: sharding.constrain(x * 2, "batch", "length", "mlp"))(
            jnp.ones((8, 3, 4))
        )
    assert made.sharding.spec == P(("data", "fsdp"), None, "tensor")
    assert {shard.data.shape for shard in made.addressable_shards} == {(2, 3, 2)}


def test_a_batch_is_spread_over_data_and_fsdp(make_mesh):
    rows = jax.device_put(
        np.zeros((8, 5, 3)), sharding.batch_sharding(make_mesh(fsdp=4, tensor=2, data=1))
    )
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 5, 3)}


def test_per_device_gives_what_the_whole_gives(make_mesh):
    names = ("batch", "length", "heads", "head_dim")

    def run(x: jax.Array) -> jax.Array:
        return jnp.cumsum(x, axis=1)

    x = jnp.arange(8 * 3 * 4 * 2.0).reshape(8, 3, 4, 2)
    assert sharding.per_device(run, (names,), names) is run
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        made = jax.jit(lambda x: sharding.per_device(run, (names,), names)(x))(x)
    np.testing.assert_array_equal(made, run(x))
