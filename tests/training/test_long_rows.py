"""Rows that devices share by length: the numbers of one device, and what is refused."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.batch import Batch
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.training import long_rows, setup, state, step
from mllm_jax.training.loop import train
from tests.support import hlo, packed, tiny
from tests.support.packed import Run
from tests.training.test_setup import assert_same_gradient

LENGTH, SLOTS = 80, 8
NEWLINE = packed.P * packed.SLOTS  # index of the newline vector in packed rows
ALL_AXES = {"data": 2, "fsdp": 2, "context": 2}


def longer(batch: Batch) -> Batch:
    """The same rows with more padding and more unused slots, which eight devices divide."""
    more = LENGTH - packed.LENGTH

    def padded(x: Any) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, more)))

    index = np.where(batch.image_index == NEWLINE, packed.P * SLOTS, batch.image_index)
    index = np.pad(index, ((0, 0), (0, more)), constant_values=-1)
    pixels = np.pad(batch.pixels, ((0, 0), (0, SLOTS - packed.SLOTS), *((0, 0),) * 3))
    numbers = ("tokens", "targets", "weights", "segments", "positions", "streams", "languages")
    changes: dict[str, Any] = {name: padded(getattr(batch, name)) for name in numbers}
    return batch._replace(image_index=index.astype(np.int32), pixels=pixels, **changes)


@functools.cache
def compiled(stage: str, mesh: Any, microbatches: int) -> Run:
    """`packed.compiled` for longer rows."""
    made = packed.make_setup(stage, mesh)
    params = jax.device_put(packed.drawn(stage), made.shardings.params)
    fresh = state.create_state(params, made.optimizer, made.abstract, made.shardings)
    shapes = jax.eval_shape(lambda: longer(packed.batch("b" * packed.ROWS, stage)))
    call = setup.compile_train_step(made, made.abstract, shapes, microbatches, 2, 2)
    return Run(made, call.call, jax.tree.map(np.asarray, fresh))


@pytest.mark.parametrize(
    ("shape", "stage", "microbatches"),
    [
        (ALL_AXES, "instruct", 2),
        pytest.param({"fsdp": 4, "context": 2}, "instruct", 1, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 2, "context": 4}, "align", 1, marks=pytest.mark.slow),
        pytest.param({"data": 1, "context": 8}, "instruct", 4, marks=pytest.mark.slow),
        pytest.param({"tensor": 2, "context": 2}, "lora", 2, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "context": 2}, "dora", 1, marks=pytest.mark.slow),
        pytest.param({"tensor": 2, "context": 4}, "siglip", 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_shared_rows_equal_one_device(make_mesh, shape, stage, microbatches):
    """Losses, sums and gradients of packed rows with images, and dropout where there is some."""
    one = packed.compiled(stage, make_mesh(devices=1), 1)
    many = compiled(stage, make_mesh(**shape), microbatches)
    batch = packed.batch("ttbbiittbibttbii", stage)
    want, want_gradient, _ = one.first_step(batch)
    got, gradient, _ = many.first_step(longer(batch))
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, err_msg=name)
    assert_same_gradient(gradient, want_gradient)


def test_no_device_has_activations_of_a_whole_row(make_mesh):
    """Keys, values and image vectors alone are gathered over `context`; nothing of it over `data`.

    Parameters cross fsdp and context together, a layer at a time.
    """
    mesh = make_mesh(**ALL_AXES)
    made = compiled("instruct", mesh, 2)
    c, rows = packed.MODEL.language, 2  # of a microbatch, on a device
    assert c is not None
    whole = (rows, LENGTH, c.kv_heads, c.head_dim), (rows, SLOTS * packed.P, c.width)
    hlo.assert_gathers_one_layer_at_most(made.text, mesh, made.setup.abstract.params, whole)
    used = jax.eval_shape(made.setup.optimizer.used, made.setup.abstract.trainable)
    hlo.assert_only_gradients_cross(made.text, mesh, "data", used)
    hlo.assert_crosses_in_no_loop(made.text, mesh, "data")
    shapes = [set(shape) for _, shape in hlo.shapes(made.text)]
    for width in (c.width, c.mlp):
        assert {rows, width, LENGTH // 2} in shapes
        assert {rows, width, LENGTH} not in shapes and {width, rows * LENGTH} not in shapes


@pytest.mark.slow
def test_noise_is_that_of_one_device(make_mesh):
    """NEFTune's noise goes by the place in the row, whoever has it."""
    one, many = (
        compiled("neftune", make_mesh(**shape), 1)
        for shape in ({"devices": 1}, {"data": 1, "fsdp": 2, "context": 4})
    )
    batch = longer(packed.batch("ttbbiittbibttbii", "neftune"))
    (want, want_gradient, _), (got, gradient, _) = (run.first_step(batch) for run in (one, many))
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    assert_same_gradient(gradient, want_gradient)


