"""Ratings from pairwise preferences: Bradley-Terry on the scale of Elo, and rank correlation.

preferences -> wins and ties of every pair -> ratings, intervals by bootstrap
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mllm_jax.common.errors import ConfigError, RunError

SCALE, INITIAL = 400.0, 1000.0  # a rating 400 higher wins ten times as often; the mean rating
DRAWS = 1000
LEVEL = 0.95
_MOST_STEPS, _LONGEST = 200, 1.0  # Newton's steps, and how far one may move, in logits
_EXHAUSTIVE = 7  # ranks: all 5,040 orders are tried; of more, a sample
_ORDERS = 10_000

Winner = Literal["model_a", "model_b", "tie"]


class Preference(NamedTuple):
    """One judgement about two models' answers."""

    model_a: str
    model_b: str
    winner: Winner


class Tally(NamedTuple):
    """How many times every model won against, or tied with, every other."""

    models: list[str]
    wins: Int[np.ndarray, "m m"]  # [i, j]: i was preferred to j
    ties: Int[np.ndarray, "m m"]  # [i, j] for i < j


class Ratings(NamedTuple):
    """Ratings with the ends of their confidence intervals, in the order of `Tally.models`."""

    ratings: Float[np.ndarray, "m"]
    low: Float[np.ndarray, "m"]
    high: Float[np.ndarray, "m"]
    unbounded: int  # resamples in which some rating has no finite value; not in the intervals


def tally(preferences: Sequence[Preference]) -> Tally:
    """Counts preferences; models in order of appearance."""
    models = list(dict.fromkeys(itertools.chain.from_iterable(p[:2] for p in preferences)))
    number = {model: index for index, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)), np.int64)
    ties = np.zeros_like(wins)
    for a, b, winner in preferences:
        i, j = number[a], number[b]
        if winner == "tie":
            ties[min(i, j), max(i, j)] += 1
        else:
            wins[(i, j) if winner == "model_a" else (j, i)] += 1
    return Tally(models, wins, ties)


def rate(counts: Tally, draws: int = DRAWS, seed: int = 0) -> Ratings:
    """Maximum likelihood ratings, and percentile intervals from resampled preferences.

    P(i is preferred to j) = 1 / (1 + 10^((r_j - r_i) / 400)); the mean of the ratings is 1000.
    A win counts twice, a tie once for each side: logistic regression without intercept or penalty.
    Two models at 3 : 1 get 1000 +- 95.42.

    Args:
        counts: of all preferences.
        draws: resamples of the preferences, with replacement.
        seed: of the resamples.

    Raises:
        ConfigError: a rating has no finite value, see `check`.

    Source: Chiang et al., Chatbot Arena, arXiv 2403.04132, with the notebook's treatment of ties;
    HiTZ/latxa-instruct, scoring.py.
    """
    check(counts)
    ratings = _fit(_weights(counts.wins, counts.ties)[None])[0]
    size = len(counts.models)
    cells = np.concatenate([counts.wins.ravel(), counts.ties.ravel()])
    drawn = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), draws)
    wins, ties = drawn.reshape(draws, 2, size, size).swapaxes(0, 1)
    weights = _weights(wins, ties)
    usable = weights[_reachable(weights).all((1, 2))]
    if len(usable) < draws / 2:
        raise ConfigError(
            f"too few preferences: in {draws - len(usable):,} of {draws:,} resamples a model "
            "always wins or loses, so ratings have no interval; collect more"
        )
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(_fit(usable), [edge, 1 - edge], axis=0)
    return Ratings(ratings, low, high, draws - len(usable))


def check(counts: Tally) -> None:
    """Raises ConfigError by name where a rating has no finite value.

    Every model must be preferred, or tied, along some chain of comparisons to every other one
    (Ford, 1957): no group of models may be unconnected to the rest, and none win always.
    """
    reach = _reachable(_weights(counts.wins, counts.ties)[None])[0]
    for index, model in enumerate(counts.models):
        missed = np.flatnonzero(~reach[index])
        if len(missed) == 0:
            continue
        names = ", ".join(sorted(counts.models[m] for m in missed)[:5])
        if not reach[missed][:, reach[index]].any():
            raise ConfigError(
                f"{model} is never compared, directly or through others, with {names}: their "
                "ratings have no common scale; rate each group by itself, or compare across them"
            )
        raise ConfigError(
            f"against {model}, directly or through others, no loss or tie of {names}: their "
            "ratings are not finite; collect more preferences, or leave these models out"
        )


def _weights(wins: Int[np.ndarray, "*d m m"], ties: Int[np.ndarray, "*d m m"]) -> np.ndarray:
    """[..., i, j]: how much speaks for i over j."""
    return (2 * wins + ties + ties.swapaxes(-1, -2)).astype(np.float64)


def _reachable(weights: Float[np.ndarray, "d m m"]) -> Bool[np.ndarray, "d m m"]:
    """[..., i, j]: whether a chain leads from i to j, each preferred to or tied with the next."""
    reach = (weights > 0) | np.eye(weights.shape[-1], dtype=bool)
    for _ in range(max(1, (weights.shape[-1] - 1).bit_length())):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return reach


def _fit(weights: Float[np.ndarray, "d m m"]) -> Float[np.ndarray, "d m"]:
    """Ratings of several tallies at once, by Newton's method.

    The likelihood is concave; adding a constant to all ratings changes nothing, so their mean is
    fixed by one more row of curvature. Steps are cut where little speaks against a model.
    """
    size = weights.shape[-1]
    both = weights + weights.swapaxes(1, 2)
    scores = np.zeros(weights.shape[:2])
    for _ in range(_MOST_STEPS):
        won = 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))  # P(i over j)
        slope = (weights - both * won).sum(2)
        spread = both * won * (1 - won)
        curvature = np.eye(size) * spread.sum(2)[:, :, None] - spread
        step = np.linalg.solve(curvature + 1 / size, slope[..., None])[..., 0]
        longest = np.abs(step).max(1, keepdims=True)
        scores += step * np.minimum(1, _LONGEST / np.maximum(longest, 1e-300))
        if longest.max() < 1e-10:
            scores -= scores.mean(1, keepdims=True)
            return INITIAL + SCALE / math.log(10) * scores
    raise RunError("the ratings do not converge: nearly all preferences are for the same models")


# -------------------------------------------------------------------------------- rank correlation


class Correlation(NamedTuple):
    """Spearman's rank correlation."""

    rho: float
    p: float  # two-sided, by permutation


def spearman(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Correlation | None:
    """How far two scores of the same models rank them alike; None where a score never differs.

    Ties get the mean of their ranks. p is the share of all orders with as large a |rho|; of more
    than seven models, of 10,000 random ones and the observed one.

    Args:
        first, second: at least two values each, by model.
        seed: of the random orders.

    Source: Charles Spearman, The Proof and Measurement of Association between Two Things (1904).
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    x, y = (rank - rank.mean() for rank in ranks)
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    if scale == 0:
        return None
    if len(x) <= _EXHAUSTIVE:
        orders, more = np.array(list(itertools.permutations(y))), 0
    else:
        generator = np.random.default_rng(seed)
        orders, more = generator.permuted(np.tile(y, (_ORDERS, 1)), axis=1), 1
    rho = float((x * y).sum()) / scale
    as_large = np.abs(orders @ x) / scale >= abs(rho) - 1e-9
    return Correlation(rho, float((as_large.sum() + more) / (len(orders) + more)))


def _ranks(values: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]
