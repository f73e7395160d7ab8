"""The asserts on compiled programs see what they should: they fire on deliberately bad programs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.common.errors import RunError
from mllm_jax.distributed import sharding
from tests.support import hlo
from tests.training import toy

AXES = {"data", "fsdp", "tensor"}
L, D, F, V = 3, 16, 40, 208
PARAMS = {
    "language/embedding": jax.ShapeDtypeStruct((V, D), jnp.float32),
    "language/layers/mlp/up/kernel": jax.ShapeDtypeStruct((L, D, F), jnp.float32),
}
KERNEL = ("layers", "embed", "mlp")


@pytest.fixture
def mesh(make_mesh):
    return make_mesh(data=2, fsdp=2, tensor=2)


def text(mesh, function, *arguments):
    """The compiled program; arguments are (shape, logical names)."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, sharding.spec(names)))
        for shape, names in arguments
    ]
    with jax.set_mesh(mesh):
        return toy.text(jax.jit(function).lower(*shapes).compile())


@pytest.mark.parametrize(
    "axes", [{"data"}, {"fsdp"}, {"tensor"}, {"data", "fsdp"}, {"data", "tensor"}, AXES], ids=sorted
)
@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "all-to-all", "reduce-scatter"])
def test_reads_which_axes_a_collective_crosses(mesh, axes, kind):
    names = tuple(axis for axis in mesh.axis_names if axis in axes)
    run = {
        "all-reduce": lambda x: jax.lax.psum(x, names),
        "all-gather": lambda x: jax.lax.all_gather(x, names, tiled=True),
        "all-to-all": lambda x: jax.lax.all_to_all(x, names, 0, 1, tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, names, tiled=True),
    }[kind]
    apart = functools.partial(jax.shard_map, in_specs=P(), out_specs=P(), check_vma=False)
    made = hlo.collectives(text(mesh, apart(run), ((8, 24), ("none", "none"))), mesh)
    assert {one.kind for one in made} == {kind}
    assert {one.axes for one in made} == {frozenset(axes)}


def test_reads_a_permutation(mesh):
    def turn(x):
        return jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])

    apart = jax.shard_map(turn, in_specs=P(), out_specs=P(), check_vma=False)
    (made,) = hlo.collectives(text(mesh, apart, ((8, 24), ("none", "none"))), mesh)
    assert (made.kind, made.axes, made.shapes) == (
        "collective-permute", {"fsdp"}, [("f32", (8, 24))],
    )  # fmt: skip


def entry(instruction):
    """A program of one instruction."""
    return (
        f"ENTRY %main (y: f32[8,4]) -> f32[8,4] {{\n  ROOT %x.1 = f32[8,4]{{1,0}} {instruction}\n}}"
    )


@pytest.mark.parametrize(
    ("line", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", {"tensor"}),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", {"data"}),
        ("replica_groups=[4,2]<=[8]", {"tensor"}),
        ("replica_groups=[4,2]<=[4,2]T(1,0)", {"fsdp"}),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", {"data", "tensor"}),
        ("replica_groups=[1,8]<=[8]", AXES),
        ("replica_groups={}", AXES),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", {"fsdp"}),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", {"data", "fsdp"}),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", {"tensor"}),
        ("source_target_pairs={{0,0},{1,2},{2,1},{3,3}}", {"fsdp", "tensor"}),
    ],
)
def test_reads_every_way_of_writing_groups(mesh, line, axes):
    (made,) = hlo.collectives(entry(f"all-reduce(%y), {line}, metadata={{}}"), mesh)
    assert made.axes == axes


def test_an_unknown_way_of_writing_groups_is_no_pass(mesh):
    with pytest.raises(RunError, match="in a way that is not known"):
        hlo.collectives(entry("all-reduce(%y), replica_groups=new"), mesh)


def layers(kernel, x):
    """A scan over layers: what is allowed is one layer's slice, gathered in the loop."""
    return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w) @ w.T, None), x, kernel)[0]


def whole_first(kernel, x):
    return layers(sharding.constrain(kernel, "none", "none", "mlp"), x)


def rows_everywhere(kernel, x):
    return layers(kernel, sharding.constrain(jnp.sin(x), "none", "none"))


def over_tensor(kernel, x):
    def body(h, w):
        w = sharding.constrain(w, "none", "none")
        return h + jnp.tanh(h @ w) @ w.T, None

    return jax.lax.scan(body, x, kernel)[0]


@pytest.mark.parametrize(
    ("function", "bad"),
    [(layers, None), (whole_first, "3, 16, 20"), (rows_everywhere, "8, 16"), (over_tensor, "40")],
)
def test_gathers(mesh, function, bad):
    program = text(mesh, function, ((L, D, F), KERNEL), ((8, D), ("batch", "none")))
    assert "all-gather" in program
    if bad is None:
        hlo.assert_gathers_one_layer_at_most(program, mesh, PARAMS)
    else:
        with pytest.raises(AssertionError, match=f"gathered:\n.*{bad}"):
            hlo.assert_gathers_one_layer_at_most(program, mesh, PARAMS)


@pytest.mark.parametrize(
    "names", [("batch", "vocab"), ("none", "vocab"), ("batch", "none"), ("none", "none")]
)
def test_logits(mesh, names):
    def scores(hidden, table):
        logits = sharding.constrain(hidden @ table.T, *names)
        return jax.nn.logsumexp(logits, axis=-1)

    args = ((4 * 33, D), ("batch", "none")), ((V, D), ("vocab", "none"))
    program = text(mesh, scores, *args)
    if names == ("batch", "vocab"):
        hlo.assert_logits_are_shared(program, mesh, 4, 33, V)
    else:
        with pytest.raises(AssertionError, match=r"where a share of the logits has 3432"):
            hlo.assert_logits_are_shared(program, mesh, 4, 33, V)


def gradient(kernel, x):
    return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(kernel)


def gradient_of_all_rows(kernel, x):
    return gradient(kernel, sharding.constrain(jnp.sin(x), "none", "none"))


@pytest.mark.parametrize("function", [gradient, gradient_of_all_rows])
def test_what_crosses_data(mesh, function):
    kernel = {"language/layers/mlp/up/kernel": jnp.zeros((1, D, F))}
    program = text(mesh, function, ((D, F), ("embed", "mlp")), ((24, D), ("batch", "none")))
    if function is gradient:
        assert any("data" in made.axes for made in hlo.collectives(program, mesh))
        hlo.assert_only_gradients_cross(program, mesh, "data", kernel)
    else:
        with pytest.raises(AssertionError, match=r"crosses data:\nall-gather .*24, 16"):
            hlo.assert_only_gradients_cross(program, mesh, "data", kernel)
