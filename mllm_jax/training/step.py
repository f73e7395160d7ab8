"""One update, one evaluation: pure functions of state and batch; the model comes in as `apply`.

Sum, count, divide once: losses are summed and tokens counted over all microbatches and devices, and
the gradient of the sum is divided by the count at the end. A mean of means is wrong whenever rows
hold different numbers of trained tokens.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int32

from mllm_jax.batch import Batch
from mllm_jax.common.errors import require
from mllm_jax.distributed import context
from mllm_jax.distributed.collectives import summed_at_the_end
from mllm_jax.distributed.sharding import TABLE, constrain, ways
from mllm_jax.training import compiler, pairs
from mllm_jax.training.loss import weighted_loss
from mllm_jax.training.optimizer import Gradient, Optimizer, merge
from mllm_jax.training.state import TrainState


class Update(NamedTuple):
    """What random numbers of a forward pass follow from, beside the seed."""

    number: Int32[Array, ""]  # of the update, from 0
    rows: Int32[Array, " B"]  # numbers of the rows in the update's batch


# params, batch, update or None in an evaluation -> hidden [B, T, D], head [V, D]
Apply = Callable[[Any, Batch, Update | None], tuple[Array, Array]]
Metrics = dict[str, Array]


def make_train_step(
    apply: Apply,
    optimizer: Optimizer,
    microbatches: int,
    chunk: int,
    n_streams: int,
    n_languages: int,
    shardings: TrainState | None = None,
    reduce: Any = jnp.float32,
    terms: pairs.Regularizer | None = None,
    held_in: Any = jnp.float32,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function (state, batch) -> (state, metrics), not yet compiled.

    A batch without trained tokens, or with a loss or gradient that is not finite, changes the step
    counter alone: `finite` in the metrics tells the host, which ends the run.

    Args:
        apply: (params, batch, update) -> (hidden [B, T, D] in compute dtype and in the order of
            `context.balanced`, head [V, D] as it is held).
        optimizer: from `make_optimizer`.
        microbatches: the rows are worked in so many turns; gradients add up in `held_in`.
        chunk: positions whose logits exist at the same time.
        n_streams, n_languages: how many the batch's numbers count.
        shardings: of the state, under a mesh: gradients are added up where their parameters are.
        reduce: dtype in which the head's gradient crosses between devices.
        terms: what is added to the loss for pairs of records; None: the step has nothing of it.
        held_in: dtype of gradients; what microbatches added up crosses the data axis in it, once.

    Returns:
        A step whose metrics are float32: loss (mean over trained tokens), loss_sum, trained_tokens
        (sum of weights), stream_loss_sum and stream_tokens [n_streams], language_loss_sum and
        language_tokens [n_languages], grad_norm (before clipping), update_norm, param_norm
        (trainable, before the update), learning_rate/<part>, finite (1 or 0). With `terms` also the
        sums and means of `pairs`; loss is without them.
    """

    judge = _judge(apply, chunk, n_streams, n_languages, reduce, terms)

    def loss_of(trainable: Any, frozen: Any, number: Any, rows: _Rows) -> tuple[Array, Metrics]:
        params, update = merge(trainable, frozen), Update(number, rows.numbers)
        _, added, sums = judge(params, rows.batch, update, rows.scales)
        return sums["loss_sum"] if added is None else sums["loss_sum"] + added, sums

    def grads_of(held: tuple[Any, Any, Any], rows: _Rows) -> tuple[Metrics, Any]:
        grads, sums = jax.grad(loss_of, has_aux=True)(*held, rows)
        grads = jax.tree.map(lambda g: g.astype(held_in), grads)
        if shardings is not None:
            specs = {path: shardings.trainable[path].spec for path in grads}
            grads = jax.lax.with_sharding_constraint(grads, specs)
        return sums, grads

    def added_up(held: tuple[Any, Any, Any], rows: _Rows) -> tuple[Metrics, Any]:
        turns = _turns(rows, microbatches)
        return _accumulate(lambda turn: grads_of(held, turn), turns)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        used = optimizer.used(state.trainable)  # taken once, not once a microbatch
        work = grads_of
        if microbatches > 1:
            work = partial(summed_at_the_end, added_up)
        rows = _Rows(batch, jnp.arange(len(batch.tokens), dtype=jnp.int32))
        held, of_pairs = (used, state.frozen, state.step), {}
        if terms is not None:
            rows, of_pairs = _with_scales(apply, terms, microbatches, held, rows)
        sums, grads = work(held, rows)
        state, metrics = _update(state, sums, grads, optimizer)
        return state, metrics if terms is None else {**metrics, **of_pairs, **pairs.means(sums)}

    return train_step


