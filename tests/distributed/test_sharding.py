"""The mesh, the table logical axis -> mesh axis, and the refusals, on eight pretended devices."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import MeshConfig
from mllm_jax.distributed import sharding


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
    mesh = sharding.make_mesh((data, fsdp, tensor))
    assert mesh.axis_names == ("data", "fsdp", "tensor", "context")
    assert tuple(mesh.shape.values()) == (*sizes, 1)
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_a_mesh_over_some_of_the_devices():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(-1, -1, 1),
            "mesh: -1 is allowed at most once, got data=-1 fsdp=-1 tensor=1 context=1",
        ),
        (
            MeshConfig(-1, 3, 1),
            "mesh: 8 devices do not divide by 3 (data=-1 fsdp=3 tensor=1 context=1)",
        ),
        (MeshConfig(2, 2, 1), "mesh: data x fsdp x tensor x context = 4, but there are 8 devices"),
        (
            MeshConfig(4, 2, context=2),
            "mesh: data x fsdp x tensor x context = 16, but there are 8 devices",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config: MeshConfig, message: str):
    with pytest.raises(ConfigError) as error:
        sharding.make_mesh(config.axes)
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
    axis = sharding.TABLE[names[1]][0]
    with pytest.raises(ConfigError) as error:
        sharding.spec(names)
    message = f"sharding: {names[1]!r} of {names} is on mesh axis {axis}, which another"
    assert str(error.value).startswith(message)


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
    axes = {"language/embedding": ("vocab", "embed")}
    shapes = {"language/embedding": jax.ShapeDtypeStruct((103, 64), jnp.float32)}
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


def test_the_devices_keep_their_order_on_one_slice():
    mesh = sharding.make_mesh((2, 2, 2))
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert sharding.slow_links(mesh) is None


@dataclasses.dataclass(frozen=True)
class Device:
    """What of a device decides its place in the mesh."""

    id: int
    slice_index: int | None
    process_index: int = 0
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"
    core_on_chip: int = 0


def gpu_nodes(nodes: int, each: int) -> list[Device]:
    """Mixed up: what the runtime's order is must not matter."""
    made = [Device(i, i // each, i // each) for i in range(nodes * each)]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


def tpu_slices(slices: int, side: int) -> list[Device]:
    """Slices of side x side chips, four chips (2 x 2) to a host."""
    made = []
    for number in range(slices):
        for x in range(side):
            for y in range(side):
                host = number * (side // 2) ** 2 + x // 2 * (side // 2) + y // 2
                made.append(Device(len(made), number, host, (x, y, 0), "tpu", "TPU v6 lite"))
    return made


HARDWARE = {"gpu 4 x 4": gpu_nodes(4, 4), "tpu 2 x 16": tpu_slices(2, 4)}


@pytest.mark.parametrize(
    ("hardware", "sizes"),
    [
        ("gpu 4 x 4", (16, 1, 1)),
        ("gpu 4 x 4", (4, 4, 1)),
        ("gpu 4 x 4", (4, 2, 2)),
        ("gpu 4 x 4", (8, 2, 1)),
        ("tpu 2 x 16", (2, 16, 1)),
        ("tpu 2 x 16", (2, 4, 4)),
        ("tpu 2 x 16", (8, 2, 2)),
        ("tpu 2 x 16", (2, 8, 2)),
    ],
)
def test_data_alone_takes_the_slow_links(hardware, sizes):
    """A group of fsdp x tensor shares a slice, and slices follow one another along data."""
    devices = HARDWARE[hardware]
    placed = sharding.arrange(devices, *sizes)
    assert placed.shape == (*sizes, 1)
    assert {d.id for d in placed.flat} == {d.id for d in devices}
    numbers = [{device.slice_index for device in group.flat} for group in placed]
    assert all(len(group) == 1 for group in numbers)
    order = [min(group) for group in numbers]
    assert order == sorted(order)


def test_neighbours_of_a_tpu_slice_are_neighbours_in_its_torus():
    """tensor=4 is one line or one square of chips, not four from all over."""
    for group in sharding.arrange(tpu_slices(2, 4), 2, 4, 4).reshape(-1, 4):
        spread = np.ptp([device.coords for device in group], axis=0)
        assert sorted(spread) in ([0, 0, 3], [0, 1, 1])


def test_tensor_has_nearer_neighbours_than_context():
    """Four lines of a 4 x 4 torus: context between them, tensor along each."""
    placed = sharding.arrange(tpu_slices(1, 4), 1, 1, 4, 4)
    assert placed.shape == (1, 1, 4, 4)
    lines = [{d.coords[axis] for d in placed[0, 0, :, 0]} for axis in (0, 1)]
    assert sorted(map(len, lines)) == [1, 4]


def test_a_tpu_axis_may_be_split():
    """fsdp=8 is no product of a 4 x 4 torus's axes, and is laid out all the same."""
    assert sharding.arrange(tpu_slices(1, 4), 2, 8, 1).shape == (2, 8, 1, 1)


def test_fsdp_over_several_slices_is_laid_out_slice_by_slice_and_said():
    placed = sharding.arrange(gpu_nodes(4, 4), 1, 8, 2)
    assert [d.slice_index for d in placed.flat] == sorted(d.slice_index for d in placed.flat)
    assert all(len({d.slice_index for d in group}) == 1 for group in placed[0, :, :, 0])
    warning = sharding.slow_links(Mesh(placed, sharding.AXES))
    assert warning == (
        "mesh: fsdp=8 x tensor=2 is more than the 4 devices of a slice, so parameters cross the "
        "slow links in every layer; data=4 or a multiple would keep them inside"
    )
    inside = sharding.arrange(gpu_nodes(4, 4), 4, 2, 2)
    assert sharding.slow_links(Mesh(inside, sharding.AXES)) is None


@pytest.mark.parametrize(
    ("devices", "sizes", "message"),
    [
        (
            gpu_nodes(2, 4), (1, 1, 8),
            "mesh: tensor=8 does not divide the 4 devices of a slice (2 slices); give a divisor of "
            "4, and more fsdp instead",
        ),
        (
            gpu_nodes(2, 4), (1, 1, 2, 4),
            "mesh: tensor=2 x context=4 does not divide the 4 devices of a slice (2 slices); give "
            "a divisor of 4, and more fsdp instead",
        ),
        (
            sorted(gpu_nodes(2, 4), key=lambda d: d.id)[:6], (6, 1, 1),
            "mesh: the slices hold different numbers of devices: {0: 4, 1: 2}; give slices of one "
            "size",
        ),
    ],
)  # fmt: skip
def test_what_slices_cannot_hold_is_refused(devices, sizes, message):
    with pytest.raises(ConfigError) as error:
        sharding.arrange(devices, *sizes)
    assert str(error.value) == message


def processes(count: int, each: int) -> list[Device]:
    return [Device(i, None, i // each, platform="cpu") for i in range(count * each)]


@pytest.mark.parametrize(
    ("devices", "sizes", "rows", "expected"),
    [
        (processes(2, 4), (8, 1, 1), 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (processes(4, 2), (1, 4, 2), 8, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (processes(4, 2), (2, 2, 2), 4, [[0], [1], [2], [3]]),
        # a tensor group over two processes: both load its rows
        (processes(4, 2), (1, 2, 4), 4, [[0, 1], [0, 1], [2, 3], [2, 3]]),
        (processes(4, 1), (1, 1, 4), 3, [[0, 1, 2]] * 4),
        (processes(4, 1), (1, 2, 1, 2), 4, [[0, 1], [0, 1], [2, 3], [2, 3]]),  # a context group
        # hosts of a TPU hold squares of chips: their rows are not in one piece
        (
            tpu_slices(1, 4), (1, 16, 1), 16,
            [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
        ),
    ],
)  # fmt: skip
def test_rows_that_a_process_must_load(devices, sizes, rows, expected):
    mesh = Mesh(np.array(devices, object).reshape(*sizes, *[1] * (4 - len(sizes))), sharding.AXES)
    assert [sharding.rows_here(mesh, rows, i) for i in range(len(expected))] == expected


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
def test_rows_here_are_those_of_the_sharding(sizes):
    mesh = sharding.make_mesh(sizes)
    assert sharding.rows_here(mesh, 16) == list(range(16))
    places = sharding.batch_sharding(mesh).devices_indices_map((16,))
    for device, (index,) in places.items():
        alone = Mesh(
            np.vectorize(lambda d, own=device: Device(d.id, None, int(d == own)))(mesh.devices),
            sharding.AXES,
        )
        assert sharding.rows_here(alone, 16, 1) == list(range(16))[index]