@pytest.mark.slow
def test_losses_of_tokens_are_in_the_order_of_the_row(make_mesh):
    batch, losses = longer(packed.batch("b" * packed.ROWS, "instruct")), []
    for shape in ({"devices": 1}, ALL_AXES):
        mesh = make_mesh(**shape)
        made = packed.make_setup("instruct", mesh)
        params = jax.device_put(packed.drawn("instruct"), made.shardings.params)
        measure = step.make_eval_step(setup.apply_of(made.model), packed.CHUNK, 2, 2)
        with jax.set_mesh(mesh):
            numbers = jax.jit(measure)(params, setup.shard_batch(batch, mesh))
        losses.append(jax.tree.map(np.asarray, numbers))
    for name, value in losses[1].items():
        np.testing.assert_allclose(value, losses[0][name], rtol=1e-5, atol=1e-6, err_msg=name)


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_runs_equal_one_device_and_a_resumed_run_is_the_same(data, tmp_path):
    """Stopped with the rows divided, and continued so: to the bit; and as one device by 1e-4."""
    steps = {"steps": 4, "save_every": 2}
    mesh: dict[str, Any] = {"data": 2, "fsdp": 2, "context": 2}
    configs = {
        name: tiny.config(data, tmp_path / name, train=steps, mesh=axes)
        for name, axes in {"one": {}, "straight": mesh, "run": mesh}.items()
    }
    one = train(configs["one"], devices=jax.devices()[:1])
    straight = train(configs["straight"])
    stopped = dataclasses.replace(configs["run"].train, stop_at=2)
    train(dataclasses.replace(configs["run"], train=stopped))
    run = train(configs["run"], resume=True)
    assert tiny.numbers(run) == tiny.numbers(straight)
    for name in ("loss", "grad_norm"):
        values = [[row[name] for row in tiny.numbers(folder)] for folder in (one, run)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


# ----------------------------------------------------------------------------------------- refusals


REFUSED = {
    "length": (
        {"data": {"length": 98}},
        "data.length=98 is not a multiple of 4 (2 x mesh.context=2); give 100",
    ),
    "slots": (
        {"data": {"image_slots": 3}},
        "data.image_slots=3 is not a multiple of mesh.context=2; give 4",
    ),
    "backend": (
        {"compute": {"attention": "loop"}},
        "compute.attention=loop: does not divide a row over mesh.context; choose blocks",
    ),
    "samples": (
        {"train": {"evaluate": {"data": "heldout.json", "samples": 4}}},
        "train.evaluate.samples=4: answers are not computed with mesh.context=2; set it to 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_divide_is_refused_in_one_line(data, tmp_path, make_mesh, name):
    sections, message = REFUSED[name]
    config = tiny.config(data, tmp_path / "run", **sections)
    long_rows.check(config, make_mesh(devices=1))
    with pytest.raises(ConfigError) as error:
        long_rows.check(config, make_mesh(context=2))
    assert str(error.value) == message


def test_pairs_are_refused(data, tmp_path, make_mesh):
    raw = loading.to_dict(tiny.config(data, tmp_path / "run"))
    raw["optimizer"]["pairs"] = {"kl": 0.1}
    raw["data"]["streams"]["eu"]["pairs"] = "id"
    with pytest.raises(ConfigError) as error:
        long_rows.check(loading.build(Config, raw), make_mesh(context=4))
    assert str(error.value) == (
        "optimizer.pairs: positions of whole rows are compared, mesh.context=4 divides rows; set "
        "mesh.context to 1"
    )


def test_a_run_is_refused_before_anything_is_written(data, tmp_path):
    sections: dict[str, Any] = {"data": {"length": 98}, "mesh": {"data": -1, "context": 2}}
    config = tiny.config(data, tmp_path / "run", **sections)
    with pytest.raises(ConfigError, match=r"data\.length=98 is not a multiple of 4"):
        train(config)
    assert not (tmp_path / "run").exists()
