"""The whole step on eight devices: the numbers of one device, and a program without waste."""

import jax
import numpy as np
import pytest

from mllm_jax.trees import flatten
from tests import hlo, packed

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


@pytest.fixture(params=SHAPES)
def mesh(request, make_mesh):
    return make_mesh(**SHAPES[request.param])


@pytest.fixture(params=["align", "instruct"])
def setup(request):
    return request.param


def assert_same_gradient(got, want):
    """Within 1e-5 of each parameter's largest gradient: float32, sums taken in another order."""
    assert flatten(got).keys() == flatten(want).keys()
    for path, one in flatten(got).items():
        other = flatten(want)[path]
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), path


@pytest.mark.parametrize("microbatches", [1, 2])
def test_eight_devices_equal_one(mesh, make_mesh, setup, microbatches):
    """Losses, sums and gradients of packed rows, with and without images; one program for all."""
    one = packed.compiled(setup, make_mesh(devices=1), 1)
    many = packed.compiled(setup, mesh, microbatches)
    for seed, kinds in enumerate(KINDS.values()):
        batch = packed.batch(kinds, setup, seed)
        want, want_gradient, _ = one.first_step(batch)
        got, gradient, _ = many.first_step(batch)
        for name, value in got.items():
            np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=f"{kinds} {name}")
        assert_same_gradient(gradient, want_gradient)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_program(mesh, setup, microbatches):
    made = packed.compiled(setup, mesh, microbatches)
    abstract = made.stage.abstract
    hlo.assert_gathers_one_layer_at_most(made.text, mesh, abstract.params)
    rows = packed.ROWS // microbatches
    hlo.assert_logits_are_shared(made.text, mesh, rows, packed.CHUNK, packed.V)
    hlo.assert_only_gradients_cross(made.text, mesh, "data", abstract.trainable)


def test_rows_without_images_teach_the_connector_nothing(make_mesh):
    """All-text rows on every device, and pixels in slots that no row names: exactly zero."""
    made = packed.compiled("instruct", make_mesh(fsdp=4, tensor=2), 1)
    batch = packed.batch(KINDS["text"], "instruct")
    _, gradient, _ = made.first_step(batch._replace(pixels=np.full_like(batch.pixels, 77)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["connector"]))
    assert np.any(gradient["language"]["embedding"])
