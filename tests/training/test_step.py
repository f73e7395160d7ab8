"""Equivalences of the step: microbatches, devices, frozen parts, batches with nothing to learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig
from mllm_jax.distributed import sharding
from mllm_jax.training import optimizer, step
from mllm_jax.training.state import TrainState
from tests.support.exact_sums import equations
from tests.training import toy

CHUNK = 5


@functools.cache
def compiled(mesh, parts="all", microbatches=1, compute=toy.FLOAT32, decay=0.0):
    """(compiled step, its fresh state as host arrays, where that lies) for the toy model."""
    rules = {"all": toy.ALL, "align": toy.ALIGN}[parts]
    made, abstract = toy.make_setup(rules, compute, weight_decay=decay)
    state, places = toy.create_state(made, abstract, mesh)
    train = step.make_train_step(toy.apply, made, microbatches, CHUNK, 2, 3, places)
    rows = sharding.batch_sharding(mesh)
    call = step.compile_step(train, mesh, state, places, toy.batch(), rows)
    return call, jax.tree.map(np.asarray, state), places


def run(mesh, steps=3, batches=toy.batch, **kwargs):
    """Host copies of the parameters and of every step's metrics."""
    made, fresh, places = compiled(mesh, **kwargs)
    state, history = jax.device_put(fresh, places), []
    for number in range(steps):
        batch = jax.device_put(batches(seed=number), sharding.batch_sharding(mesh))
        state, metrics = made.call(state, batch)
        history.append(jax.tree.map(np.asarray, metrics))
    return jax.tree.map(np.asarray, state), history


@pytest.fixture(scope="module")
def single():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return run(mesh)


def assert_same(got, want):
    # tenfold: Adam divides by the root of tiny squares, so the last bits of a gradient grow
    for one, other in zip(got[1], want[1], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-6, atol=1e-6, err_msg=name)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got[0], want[0]
    )


def plain_gradient(params, batch):
    """Mean loss over trained tokens and its gradient, by log_softmax over everything at once."""

    def mean(params):
        hidden, head = toy.apply(params, batch)
        scores = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head))
        losses = -jnp.take_along_axis(scores, batch.targets[..., None], axis=-1)[..., 0]
        return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), losses

    return jax.value_and_grad(mean, has_aux=True)(params)


def test_metrics_are_those_of_plain_autodiff(single):
    _, abstract = toy.make_setup()
    params, batch = toy.init_params(abstract.params), toy.batch()
    (loss, losses), grads = jax.jit(plain_gradient)(params, batch)
    got = single[1][0]
    np.testing.assert_allclose(got["loss"], loss, rtol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(got["grad_norm"], norm, rtol=1e-6)
    assert got["trained_tokens"] == batch.weights.sum()
    assert got["finite"] == 1
    np.testing.assert_allclose(got["learning_rate/all"], 1e-2)
    for kind, count in (("stream", 2), ("language", 3)):
        numbers = getattr(batch, f"{kind}s")
        want = [batch.weights[numbers == n].sum() for n in range(count)]
        np.testing.assert_array_equal(got[f"{kind}_tokens"], want)
        weighted = np.asarray(losses) * batch.weights
        want = [weighted[numbers == n].sum() for n in range(count)]
        assert len(set(want)) == count
        np.testing.assert_allclose(got[f"{kind}_loss_sum"], want, rtol=1e-5)
    assert all(value.dtype == np.float32 for value in got.values())
    assert int(single[0].step) == 3


def test_update_norm_is_the_distance_walked(make_mesh):
    state, history = run(make_mesh(devices=1), steps=1)
    before = toy.init_params(toy.make_setup()[1].params)
    moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), state.params, before)
    np.testing.assert_allclose(
        history[0]["update_norm"], np.sqrt(sum(jax.tree.leaves(moved))), rtol=1e-4
    )


@pytest.mark.parametrize("count", [2, 16])
def test_microbatches_equal_one_batch(single, make_mesh, count):
    """Rows hold 0 to 10 trained tokens, so a mean of means would be far off."""
    assert len(set(toy.batch().weights.sum(axis=1))) > 4
    assert_same(run(make_mesh(devices=1), microbatches=count), single)


SHAPES = [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_devices_equal_one(single, make_mesh, shape):
    assert_same(run(make_mesh(**shape)), single)


def test_eight_devices_in_microbatches_equal_one(single, make_mesh):
    assert_same(run(make_mesh(data=2, fsdp=2, tensor=2), microbatches=4), single)


def test_microbatches_keep_rows_on_their_device(make_mesh):
    """Cutting a batch into turns moves no row between devices."""
    mesh = make_mesh(data=8)
    rows = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda batch: step._turns(batch, 2), in_shardings=(rows,))
        text = toy.text(cut.lower(toy.batch()).compile())
        turns = cut(jax.device_put(toy.batch(), rows))
    assert not any(word in text for word in ("all-to-all", "all-gather", "collective-permute"))
    np.testing.assert_array_equal(turns.tokens[1], toy.batch().tokens[1::2])


