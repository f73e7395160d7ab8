"""The compiled programs of generation: images, prompts, answers, log-likelihoods.

    pixels --encode, gather--> image embeddings of rows -+
                                                         +- prompts --prefill--> scores, cache
                                                         |  scores, cache --decode--> tokens
                                                         +- rows --score--> log-probabilities

Each compiles once for a model, a mesh and a few shapes; what may change from call to call without
compiling (the length of answers, the ends, temperature) are arguments.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mllm_jax.batch import ModelInputs, Numbers
from mllm_jax.distributed.sharding import constrain
from mllm_jax.models import decoding, mllm
from mllm_jax.models.llama import Cache
from mllm_jax.models.mllm import MLLM

CHUNK = 64  # positions of a row whose logits exist at the same time, where tokens are scored


class Request(NamedTuple):
    """What decides the tokens that are appended, besides the prompt."""

    real: Bool[Numbers, "B"]  # rows that are asked; the others are padding
    limit: Int[Numbers, ""]  # tokens that are appended at most
    ends: Int[Numbers, "E"]
    temperature: Float[Numbers, ""]
    key: Key[Array, ""]
    numbers: Int[Numbers, "B"]  # of the prompts; see `Answerer.answer`


@functools.partial(jax.jit, static_argnums=0)
def encode(
    model: MLLM, params: Any, pixels: UInt8[Array, "Q height width C"]
) -> Float[Array, "Q P D"]:
    """Image embeddings of squares, as the vision tower reads them."""
    return mllm.image_embeddings(model, params, constrain(pixels, "batch", *["none"] * 3)[:, None])


@jax.jit
def gather(embeddings: Float[Array, "Q P D"], squares: Int[Array, "B I"]) -> Float[Array, "B J D"]:
    """The image embeddings of every row, slot after slot: J = I * P.

    A program of its own, so that the larger ones do not depend on how many squares there are.

    Args:
        embeddings: from `encode`.
        squares: which are in the slots of each row; any where a slot is not used.
    """
    taken = jnp.take(embeddings, squares, axis=0)
    vectors = taken.reshape(len(taken), -1, taken.shape[-1])
    return constrain(vectors, "batch", "none", "none")


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    model: MLLM,
    slots: int,
    params: Any,
    inputs: ModelInputs,
    vectors: Float[Array, "B J D"] | None,
) -> tuple[Float[Array, "B V"], Cache]:
    """Logits behind left-padded prompts, and their cache with `slots` tokens in all."""
    return decoding.prefill(model, params, inputs, slots, vectors)


class _State(NamedTuple):
    count: Int[Array, ""]  # tokens appended so far
    token: Int[Array, "B"]  # the last of them
    ended: Bool[Array, "B"]
    out: Int[Array, "B N"]  # -1 where nothing was appended
    cache: Cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def decode(
    model: MLLM,
    sample: bool,
    room: int,
    params: Any,
    scores: Float[Array, "B V"],
    cache: Cache,
    request: Request,
) -> tuple[Int[Array, "B room"], Cache]:
    """Appends tokens until every row has ended.

    Args:
        model: the network.
        sample: whether tokens are drawn.
        room: N, tokens that the result has place for; at least `request.limit`.
        params: path -> array.
        scores: logits behind the prompts.
        cache: of the prompts, with `room` slots left; given away.
        request: what is asked.

    Returns:
        The tokens, -1 behind the last of a row; and the cache, so that it stays where it was.
    """
    decoder = decoding.decoder(model, params)
    after = cache.used - cache.first  # position of the first appended token
    keys = jax.vmap(lambda number: jax.random.fold_in(request.key, number))(request.numbers)

    def pick(scores: Float[Array, "B V"], count: Any) -> Int[Array, "B"]:
        if not sample:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)
        # the likeliest token gets 0: a small temperature must not overflow
        scores = (scores - jnp.max(scores, axis=-1, keepdims=True)) / request.temperature
        draws = jax.vmap(
            lambda key, row: jax.random.categorical(jax.random.fold_in(key, count), row)
        )
        return draws(keys, scores).astype(jnp.int32)

    def append(state: _State, scores: Float[Array, "B V"], cache: Cache) -> _State:
        token = pick(scores, state.count)
        column = jnp.where(state.ended, -1, token)[:, None]
        out = jax.lax.dynamic_update_slice_in_dim(state.out, column, state.count, 1)
        is_end = jnp.any(token[:, None] == request.ends[None, :], axis=1)
        return _State(state.count + 1, token, state.ended | is_end, out, cache)

    def turn(state: _State) -> _State:
        token, position = state.token, after + state.count - 1
        read = decoding.decode(model, params, decoder, token, position, state.cache)
        return append(state, *read)

    empty = jnp.full((len(scores), room), -1, jnp.int32)
    start = _State(jnp.int32(0), after, jnp.asarray(~request.real), empty, cache)
    unfinished = lambda state: (state.count < request.limit) & ~jnp.all(state.ended)  # noqa: E731
    end = jax.lax.while_loop(unfinished, turn, append(start, scores, cache))
    return constrain(end.out, "none", "none"), end.cache


@functools.partial(jax.jit, static_argnums=0)
def score(
    model: MLLM,
    params: Any,
    inputs: ModelInputs,
    vectors: Float[Array, "B J D"] | None,
    places: Int[Array, "B M"],
    targets: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
    """Log-probabilities (nats) of tokens behind some places of each row.

    Logits exist at these places alone, and of CHUNK places at the same time.

    Args:
        model: the network.
        params: path -> array.
        inputs: rows, padding on the right.
        vectors: image embeddings of the rows; None where there are none.
        places: positions of a row.
        targets: the token that is scored behind each.

    Returns:
        The log-probability of each target, and whether it is the likeliest token there.
    """
    hidden = mllm.hidden(model, params, inputs, vectors=vectors)
    hidden = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    head = mllm.head(params)

    def chunk(part: tuple[Float[Array, "B c D"], Int[Array, "B c"]]) -> tuple[Array, Array]:
        logits = mllm.logits(part[0], head)
        of_target = jnp.take_along_axis(logits, part[1][:, :, None], axis=2)[:, :, 0]
        best = jnp.argmax(logits, axis=-1) == part[1]
        return of_target - jax.nn.logsumexp(logits, axis=-1), best

    B, M = places.shape
    size = min(M, CHUNK)
    split = lambda x: jnp.moveaxis(x.reshape(B, M // size, size, *x.shape[2:]), 1, 0)  # noqa: E731
    joined = lambda x: constrain(jnp.moveaxis(x, 0, 1).reshape(B, M), "none", "none")  # noqa: E731
    values, best = jax.lax.map(chunk, (split(hidden), split(targets)))
    return joined(values), joined(best)
