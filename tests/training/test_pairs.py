"""The regularizer over pairs: values and gradients against oracles, on any devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from mllm_jax.data.mixture.packing import GOLDEN
from mllm_jax.distributed import sharding
from mllm_jax.training import pairs, step
from mllm_jax.training.divergence import symmetric_kl
from tests.training import toy

CHUNK = 5
ROWS, LENGTH, MOST = 16, 12, 2
TERMS = pairs.Regularizer(kl=0.7, contrastive=0.3, temperature=0.5)


def batch(rows=ROWS, seed=0) -> Any:
    """Rows of none, one or two pairs; some of them without partners, their answers being unequal.

    tokens    q q q q a a Q Q a a . .      or      q a a Q a a q a a Q a a
    """
    plain = toy.batch(rows, LENGTH, seed)
    rng = np.random.default_rng(seed + 100)
    weights, targets = np.array(plain.weights), np.array(plain.targets)
    partners, spans = np.full((rows, LENGTH), -1, np.int32), np.zeros((rows, MOST, 2, 2), np.int32)
    for row, kind in enumerate(rng.permutation(np.arange(rows) % 4).tolist()):
        if kind == 0:
            continue
        weights[row] = 0
        firsts = [(0, 3, 6, 7)] if kind == 1 else [(0, 0, 3, 3), (6, 6, 9, 9)]
        for pair, (one, end, other, last) in enumerate(firsts):
            spans[row, pair] = (one, end + 1), (other, last + 1)
            weights[row, [end, end + 1, last, last + 1]] = 1
            if kind != 3 or pair:  # otherwise the answers differ
                partners[row, [end, end + 1]] = last, last + 1
                targets[row, [last, last + 1]] = targets[row, [end, end + 1]]
    image_index = np.where(rng.random((rows, LENGTH)) < 0.1, 0, -1).astype(np.int32)
    image_index[spans.sum(axis=(1, 2, 3)) == 0] = -1
    return plain._replace(
        weights=weights, targets=targets, partners=partners, spans=spans, image_index=image_index
    )


def hidden_and_head(dtype=np.float32, rows=3, words=21):
    rng = np.random.default_rng(int(GOLDEN) % 1000)
    hidden = rng.normal(size=(rows, LENGTH, 8)).astype(dtype)
    return jnp.asarray(hidden), jnp.asarray(rng.normal(size=(words, 8)).astype(dtype))


def some_partners():
    partners = jnp.asarray(batch(3, seed=5).partners)
    assert int((partners >= 0).sum()) > 2
    return partners


def in_torch(*arrays) -> list[Any]:
    return [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]


# ----------------------------------------------------------------------------------------- oracles


def torch_kl(hidden, head, partners):
    """Sum of 0.5 x (KL(p||q) + KL(q||p)), by torch's own functions."""
    total = torch.zeros((), dtype=hidden.dtype)
    logs = torch.log_softmax(hidden @ head.T, dim=-1)
    for row, position in np.argwhere(np.asarray(partners) >= 0).tolist():
        p, q = logs[row, position], logs[row, int(partners[row, position])]
        for one, other in ((p, q), (q, p)):
            total = total + 0.5 * torch.nn.functional.kl_div(
                other, one, reduction="sum", log_target=True
            )
    return total


def torch_vectors(hidden, spans, image_index):
    """[(question vector, question vector of the partner)] of all pairs."""
    vectors = []
    for row, pair in np.argwhere(spans[:, :, 0, 1] > 0).tolist():
        sides = []
        for start, end in spans[row, pair].tolist():
            inside = [t for t in range(start, end) if image_index[row, t] < 0]
            total = torch.zeros(hidden.shape[-1], dtype=hidden.dtype)
            sides.append(hidden[row, inside].mean(dim=0) if inside else total)
        vectors.append(torch.stack(sides))
    return torch.stack(vectors)


