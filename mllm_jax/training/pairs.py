"""Regularizer over pairs of records that mean the same in two languages: two terms of the loss.

    loss + kl x mean over answers' tokens of the symmetric KL + contrastive x InfoNCE

Not from the LRM-LLaVA paper. `data/mixture/pairs` says where the records of a pair are in a row.

KL. Distributions of the next token are compared where both records are asked for the same token of
the same answer, see `divergence`. Answers of other tokens cannot be compared so and are left out.

InfoNCE. A question's vector is the mean of the final hidden states over its span's text, in
float32. Each question has to find its partner among the partners of all pairs of the update, and
each partner its question, by the cosine (van den Oord et al. 2018, arXiv:1807.03748; in both
directions as CLIP, arXiv:2103.00020; between languages as LaBSE, arXiv:2007.01852). The pairs of
the update's whole batch are the negatives, so the number is the same on any devices and in any
microbatches. These are not in memory together, so the vectors are computed by a forward pass of
their own, and their gradients handed to the passes that are differentiated (gradient caching, Gao
et al. 2021, arXiv:2101.06983).

Each mean is over the whole update: what a position or a pair weighs is known before the first
microbatch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from mllm_jax.batch import TEXT, Batch
from mllm_jax.common.arithmetic import einsum
from mllm_jax.distributed.sharding import constrain
from mllm_jax.training.divergence import symmetric_kl

Metrics = dict[str, Array]
TINY = 1e-12  # added to squares of lengths, so that the vector of no question has a gradient


class Regularizer(NamedTuple):
    """The weights of the two terms."""

    kl: float
    contrastive: float
    temperature: float


class Scales(NamedTuple):
    """What the update's batch says of its rows; by row, so that it is divided as rows are."""

    kl: Float32[Array, " B"]  # weight of a position in the update's summed loss
    # gradient of the summed loss by the vectors of questions; None without the contrastive term
    pulls: Float32[Array, "B Q 2 D"] | None


def scales(
    terms: Regularizer, batch: Batch, vectors: Callable[[], Float32[Array, "B Q 2 D"]]
) -> tuple[Scales, Metrics]:
    """What rows of an update need of each other, and the value of InfoNCE.

    Args:
        terms: the weights.
        batch: the whole of it.
        vectors: computes `question_vectors` of all rows; called where they are needed.
    """
    assert batch.partners is not None and batch.spans is not None, "a batch without pairs"
    # the sum of losses is divided by this at the end
    trained = jnp.sum(jnp.asarray(batch.weights))
    positions = jnp.sum(jnp.asarray(batch.partners) >= 0)
    weight = terms.kl * trained / jnp.maximum(positions, 1)
    of_kl = jnp.full(len(batch.tokens), weight, jnp.float32)
    if not terms.contrastive:
        return Scales(of_kl, None), {}
    loss, pulls = jax.value_and_grad(info_nce)(vectors(), is_pair(batch), terms.temperature)
    pulls = constrain(pulls * (terms.contrastive * trained), "batch", "none", "none", "none")
    return Scales(of_kl, pulls), {"pair_contrastive": loss}


def penalty(
    terms: Regularizer,
    scale: Scales,
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    batch: Batch,
    chunk: int,
    reduce: Any = jnp.float32,
) -> tuple[Float32[Array, ""], Metrics]:
    """What rows add to the summed loss: by its gradient; its value means nothing. And sums.

    Args:
        terms: the weights.
        scale: of the rows.
        hidden, head, chunk, reduce: see `loss.weighted_loss`.
        batch: the rows.
    """
    partners, pairs = jnp.asarray(batch.partners), is_pair(batch)
    vectors = question_vectors(hidden, batch)
    unit = _unit(jax.lax.stop_gradient(vectors))
    cosines = jnp.sum(unit[:, :, 0] * unit[:, :, 1], axis=-1)
    # the last position of a question predicts the first trained token
    position = jnp.arange(partners.shape[1])[None, None, :]
    is_last = position == jnp.asarray(batch.spans)[:, :, 0, 1:] - 1
    compared = jnp.any(is_last & (partners >= 0)[:, None, :], axis=-1)
    sums = {
        "pairs": jnp.sum(pairs, dtype=jnp.float32),
        "pairs_unequal": jnp.sum(pairs & ~compared, dtype=jnp.float32),
        "pair_cosine_sum": jnp.sum(jnp.where(pairs, cosines, 0.0)),
    }
    added = jnp.zeros((), jnp.float32)
    if terms.kl:
        divergence = symmetric_kl(hidden, head, partners, chunk, reduce)
        sums |= {
            "pair_kl_sum": divergence,
            "pair_tokens": jnp.sum(partners >= 0, dtype=jnp.float32),
        }
        added += jnp.max(scale.kl) * divergence
    if scale.pulls is not None:
        added += jnp.sum(scale.pulls * vectors)
    return added, sums


def means(sums: Metrics) -> Metrics:
    """The sums of `penalty` with their means; 0 where there is nothing to take the mean of."""

    def mean(total: str, count: str) -> Array:
        return sums[total] / jnp.maximum(sums[count], 1.0)

    got = {"pair_cosine": mean("pair_cosine_sum", "pairs")}
    if "pair_kl_sum" in sums:
        got["pair_kl"] = mean("pair_kl_sum", "pair_tokens")
    return got


def is_pair(batch: Batch) -> Bool[Array, "B Q"]:
    """Which places for pairs of a row are taken."""
    return jnp.asarray(batch.spans)[:, :, 0, 1] > 0


def question_vectors(hidden: Float[Array, "B T D"], batch: Batch) -> Float32[Array, "B Q 2 D"]:
    """The mean hidden state of both questions of every pair; 0 where there is no pair.

    Args:
        hidden: final hidden states.
        batch: the rows.
    """
    spans, is_text = jnp.asarray(batch.spans), jnp.asarray(batch.image_index) == TEXT
    position = jnp.arange(hidden.shape[1])[None, None, None, :]
    inside = (position >= spans[..., :1]) & (position < spans[..., 1:])
    inside &= is_text[:, None, None, :]
    total = einsum("bqst,btd->bqsd", inside.astype(hidden.dtype), hidden, out=jnp.float32)
    return total / jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True), 1)


def info_nce(
    vectors: Float32[Array, "B Q 2 D"], pairs: Bool[Array, "B Q"], temperature: float
) -> Float32[Array, ""]:
    """Mean over pairs and both directions of the cross-entropy of finding the partner, in nats.

    0 for a pair alone: there is nothing to tell it from.

    Args:
        vectors: of all rows of an update.
        pairs: which of them there are.
        temperature: cosines are divided by it.
    """
    # every device has all of them: they are few and small
    unit = constrain(_unit(vectors), "none", "none", "none", "none")
    unit, pairs = unit.reshape(-1, 2, unit.shape[-1]), pairs.reshape(-1)
    cosines = einsum("nd,md->nm", unit[:, 0], unit[:, 1])
    scores = jnp.where(pairs[None, :] & pairs[:, None], cosines / temperature, -jnp.inf)
    scores = jnp.where(pairs[:, None] | pairs[None, :], scores, 0.0)  # rows without a pair: any
    found = jnp.diagonal(scores)
    losses = [jax.nn.logsumexp(scores, axis=axis) - found for axis in (0, 1)]
    total = jnp.sum(jnp.where(pairs, 0.5 * (losses[0] + losses[1]), 0.0))
    return total / jnp.maximum(jnp.sum(pairs), 1)


def _unit(vectors: Float32[Array, "*n D"]) -> Float32[Array, "*n D"]:
    """Of length 1, in float32."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + TINY)