def make_eval_step(
    apply: Apply, chunk: int, n_streams: int, n_languages: int
) -> Callable[[Any, Batch], dict[str, Array]]:
    """The function (params, batch) -> losses, not yet compiled; nothing is differentiated.

    Returns:
        A step whose results are float32: token_losses [B, T] (unweighted; 0 where the weight is),
        row_loss_sum and row_tokens [B] (weighted sum and weight of each row, for a perplexity per
        row), and the sums of the train step: loss_sum, trained_tokens, stream_* and language_*.
    """

    judge = _judge(apply, chunk, n_streams, n_languages)

    def eval_step(params: Any, batch: Batch) -> dict[str, Array]:
        token_losses, _, sums = judge(params, batch, None)
        return {
            "token_losses": token_losses,
            "row_loss_sum": jnp.sum(token_losses * batch.weights, axis=1),
            "row_tokens": jnp.sum(jnp.asarray(batch.weights), axis=1),
            **sums,
        }

    return eval_step


class Compiled(NamedTuple):
    """A step compiled ahead of time."""

    call: Any  # jax.stages.Compiled: call(state, batch); also has memory_analysis() and as_text()
    seconds: float  # tracing and compiling
    flags: compiler.Flags  # of XLA that it was compiled with
    refused: tuple[str, ...]  # names of those that this version of the compiler does not know