def torch_info_nce(vectors, temperature):
    """Mean over both directions of torch's cross-entropy."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    scores = unit[:, 0] @ unit[:, 1].T / temperature
    right, entropy = torch.arange(len(scores)), torch.nn.functional.cross_entropy
    return 0.5 * (entropy(scores, right) + entropy(scores.T, right))


# ------------------------------------------------------------------------------------- divergence


def test_symmetric_kl_by_hand():
    """Two words: p = (3/4, 1/4), q = (1/4, 3/4); 0.5 x 2 x (1/2 log 3) = 0.549."""
    hidden = jnp.log(jnp.asarray([[[3.0, 1.0], [1.0, 3.0], [5.0, 1.0]]]))
    head, partners = jnp.eye(2), jnp.asarray([[1, -1, -1]], jnp.int32)
    assert float(symmetric_kl(hidden, head, partners, 8)) == pytest.approx(0.5 * np.log(3))
    assert float(symmetric_kl(hidden, head, jnp.full((1, 3), -1, jnp.int32), 8)) == 0


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_symmetric_kl_and_its_gradients_are_those_of_torch(chunk, frozen_head):
    (hidden, head), partners = hidden_and_head(), some_partners()

    def ours(hidden, head):
        head = jax.lax.stop_gradient(head) if frozen_head else head
        return 3.0 * symmetric_kl(hidden, head, partners, chunk)

    theirs = in_torch(hidden, head)
    expected = 3.0 * torch_kl(theirs[0], theirs[1], partners)
    expected.backward()
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], theirs[0].grad, rtol=1e-4, atol=1e-5)
    of_head = np.zeros_like(head) if frozen_head else theirs[1].grad
    np.testing.assert_allclose(gradients[1], of_head, rtol=1e-4, atol=1e-5)


def test_symmetric_kl_by_finite_differences():
    run = jax.jit(functools.partial(symmetric_kl, partners=some_partners(), chunk=6))
    check_grads(run, hidden_and_head(), order=1, modes=["rev"], rtol=2e-2)


def test_bfloat16_rounds_and_no_more():
    rounded: list[Any] = [x.astype(jnp.bfloat16) for x in hidden_and_head()]
    partners = some_partners()
    one, other = in_torch(*rounded)
    exact = torch_kl(one, other, partners).detach()
    got = symmetric_kl(rounded[0], rounded[1], partners, 8)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    gradient = jax.grad(lambda x: symmetric_kl(x, rounded[1], partners, 8))(rounded[0])
    assert gradient.dtype == jnp.bfloat16


# ---------------------------------------------------------------------------------------- InfoNCE


def test_info_nce_by_hand():
    """Partners alike, all others at right angles: log(1 + 2 exp(-1 / temperature)) of three."""
    run = jax.jit(jax.value_and_grad(functools.partial(pairs.info_nce, temperature=0.5)))
    vectors = np.repeat(np.eye(3, dtype=np.float32)[:, None, None], 2, axis=2) * 7
    assert float(run(vectors, np.ones((3, 1), bool))[0]) == pytest.approx(
        np.log(1 + 2 * np.exp(-2)), rel=1e-5
    )
    one = np.array([[True], [False], [False]])
    assert float(run(vectors, one)[0]) == pytest.approx(0, abs=1e-6)
    value, gradient = run(np.zeros_like(vectors), np.zeros((3, 1), bool))
    assert float(value) == 0 and not np.asarray(gradient).any()


def test_info_nce_and_its_gradient_are_those_of_torch():
    of = batch(8, seed=3)
    hidden, _ = hidden_and_head(rows=8)

    def ours(hidden):
        vectors = pairs.question_vectors(hidden, of)
        return pairs.info_nce(vectors, pairs.is_pair(of), 0.5)

    (theirs,) = in_torch(hidden)
    expected = torch_info_nce(torch_vectors(theirs, of.spans, of.image_index), 0.5)
    expected.backward()
    value, gradient = jax.jit(jax.value_and_grad(ours))(hidden)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)
    check_grads(jax.jit(ours), (hidden,), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------------------------------- step


@functools.cache
def compiled(mesh, microbatches=1, terms: pairs.Regularizer | None = TERMS, paired=True):
    """(compiled step, its fresh state as host arrays, where that lies) for the toy model."""
    made, abstract = toy.make_setup(clip_norm=None)
    state, places = toy.create_state(made, abstract, mesh)
    train = step.make_train_step(toy.apply, made, microbatches, CHUNK, 2, 3, places, terms=terms)
    rows = sharding.batch_sharding(mesh)
    example = batch() if paired else toy.batch(ROWS, LENGTH)
    call = step.compile_step(train, mesh, state, places, example, rows)
    return call, jax.tree.map(np.asarray, state), places


def run(mesh, **options):
    """Host copies of the state after three steps, and of every step's metrics."""
    made, fresh, places = compiled(mesh, **options)
    state, history = jax.device_put(fresh, places), []
    for number in range(3):
        rows = jax.device_put(batch(seed=number), sharding.batch_sharding(mesh))
        state, metrics = made.call(state, rows)
        history.append(jax.tree.map(np.asarray, metrics))
    return jax.tree.map(np.asarray, state), history


