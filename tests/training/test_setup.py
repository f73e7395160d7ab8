"""The whole step on eight devices: the numbers of one device, and a program without waste."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.distributed import sharding
from mllm_jax.models import axes
from mllm_jax.training import setup, state
from tests.support import hlo, packed

SHAPES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4 x tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
# two rows a device when eight share them: devices of text only beside devices of images only
KINDS = {
    "mixed": "ttbbiittbibttbii",
    "halves": "ttttttttiiiiiiii",
    "text": "t" * 16,
    "images": "i" * 16,
}


STAGES = ["align", "instruct", "lora", "dora"]
ALL_AXES = "data 2 x fsdp 2 x tensor 2"
QUICK = {
    ("fsdp 4 x tensor 2", "align", 1),
    (ALL_AXES, "instruct", 2),  # adapters: test_mixed_rows
}
# every mesh, stage and number of microbatches; compiling them all takes minutes
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [*itertools.product(SHAPES, STAGES, (1, 2)), (ALL_AXES, "int8", 2)]
]


@pytest.fixture
def mesh(shape, make_mesh):
    return make_mesh(**SHAPES[shape])


def assert_same_gradient(got, want):
    """Within 1e-5 of each parameter's largest gradient: float32, sums taken in another order."""
    assert got.keys() == want.keys()
    for path, one in got.items():
        other = want[path]
        if path.endswith("attention/k/bias"):  # softmax does not feel it: noise around zero
            assert max(np.abs(one).max(), np.abs(other).max()) < 1e-7, path
            continue
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), path


@pytest.mark.parametrize(
    ("shape", "stage", "microbatches"),
    [*CASES, pytest.param(ALL_AXES, "siglip", 2, marks=pytest.mark.slow)],
)
def test_eight_devices_equal_one(mesh, make_mesh, stage, microbatches):
    """Losses, sums and gradients of packed rows, with and without images; one program for all."""
    one = packed.compiled(stage, make_mesh(devices=1), 1)
    many = packed.compiled(stage, mesh, microbatches)
    for seed, kinds in enumerate(KINDS.values()):
        batch = packed.batch(kinds, stage, seed)
        want, want_gradient, _ = one.first_step(batch)
        got, gradient, _ = many.first_step(batch)
        for name, value in got.items():
            assert np.all(np.isfinite(value)), f"{kinds} {name}"
            np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=f"{kinds} {name}")
        assert_same_gradient(gradient, want_gradient)


@pytest.mark.parametrize(("shape", "stage", "microbatches"), CASES)
def test_program(mesh, stage, microbatches):
    made = packed.compiled(stage, mesh, microbatches)
    abstract = made.setup.abstract
    hlo.assert_gathers_one_layer_at_most(made.text, mesh, abstract.params)
    rows = packed.ROWS // microbatches
    if stage != "int8":  # its tables are larger than a chunk's logits
        hlo.assert_logits_are_shared(made.text, mesh, rows, packed.CHUNK, packed.V)
    used = jax.eval_shape(made.setup.optimizer.used, abstract.trainable)  # layers with gradients
    hlo.assert_only_gradients_cross(made.text, mesh, "data", used)
    if microbatches > 1:
        hlo.assert_crosses_in_no_loop(made.text, mesh, "data")


