"""Creates a state: dtypes, shardings, no moments for what is frozen, clear refusals."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.training import state
from tests.training import toy

MIXED = ComputeConfig(compute="bfloat16", parameters="float32")


def test_dtypes_by_part():
    dtypes = state.param_dtypes(toy.abstract_params(), toy.ALIGN, MIXED)
    for path, leaf in dtypes.items():
        assert leaf.dtype == (jnp.float32 if path.startswith("connector") else jnp.bfloat16), path
        assert leaf.shape == toy.SHAPES[path]


def test_frozen_leaves_have_no_moments():
    _, abstract = toy.make_setup(toy.ALIGN, MIXED)
    trainable = sum(x.size for x in jax.tree.leaves(abstract.trainable))
    moments = jax.tree.leaves(abstract.opt_state)
    assert trainable == toy.D * toy.D + toy.D
    assert sum(x.size for x in moments if x.ndim) == 2 * trainable
    assert sum(x.ndim == 0 for x in moments) == 1  # Adam's count
    assert all(x.dtype == jnp.float32 for x in moments if x.ndim)
    assert set(abstract.params) == set(toy.SHAPES)


TABLE = {  # on fsdp=4, tensor=2
    "language/embedding": P("tensor", "fsdp"),
    "language/head/kernel": P("tensor", "fsdp"),
    "language/mlp/up/kernel": P("fsdp", "tensor"),
    "language/mlp/down/kernel": P("tensor", "fsdp"),
    "connector/linear_1/kernel": P(None, "fsdp"),
    "connector/linear_1/bias": P("fsdp"),
}


@pytest.mark.parametrize("parts", [toy.ALL, toy.ALIGN])
def test_created_by_the_table(make_mesh, parts):
    """Every array's sharding, and the bytes on each device, are those of the table; moments too."""
    made, abstract = toy.make_setup(parts, MIXED)
    created, places = toy.create_state(made, abstract, make_mesh(fsdp=4, tensor=2))
    for tree in (created.params, places.params):
        for path, leaf in tree.items():
            spec = getattr(leaf, "sharding", leaf).spec
            assert spec == TABLE[path], path
    for moments in (created.opt_state.mu, created.opt_state.nu):
        for path, leaf in moments.items():
            assert leaf.sharding.spec == TABLE[path], path
            assert leaf.dtype == jnp.float32
            assert not leaf.any()
    for leaf in jax.tree.leaves((created.params, created.opt_state)):
        if leaf.ndim == 2 and leaf.sharding.spec != P(None, "fsdp"):
            assert all(shard.data.size == leaf.size // 8 for shard in leaf.addressable_shards)
    assert int(created.step) == 0
    assert created.step.dtype == jnp.int32


def test_moments_are_never_made_whole(make_mesh):
    """The program that makes the moments allocates one device's shards and nothing on top."""
    made, abstract = toy.make_setup()
    places = state.state_shardings(make_mesh(fsdp=4, tensor=2), abstract, toy.AXES)
    init = jax.jit(made.init, in_shardings=(places.trainable,), out_shardings=places.opt_state)
    memory = toy.memory(init.lower(abstract.trainable).compile())
    whole = sum(4 * x.size for x in jax.tree.leaves(abstract.opt_state))
    assert memory.output_size_in_bytes < whole / 3
    assert memory.temp_size_in_bytes == 0


def test_a_single_trainable_leaf_is_placed_too(make_mesh):
    """Its dict is like Adam's own containers could be: structure decides, not luck."""
    parts = {
        "bias": toy.PartConfig(".*bias"),
        "rest": toy.PartConfig("(?!.*bias).*", train=False),
    }
    _, abstract = toy.make_setup(parts)
    places = state.state_shardings(make_mesh(fsdp=8), abstract, toy.AXES)
    assert places.opt_state.mu["connector/linear_1/bias"].spec == P("fsdp")
    assert places.opt_state.count.spec == P()


def test_refuses_dimensions_that_do_not_divide(make_mesh):
    _, abstract = toy.make_setup()
    abstract.trainable["connector/linear_1/bias"] = jax.ShapeDtypeStruct((9,), "float32")
    with pytest.raises(ConfigError, match=r"bias.*embed=9"):
        state.state_shardings(make_mesh(fsdp=8), abstract, toy.AXES)


def test_refuses_axes_of_other_parameters(make_mesh):
    _, abstract = toy.make_setup()
    axes = {path: names for path, names in toy.AXES.items() if path != "language/embedding"}
    with pytest.raises(ValueError, match=r"missing 1 \(language/embedding\)"):
        state.state_shardings(make_mesh(fsdp=8), abstract, axes)


def test_refuses_parameters_of_another_model(make_mesh):
    made, abstract = toy.make_setup()
    mesh = make_mesh(fsdp=8)
    created, places = toy.create_state(made, abstract, mesh)

    def attempt(**changes):
        changed = {**created.params, **{path.replace(".", "/"): x for path, x in changes.items()}}
        params = {path: leaf for path, leaf in changed.items() if leaf is not None}
        return state.create_state(params, made, abstract, places)

    bias = created.params["connector/linear_1/bias"]
    with pytest.raises(ValueError, match=r"missing 1 \(connector/linear_1/bias\)"):
        attempt(**{"connector.linear_1.bias": None})
    with pytest.raises(ValueError, match=r"extra 1 \(connector/lora\)"):
        attempt(**{"connector.lora": bias})
    with pytest.raises(ValueError, match=r"misshapen 1 \(connector/linear_1/bias is \[7\]"):
        attempt(**{"connector.linear_1.bias": bias[:7]})
    with pytest.raises(ValueError, match=r"bias is bfloat16\[8\].*expected float32\[8\]"):
        attempt(**{"connector.linear_1.bias": bias.astype(jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"do not fit the state: .*bias is float32\[8\] on "):
        attempt(**{"connector.linear_1.bias": jax.device_put(bias, jax.devices()[0])})
    assert attempt().params.keys() == created.params.keys()