SLOW = [((1, 1, 1), 2), ((1, 1, 1), 8), ((2, 2, 2), 1), ((8, 1, 1), 2)]


@pytest.fixture(scope="module")
def single():
    return run(sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("shape", "microbatches"),
    [
        ((1, 4, 2), 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
    ids=str,
)
def test_devices_and_microbatches_change_nothing(single, shape, microbatches):
    devices = jax.devices()[: int(np.prod(shape))]
    got = run(sharding.make_mesh(shape, devices), microbatches=microbatches)
    for one, other in zip(got[1], single[1], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=5e-6, atol=2e-6, err_msg=name)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got[0], single[0]
    )


def test_one_step_against_plain_autodiff(single):
    """The whole objective written down once, its gradient by torch's oracle of each term."""
    _, fresh, _ = compiled(sharding.make_mesh(devices=jax.devices()[:1]))
    of = batch(seed=0)

    def objective(params):
        hidden, head = toy.apply(params, of)
        logs = jax.nn.log_softmax(hidden @ head.T)
        losses = -jnp.take_along_axis(logs, of.targets[..., None], axis=-1)[..., 0]
        loss = jnp.sum(losses * of.weights) / jnp.sum(of.weights)
        rows, first = np.nonzero(of.partners >= 0)
        p, q = logs[rows, first], logs[rows, of.partners[rows, first]]
        kl = jnp.mean(0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1))
        vectors = pairs.question_vectors(hidden, of)
        nce = pairs.info_nce(vectors, pairs.is_pair(of), TERMS.temperature)
        return loss + TERMS.kl * kl + TERMS.contrastive * nce, (loss, kl, nce)

    gradients, (loss, kl, nce) = jax.jit(jax.grad(objective, has_aux=True))(fresh.trainable)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in gradients.values()))
    first = single[1][0]
    np.testing.assert_allclose(first["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(first["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(first["pair_kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(first["pair_contrastive"], nce, rtol=1e-5)


def test_pairs_are_counted(single):
    for number, metrics in enumerate(single[1]):
        of = batch(seed=number)
        assert metrics["pairs"] == (of.spans[:, :, 0, 1] > 0).sum() == ROWS // 4 * 5
        assert metrics["pairs_unequal"] == ROWS // 4
        assert metrics["pair_tokens"] == (of.partners >= 0).sum()
        assert -1 <= metrics["pair_cosine"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "contrastive"])
def test_a_term_of_weight_0_is_not_in_the_program(single, name):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    terms = pairs.Regularizer(**{**TERMS._asdict(), name: 0.0})
    made, fresh, places = compiled(mesh, terms=terms)
    assert toy.flops(made.call) < toy.flops(compiled(mesh)[0].call)
    _, metrics = made.call(jax.device_put(fresh, places), batch())
    absent = {"kl": "pair_kl", "contrastive": "pair_contrastive"}[name]
    assert absent not in metrics
    for other in single[1][0].keys() & metrics.keys() - {"grad_norm", "update_norm"}:
        np.testing.assert_allclose(metrics[other], single[1][0][other], rtol=1e-5, err_msg=other)


def test_rows_without_pairs_add_nothing():
    """Loss, gradient and state of a batch without pairs are those of the plain step."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows = toy.batch(ROWS, LENGTH)
    empty = batch()._replace(
        **{name: getattr(rows, name) for name in ("weights", "targets", "image_index")},
        partners=np.full((ROWS, LENGTH), -1, np.int32),
        spans=np.zeros((ROWS, MOST, 2, 2), np.int32),
    )
    made, fresh, places = compiled(mesh)
    got, metrics = made.call(jax.device_put(fresh, places), empty)
    assert metrics["pairs"] == metrics["pair_kl"] == metrics["pair_contrastive"] == 0
    made, fresh, places = compiled(mesh, terms=None, paired=False)
    want, plain = made.call(jax.device_put(fresh, places), rows)
    assert metrics["loss"] == plain["loss"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got, want)