def test_state_keeps_its_places_and_gives_up_its_buffers(make_mesh):
    mesh = make_mesh(fsdp=4, tensor=2)
    made, fresh, places = compiled(mesh)
    state = jax.device_put(fresh, places)
    batch = jax.device_put(toy.batch(), sharding.batch_sharding(mesh))
    after, _ = made.call(state, batch)
    same = jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), after, places)
    assert all(jax.tree.leaves(same))
    assert state.trainable["language/embedding"].is_deleted()
    assert made.seconds > 0


def test_frozen_parts_are_bit_identical_and_ungraded(make_mesh):
    """Align: the connector alone moves; the program has no array for a gradient of the rest."""
    mesh = make_mesh(devices=1)
    before = compiled(mesh, parts="align")[1]
    after, history = run(mesh, steps=2, parts="align")
    metrics = history[1]
    jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.trainable, after.trainable)
    assert all(jax.tree.leaves(moved))
    assert set(metrics) >= {"learning_rate/connector"}
    assert "learning_rate/rest" not in metrics
    # the norm of what is trained, before the update
    trained = np.concatenate([x.ravel() for x in jax.tree.leaves(before.trainable)])
    np.testing.assert_allclose(history[0]["param_norm"], np.linalg.norm(trained), rtol=1e-6)


def products(parts):
    """The shapes of all matrix products in a step, traced (the compiler may still drop some)."""
    made, abstract = toy.make_setup(parts)
    train = step.make_train_step(toy.apply, made, 1, 100, 2, 3)
    text = jax.jit(train).lower(abstract, toy.batch()).as_text()
    return [line.rsplit("->", 1)[1].strip() for line in text.splitlines() if "dot_general" in line]


def test_frozen_parts_have_no_product_for_their_gradient():
    everything, align = products(toy.ALL), products(toy.ALIGN)
    head, up = f"tensor<{toy.V}x{toy.D}xf32>", f"tensor<{toy.D}x{toy.F}xf32>"
    assert any(line.startswith(head) for line in everything)
    assert not any(line.startswith(head) for line in align)
    assert len(everything) - len(align) >= 3  # head, up, down
    assert not any(line.startswith(up) for line in align)


def nothing(seed):
    return toy.batch(seed=seed)._replace(weights=np.zeros((16, 12), np.float32))


