"""The whole step in bfloat16: no sum over rows or devices loses anything; in float32: no product.

The reference of a bfloat16 gradient has the same bfloat16 values everywhere (activations and
their gradients), and every sum of them exact: what a sum loses while it is added up is all that can
differ. See `exact_sums`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.config.stage import ComputeConfig
from mllm_jax.generation import programs as generation
from mllm_jax.models import mllm
from mllm_jax.training import step
from mllm_jax.training.setup import apply_of
from tests.support import hlo, sums
from tests.support.exact_sums import SUMS, equations

# its true gradient is zero (softmax does not feel it), so all of it is rounding noise
NOISE = "vision/layers/attention/k/bias"
MESHES = {
    "one device": {"devices": 1},
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
QUICK = {("one device", 1, "float32", False)}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [
        *itertools.product(MESHES, (1, 4), ("float32", "bfloat16"), (False,)),
        ("data 2 x fsdp 2 x tensor 2", 4, "bfloat16", True),
    ]
    if not (case[0] in ("data 8", "fsdp 8") and case[1] == 4)  # 16 rows have no 32 parts
]


@pytest.mark.parametrize(("shape", "microbatches", "parameters", "tied"), CASES)
def test_bfloat16_gradients_are_those_of_exact_sums(
    make_mesh, shape, microbatches, parameters, tied
):
    """Every leaf within 0.5 %; in bfloat16 sums biases are 1 to 8 % off, frequent words 17 %."""
    formats = sums.compute(parameters=parameters)
    got = sums.gradient(make_mesh(**MESHES[shape]), formats, microbatches, tied)
    want = sums.reference(tied)
    assert set(want) - set(got) == {"vision/post_norm/bias", "vision/post_norm/scale"}
    for path in got.keys() - {NOISE}:
        exact = want[path][: len(got[path])]  # of the tower's layers, those that are used
        error = np.linalg.norm(got[path] - exact) / np.linalg.norm(exact)
        assert error < 0.005, f"{path}: {error:.4f}"


def step_of(made: Any, microbatches: int) -> Any:
    formats, places = made.model.compute, made.shardings
    return step.make_train_step(
        apply_of(made.model),
        made.optimizer,
        microbatches,
        sums.CHUNK,
        1,
        1,
        places,
        jnp.dtype(formats.reduce),
    )


def traced(made: Any, microbatches: int = 2) -> list[Any]:
    """The equations of the real step."""
    with jax.set_mesh(made.mesh):
        program = jax.make_jaxpr(step_of(made, microbatches))(made.abstract, sums.batch())
    return list(equations(program.jaxpr))


@pytest.mark.parametrize("parameters", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_sum_over_rows_or_microbatches_is_taken_in_bfloat16(make_mesh, parameters, remat):
    made = sums.make_setup(make_mesh(devices=1), sums.compute(parameters=parameters, remat=remat))
    weights = {leaf.shape for leaf in jax.tree.leaves(made.abstract.params) if leaf.ndim > 1}
    taken = 0
    for equation in traced(made):
        if not equation.outvars:
            continue
        name, out = equation.primitive.name, equation.outvars[0].aval
        taken += name in SUMS
        if out.dtype != jnp.bfloat16:
            continue
        # the looked-up vectors of a word, of which one device has the only one
        lookup = name.startswith("psum") and out.shape[-1] == 24 and len(out.shape) == 3
        assert name not in SUMS or lookup, equation
        assert not (name in ("add", "add_any") and out.shape in weights), equation
    assert taken > 30


def products(program: Any) -> Iterator[Any]:
    for equation in equations(program.jaxpr):
        if equation.primitive.name == "dot_general":
            yield equation


def programs(compute: ComputeConfig, mesh: Any) -> dict[str, Any]:
    """The step of train, bench and preflight; of evaluate; and of generate: as JAX traces them."""
    made = sums.make_setup(mesh, compute)
    model, batch = made.model, sums.batch()
    evaluated = step.make_eval_step(apply_of(model), sums.CHUNK, 1, 1)
    wanted = jax.eval_shape(
        lambda: generation.Request(
            jnp.ones(sums.ROWS, bool),
            jnp.int32(2),
            jnp.zeros(1, jnp.int32),
            jnp.ones(()),
            jax.random.key(0),
            jnp.zeros(sums.ROWS, jnp.int32),
        )
    )

    def answer(params: Any, batch: Any, request: Any) -> Any:
        squares = batch.pixels.reshape(-1, *batch.pixels.shape[2:])
        slots = jnp.arange(len(squares)).reshape(batch.pixels.shape[:2])
        vectors = generation.gather(generation.encode(model, params, squares), slots)
        inputs, size = batch.inputs, batch.tokens.shape[1] + 2
        begun = generation.prefill(model, size, params, inputs, vectors)
        places = batch.positions[:, :8]
        scores = generation.score(model, params, inputs, vectors, places, places)
        return generation.decode(model, True, 2, params, *begun, request), scores

    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, compute.compute), mllm.abstract_params(model)
    )
    with jax.set_mesh(mesh):
        return {
            "train": jax.make_jaxpr(step_of(made, 2))(made.abstract, batch),
            "evaluate": jax.make_jaxpr(evaluated)(made.abstract.params, batch),
            "generate": jax.make_jaxpr(answer)(params, batch, wanted),
        }


@pytest.mark.parametrize(
    "attention", ["dense", pytest.param("blocks", marks=pytest.mark.slow), "auto"]
)
def test_products_are_as_exact_as_their_format(make_mesh, attention):
    """float32: HIGHEST, or GPUs and TPUs would round the factors; bfloat16: nothing dearer."""
    mesh = make_mesh(devices=1)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for parameters in ("float32", "bfloat16"):
        exact = sums.compute(compute="float32", parameters=parameters, attention=attention)
        for name, program in programs(exact, mesh).items():
            chosen = [equation.params["precision"] for equation in products(program)]
            assert len(chosen) > 10, name
            assert set(chosen) == {highest}, name
    for name, program in programs(sums.compute(attention=attention), mesh).items():
        chosen = {equation.params["precision"] for equation in products(program)}
        assert chosen == {None}, name


def crossing(mesh: Any, reduce: str, tmp_path: Any) -> dict[str, set[int]]:
    """dtype -> sizes of what is summed between devices, before a CPU makes float32 of it all."""
    made = sums.make_setup(mesh, sums.compute(reduce=reduce))
    folder = tmp_path / reduce
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    sums.lowered(made, 1).compile(options)
    (file,) = folder.glob("*jit_train_step*after_spmd-partitioning*")
    sizes: dict[str, set[int]] = {"f32": set(), "bf16": set()}
    for found in hlo.collectives(file.read_text(), mesh):
        if found.kind in ("all-reduce", "reduce-scatter"):
            for dtype, shape in found.shapes:
                sizes[dtype].add(int(np.prod(shape)))
    return sizes


@pytest.mark.slow
def test_reduce_says_in_which_format_gradients_cross_devices(make_mesh, tmp_path):
    """Kernels and tables; biases and norms, which are small, always cross in float32."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    whole, half = (crossing(mesh, name, tmp_path) for name in ("float32", "bfloat16"))
    gate = 24 * 56 // 2  # a layer's kernel, its feed-forward width over `tensor`
    assert gate in whole["f32"]
    assert gate not in whole["bf16"]
    assert gate in half["bf16"]
    assert gate not in half["f32"]
    table = sums.V * 24 // 4
    assert table in whole["f32"] - whole["bf16"]
    assert table in half["bf16"] - half["f32"]
    assert 24 in half["f32"]  # a norm's scale