def compile_step(
    step: Callable[..., Any],
    mesh: Mesh,
    state: Any,
    shardings: Any,
    batch: Batch,
    batch_sharding: NamedSharding,
    flags: compiler.Flags = compiler.NO_FLAGS,
) -> Compiled:
    """Compiles `step(state, batch)` for this mesh; the old state's memory is given to the new one.

    Args:
        step: from `make_train_step`.
        mesh: becomes the current mesh while tracing.
        state, batch: abstract or real; only shapes and dtypes are read.
        shardings: a tree like `state`.
        batch_sharding: of every array of the batch.
        flags: of XLA, from `compiler.flags_for`.
    """
    start = time.perf_counter()
    everywhere = NamedSharding(mesh, P())
    jitted = jax.jit(
        step,
        in_shardings=(shardings, jax.tree.map(lambda _: batch_sharding, batch)),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        lowered = jitted.lower(_abstract(state), _abstract(batch))
        compiled, refused = compiler.compile_with(lowered, flags)
    accepted = {name: value for name, value in flags.items() if name not in refused}
    return Compiled(compiled, time.perf_counter() - start, accepted, refused)


def check_rows(mesh: Mesh, rows: int, microbatches: int) -> None:
    """Refuses a batch whose microbatches do not divide over the devices. Raises ConfigError."""
    parts = ways(mesh, "batch")
    require(
        rows % (microbatches * parts) == 0,
        f"data.rows={rows} must be a multiple of train.microbatches={microbatches} x {parts} "
        f"(devices on mesh axes {' and '.join(TABLE['batch'])})",
    )


# ----------------------------------------------------------------------------------------- insides


class _Rows(NamedTuple):
    """All rows of a batch, or some of them."""

    batch: Batch
    numbers: Int32[Array, " B"]  # of the rows in the whole batch
    scales: pairs.Scales | None = None  # what they need of its other rows


def _judge(
    apply: Apply,
    chunk: int,
    n_streams: int,
    n_languages: int,
    reduce: Any = jnp.float32,
    terms: pairs.Regularizer | None = None,
) -> Callable[..., tuple[Array, Array | None, Metrics]]:
    """What gives the loss of every token, what pairs add, and sums: all, by stream, by language."""

    def judge(
        params: Any, batch: Batch, update: Update | None, scales: pairs.Scales | None = None
    ) -> tuple[Array, Array | None, Metrics]:
        hidden, head = apply(params, batch, update)
        added, of_pairs = None, {}
        if terms is not None and scales is not None:
            added, of_pairs = pairs.penalty(terms, scales, hidden, head, batch, chunk, reduce)
        # in the order of the hidden states
        fields = batch.targets, batch.weights, batch.streams, batch.languages
        targets, weights, streams, languages = map(context.balanced, fields)
        loss, token_losses = weighted_loss(hidden, head, targets, weights, chunk, reduce)
        weighted = token_losses * weights
        sums = {
            "loss_sum": loss,
            "trained_tokens": jnp.sum(weights),
            "stream_loss_sum": _by_number(weighted, streams, n_streams),
            "stream_tokens": _by_number(weights, streams, n_streams),
            "language_loss_sum": _by_number(weighted, languages, n_languages),
            "language_tokens": _by_number(weights, languages, n_languages),
        }
        return context.restored(token_losses), added, sums | of_pairs

    return judge


def _with_scales(
    apply: Apply, terms: pairs.Regularizer, microbatches: int, held: tuple[Any, ...], rows: _Rows
) -> tuple[_Rows, Metrics]:
    """The rows of an update with what they need of each other; nothing is differentiated.

    The questions' vectors are those of the passes that follow: random numbers are of the update.
    """
    used, frozen, number = held

    def vectors_of(some: _Rows) -> Array:
        hidden, _ = apply(merge(used, frozen), some.batch, Update(number, some.numbers))
        return pairs.question_vectors(hidden, some.batch)

    def vectors() -> Array:
        if microbatches == 1:
            return vectors_of(rows)
        by_turn = jax.lax.map(vectors_of, _turns(rows, microbatches))
        return jnp.swapaxes(by_turn, 0, 1).reshape(-1, *by_turn.shape[2:])

    scales, metrics = pairs.scales(terms, rows.batch, vectors)
    return rows._replace(scales=scales), metrics


def _update(
    state: TrainState, sums: Metrics, grads: Any, optimizer: Optimizer
) -> tuple[TrainState, Metrics]:
    """One optimizer step along the gradient of the summed loss; nothing moves without a reason."""
    count = sums["trained_tokens"]
    share = jnp.where(count > 0, 1 / jnp.maximum(count, 1e-30), 0.0)
    grad_norm = share * _norm(grads)
    param_norm = _norm(state.trainable)
    # parameters are read before any is written: their norm takes part in the choice
    norms = jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
    finite = jnp.isfinite(sums["loss_sum"]) & norms
    useful = finite & (count > 0)
    gradient = Gradient(grads, share, grad_norm, useful)
    after = optimizer.update(gradient, state.opt_state, state.trainable, state.step)
    metrics = {
        **sums,
        "loss": sums["loss_sum"] * share,
        "grad_norm": grad_norm,
        "update_norm": jnp.where(useful, after.norm, 0.0),
        "param_norm": param_norm,
        "finite": finite.astype(jnp.float32),
        **{f"learning_rate/{part}": rate(state.step) for part, rate in optimizer.rates.items()},
    }
    return TrainState(state.step + 1, after.trainable, state.frozen, after.opt_state), metrics


def _by_number(
    values: Float[Array, "B T"], numbers: Int32[Array, "B T"], count: int
) -> Float32[Array, " count"]:
    """Sums `values` by `numbers`; masked, since a product may round on GPU and TPU."""
    chosen = numbers[..., None] == jnp.arange(count)[None, None, :]
    return jnp.sum(jnp.where(chosen, values[..., None], 0.0), axis=(0, 1))


def _norm(tree: Any) -> Float32[Array, ""]:
    """Root of the sum of all squares, in float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def _turns(rows: Any, count: int) -> Any:
    """[B, ...] -> [count, B/count, ...]; turn m takes rows m::count, so they stay on their device.

    rows on two devices   0 1 2 3 | 4 5 6 7      2 turns:   0 2 | 4 6   then   1 3 | 5 7
    """

    def one(x: Array) -> Array:
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        return constrain(x, "none", "batch", *["none"] * (x.ndim - 2))

    return jax.tree.map(one, rows)


def _accumulate(work: Callable[[_Rows], Any], turns: _Rows) -> Any:
    """Sum of `work(turn)` over the first axis of `turns`, one at a time."""

    def add(total: Any, turn: _Rows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, work(turn)), None

    shapes = jax.eval_shape(work, jax.tree.map(lambda x: x[0], turns))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, turns)[0]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