def poisoned(seed):
    weights = toy.batch(seed=seed).weights.copy()
    weights[3, 4] = np.nan
    return toy.batch(seed=seed)._replace(weights=weights)


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(make_mesh):
    """The root of zero: its value is 0, its slope infinite."""

    def steep(params, batch, number):
        hidden, head = toy.apply(params, batch)
        bias = params["connector/linear_1/bias"]
        return hidden + jnp.sqrt(bias - jax.lax.stop_gradient(bias))[None, None], head

    mesh = make_mesh(devices=1)
    made, abstract = toy.make_setup()
    state, places = toy.create_state(made, abstract, mesh)
    train = step.make_train_step(steep, made, 1, CHUNK, 2, 3, places)
    with jax.set_mesh(mesh):
        after, metrics = jax.jit(train)(state, toy.batch())
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["finite"] == metrics["update_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=state.step), state)


def test_an_update_needs_no_array_of_zeros():
    """Where a step moves nothing, the old parameter is taken, not the sum of it and zeros.

    The compiler holds such zeros through the step, one array per shape: 22 GiB at 8B on one GPU.
    """
    tree = {"w": jnp.zeros((7, 5)), "b": jnp.zeros(11)}
    made = optimizer.make_optimizer(OptimizerConfig(toy.ALL, weight_decay=0.1), 10, tree)
    sums = {"loss_sum": jnp.ones(()), "trained_tokens": jnp.ones(())}

    def update(tree, moments, grads):
        state = TrainState(jnp.int32(0), tree, {}, moments)
        return step._update(state, sums, grads, made)

    program = jax.make_jaxpr(update)(tree, made.init(tree), tree)
    found = list(equations(program.jaxpr))
    zeros = {
        equation.outvars[0]
        for equation in found
        if equation.primitive.name == "broadcast_in_dim"
        and getattr(equation.invars[0], "val", None) == 0
    }
    choices = [equation for equation in found if equation.primitive.name == "select_n"]
    assert len(choices) >= 6  # parameters and both moments
    assert not any(x in zeros for made in choices for x in made.invars if not hasattr(x, "val"))


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(("bad", "finite"), [(nothing, 1), (poisoned, 0)])
def test_a_useless_batch_changes_nothing(make_mesh, bad, finite, microbatches):
    """After a good step (moments are not zero, there is decay): parameters and moments stay."""
    kwargs = {"microbatches": microbatches, "decay": 0.1}

    def after_a_good_one(seed):
        return toy.batch() if seed == 0 else bad(seed)

    mesh = make_mesh(devices=1)
    good, _ = run(mesh, steps=1, **kwargs)
    state, history = run(mesh, steps=2, batches=after_a_good_one, **kwargs)
    jax.tree.map(np.testing.assert_array_equal, state._replace(step=good.step), good)
    assert int(state.step) == 2
    assert history[1]["finite"] == finite
    assert history[1]["update_norm"] == 0
    if finite:
        assert history[1]["trained_tokens"] == history[1]["loss"] == history[1]["grad_norm"] == 0


def test_one_microbatch_without_trained_tokens(single, make_mesh):
    """Rows 0 and 8 are turn 0 of 8: without them the update is still that of one batch."""

    def holes(seed):
        weights = toy.batch(seed=seed).weights.copy()
        weights[[0, 8]] = 0
        return toy.batch(seed=seed)._replace(weights=weights)

    mesh = make_mesh(devices=1)
    assert_same(run(mesh, batches=holes, microbatches=8), run(mesh, batches=holes))


def test_it_learns_and_the_rate_follows_the_schedule(make_mesh):
    history = learn(make_mesh(devices=1))
    losses = [metrics["loss"] for metrics in history]
    assert losses[-1] < 0.6 * losses[0]
    rates = [float(metrics["learning_rate/all"]) for metrics in history]
    np.testing.assert_allclose(rates[:5], [0.0, 0.0125, 0.025, 0.0375, 0.05], rtol=1e-6)
    assert rates[-1] < 1e-3


def learn(mesh):
    made, abstract = toy.make_setup(steps=40, learning_rate=5e-2, warmup_ratio=0.1)
    state, places = toy.create_state(made, abstract, mesh)
    train = step.make_train_step(toy.apply, made, 1, CHUNK, 2, 3, places)
    rows = sharding.batch_sharding(mesh)
    call = step.compile_step(train, mesh, state, places, toy.batch(), rows).call
    history = []
    for _ in range(40):
        state, metrics = call(state, jax.device_put(toy.batch(), rows))
        history.append(metrics)
    return history


def test_bfloat16_state(make_mesh):
    """Pure bfloat16: parameters stay bfloat16, moments float32, the loss falls."""
    compute = ComputeConfig(compute="bfloat16", parameters="bfloat16")
    state, history = run(make_mesh(devices=1), compute=compute, batches=lambda seed: toy.batch())
    assert {str(x.dtype) for x in jax.tree.leaves(state.trainable)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"float32"}
    assert history[2]["loss"] < history[0]["loss"]


def test_microbatches_of_bfloat16_parameters_add_up_in_float32(make_mesh, monkeypatch):
    totals, accumulate = [], step._accumulate

    def noted(work, turns):
        totals.append(accumulate(work, turns))
        return totals[-1]

    monkeypatch.setattr(step, "_accumulate", noted)
    compute = ComputeConfig(compute="bfloat16", parameters="bfloat16")
    compiled.__wrapped__(make_mesh(devices=1), microbatches=2, compute=compute)
    assert totals and {str(x.dtype) for x in jax.tree.leaves(totals)} == {"float32"}


@pytest.mark.parametrize("shape", [{"devices": 1}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_eval_step(make_mesh, shape):
    mesh = make_mesh(**shape)
    made, abstract = toy.make_setup()
    state, _ = toy.create_state(made, abstract, mesh)
    rows, batch = sharding.batch_sharding(mesh), toy.batch()
    batch = batch._replace(weights=batch.weights * np.float32(0.5))
    judge = step.make_eval_step(toy.apply, CHUNK, 2, 3)
    with jax.set_mesh(mesh):
        got = jax.jit(judge)(state.params, jax.device_put(batch, rows))
    (loss, losses), _ = jax.jit(plain_gradient)(toy.init_params(abstract.params), batch)
    np.testing.assert_allclose(
        got["token_losses"], np.where(batch.weights != 0, losses, 0), rtol=1e-5
    )
    np.testing.assert_allclose(got["loss_sum"] / got["trained_tokens"], loss, rtol=1e-6)
    np.testing.assert_array_equal(got["row_tokens"], batch.weights.sum(axis=1))
    want = (np.asarray(got["token_losses"]) * batch.weights).sum(axis=1)
    np.testing.assert_allclose(got["row_loss_sum"], want, rtol=1e-5)
    np.testing.assert_allclose(got["row_loss_sum"].sum(), got["loss_sum"], rtol=1e-6)
    assert not state.params["language/embedding"].is_deleted()


def test_rows_that_do_not_divide_are_refused(make_mesh):
    step.check_rows(make_mesh(fsdp=4, tensor=2), 16, 4)
    with pytest.raises(ConfigError, match=r"data.rows=16 .*microbatches=4 x 8"):
        step.check_rows(make_mesh(data=8), 16, 4)