def test_a_kernel_of_the_decoder_is_gathered_once_for_each_pass(make_mesh):
    """Over fsdp, and left divided over tensor: what the backward pass gathers serves its products.

    Microbatches are a loop around the layers' loop: there it shows.
    """
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    made = packed.compiled("instruct", mesh, 2)
    places = made.setup.shardings.trainable
    expected: Counter[tuple[int, ...]] = Counter()
    for path, leaf in made.setup.abstract.trainable.items():
        if path.startswith("language/layers/") and path.endswith("/kernel"):
            axes = (*places[path].spec, *[None] * leaf.ndim)[1:]
            sizes = zip(leaf.shape[1:], axes, strict=False)
            shape = tuple(n // 2 if axis == "tensor" else n for n, axis in sizes)
            expected[tuple(n for n in shape if n > 1)] += 2
    assert expected.total() == 2 * 7
    gathers = [x for x in hlo.collectives(made.text, mesh) if x.kind == "all-gather"]
    found = Counter(shape for x in gathers for _, shape in x.shapes)
    assert {shape: found[shape] for shape in expected} == expected


def test_a_matrix_in_int8_is_gathered_as_it_is_held(make_mesh):
    """Its numbers and scales cross, a layer at a time, forward and backward; nothing wider does."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    made = packed.compiled("int8", mesh, 2)
    kernels = {p: x for p, x in made.setup.abstract.frozen.items() if x.dtype == np.int8}
    assert len(kernels) == 7
    shapes = []
    for path, leaf in kernels.items():
        spec = (*made.setup.shardings.frozen[path].spec, *[None] * leaf.ndim)
        sizes = [
            n // 2 if axis == "tensor" else n for n, axis in zip(leaf.shape, spec, strict=False)
        ]
        shapes.append(tuple(n for n in sizes[1:] if n > 1))
    gathers = [x for x in hlo.collectives(made.text, mesh) if x.kind == "all-gather"]
    found = Counter(pair for x in gathers for pair in x.shapes)
    for shape, count in Counter(shapes).items():
        assert found["s8", shape] == 2 * count, shape
        assert not any(found[dtype, shape] for dtype in ("f32", "bf16")), shape


def test_a_frozen_tower_is_not_copied(make_mesh):
    """Its used layers are taken one by one from the whole stack: no array holds just these."""
    made = packed.compiled("instruct", make_mesh(devices=1), 1)
    frozen = made.setup.abstract.frozen
    stacks = [x for p, x in frozen.items() if p.startswith("vision/layers/") and "kernel" in p]
    shapes = {shape for _, shape in hlo.shapes(made.text)}
    assert packed.MODEL.vision is not None
    used = packed.MODEL.vision.used_layers
    assert used == 5
    assert any(leaf.shape in shapes for leaf in stacks)
    assert not {(used, *leaf.shape[1:]) for leaf in stacks} & shapes


def test_rows_without_images_teach_the_connector_nothing(make_mesh):
    """All-text rows on every device, and pixels in slots that no row names: exactly zero."""
    made = packed.compiled("instruct", make_mesh(data=2, fsdp=2, tensor=2), 2)
    batch = packed.batch(KINDS["text"], "instruct")
    _, gradient, _ = made.first_step(batch._replace(pixels=np.full_like(batch.pixels, 77)))
    assert not any(np.any(x) for path, x in gradient.items() if path.startswith("connector/"))
    assert np.any(gradient["language/embedding"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_master_copies_lie_like_their_parameters(mesh, stage):
    """Every leaf of the real stage, planned and created: its table row's place, and only its share.

    In bfloat16 with float32 master copies, as large stages run.
    """
    made = packed.make_setup(stage, mesh, ComputeConfig(compute="bfloat16"))
    cast = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), packed.drawn(stage), made.params)
    params = jax.device_put(cast, made.shardings.params)
    created = state.create_state(params, made.optimizer, made.abstract, made.shardings)
    names = axes.logical_axes(made.abstract.params)
    adam = created.opt_state
    trained = created.trainable.keys()
    assert trained == adam.mu.keys() == adam.nu.keys()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(created.frozen)} == {"bfloat16"}
    for tree in (created.trainable, adam.mu, adam.nu):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"float32"}
    for tree in (created.params, adam.mu, adam.nu):
        places = sharding.shardings(mesh, names)
        for path, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(places[path], leaf.ndim), path
            share = leaf.size // np.prod([sharding.ways(mesh, name) for name in names[path]])
            assert {shard.data.size for shard in leaf.addressable_shards} == {share}, path
    rest = [x for x in jax.tree.leaves((created.step, created.opt_state)) if x.ndim == 0]
    assert len(rest) == 2  # the step and Adam's count
    everything = jax.tree.leaves(created)
    assert len(everything) == len(created.params) + 2 * len(trained) + len(rest)


def test_sizes_that_do_not_divide_are_refused_with_the_numbers(make_mesh):
    with pytest.raises(ConfigError) as error:
        packed.make_setup("align", make_mesh(data=2, tensor=4))
    assert str(error.value) == (
        "mesh: language/layers/attention/k/kernel has kv_heads=2, which does not divide over "
        "4 devices (mesh {'data': 2, 'fsdp': 1, 'tensor': 4, 'context': 1}); give tensor a size "
        "that divides it"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_is_placed_row_by_row(mesh):
    batch = packed.batch(KINDS["mixed"], "instruct")
    placed = setup.shard_batch(batch, mesh)
    parts = sharding.ways(mesh, "batch")
    assert (placed.partners, placed.spans) == (None, None), "a batch without pairs"
    for name, whole in batch._asdict().items():
        if whole is None:
            continue
        got = getattr(placed, name)
        np.testing.assert_array_equal(got, whole)
        assert got.sharding == sharding.batch_sharding(mesh)
        for shard in got.addressable_shards:
            assert shard.data.shape[0] == packed.ROWS // parts
