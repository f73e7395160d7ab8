"""Tests whether two models differ on the same questions: McNemar, bootstrap, errors, Holm, power.

Pure functions of numbers. Everything is paired: both models answered the same questions, so what
counts is the difference on each question, not the two scores by themselves.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

DRAWS = 10_000  # bootstrap samples: the interval's ends move by about 1 % of its length
LEVEL = 0.95
ALPHA, POWER = 0.05, 0.8
_TOGETHER = 2**22  # counts drawn at a time

Values = Float[np.ndarray, "n"]
Groups = Sequence[str]
McNemar = Literal["exact", "chi_square", "chi_square_corrected"]


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


class Bootstrap(NamedTuple):
    """What resampling says about a mean difference."""

    interval: Interval
    p: float


# -------------------------------------------------------------------------------- right or wrong


def mcnemar(a_only: int, b_only: int, method: McNemar = "exact") -> float:
    """p of McNemar's test: both models are right equally often.

    Only questions that exactly one of the two answers correctly say anything. Without such a
    question p is 1 (statsmodels 0.15 gives 0 for its chi-square).

    Args:
        a_only: questions that only the first answers correctly.
        b_only: questions that only the second answers correctly.
        method: `exact` is the binomial test with probability 1/2; `chi_square` takes
            (|a - b| - c)^2 / (a + b) for chi-square with one degree of freedom, c = 0;
            `chi_square_corrected` with c = 1 (Edwards).

    Source: Quinn McNemar, Psychometrika 12 (1947); the same numbers as statsmodels'
    `contingency_tables.mcnemar`.
    """
    discordant = a_only + b_only
    if discordant == 0:
        return 1.0
    if method == "exact":
        return min(1.0, 2 * _half_binomial(min(a_only, b_only), discordant))
    shift = 1 if method == "chi_square_corrected" else 0
    statistic = (abs(a_only - b_only) - shift) ** 2 / discordant
    return math.erfc(math.sqrt(statistic / 2))  # chi-square's tail with one degree of freedom


def _half_binomial(most: int, trials: int) -> float:
    """The probability of at most `most` heads in `trials` throws of a fair coin."""
    tail, term = 0, 1
    for heads in range(most + 1):
        tail += term
        term = term * (trials - heads) // (heads + 1)
    # whole numbers until here; true division of them is exact to the last bit of a float
    return tail / (1 << trials)


# ------------------------------------------------------------------------------------- any score


def paired_bootstrap(
    differences: Values,
    groups: Groups | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Bootstrap:
    """Percentile interval and p of a mean difference, by resampling questions (or groups).

    Each draw takes as many groups as there are, with replacement, and averages their questions.
    The interval holds the middle `level` of the draws' means. p is the share of draws whose
    distance from the observed mean is at least the observed mean's distance from zero, with one
    added to both counts, so it is at least 1 / (draws + 1); without any difference it is 1. Of d
    groups that differ it is at least 2 / 2^d, the least that their signs alone can have: resamples
    of three equal differences are all equal, and say nothing about a fourth.

    Args:
        differences: score of A minus score of B, of each question.
        groups: of each question; questions of one group (about one image) are drawn together.
            None: every question by itself.
        draws: resamples.
        seed: of the draws.
        level: of the interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 16.4;
    Philipp Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004).
    """
    sums, sizes = _totals(differences, groups)
    # groups with the same numbers are interchangeable: drawing how many of each kind come is the
    # same as drawing groups one by one, and right-or-wrong scores have three kinds
    kinds, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    generator, shares = np.random.default_rng(seed), counts / counts.sum()
    block, means = max(1, _TOGETHER // len(kinds)), []
    for start in range(0, draws, block):
        several = min(block, draws - start)
        drawn = generator.multinomial(len(sums), shares, several) @ kinds
        means.append(drawn[:, 0] / drawn[:, 1])
    drawn_means, mean = np.concatenate(means), differences.mean()
    edge = (1 - level) / 2
    low, high = np.quantile(drawn_means, [edge, 1 - edge])
    # equal distances must not count or not count by the last bit of a sum
    far = np.abs(drawn_means - mean) >= abs(mean) * (1 - 1e-9)
    least = 2.0 ** (1 - int(np.count_nonzero(sums)))
    p = min(1.0, max(least, float((1 + far.sum()) / (1 + draws))))
    return Bootstrap(Interval(float(low), float(high)), p)


def standard_error(values: Values, groups: Groups | None = None) -> float:
    """Standard error of a mean; 0 for one value or one group, which say nothing about it.

    Without groups, the sample's standard deviation over the root of its size, as lm-eval prints.
    With groups, questions of one group may be answered alike: the residuals are summed per group,
    squared, and summed over the groups (no correction for few groups); with one question per group
    that is the first formula with n in place of n - 1.

    Args:
        values: scores, or differences of two models' scores, of each question.
        groups: of each question.

    Source: Evan Miller, Adding Error Bars to Evals, arXiv 2411.00640 (2024), sections 2.1 and 2.2.
    """
    if groups is None:
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    sums, sizes = _totals(values, groups)
    if len(sums) < 2:
        return 0.0
    residuals = sums - sizes * values.mean()
    return float(np.sqrt((residuals**2).sum()) / len(values))


def _totals(
    values: Values, groups: Groups | None
) -> tuple[Float[np.ndarray, "g"], Int[np.ndarray, "g"]]:
    """(sum of the values, number of values) of every group."""
    if groups is None:
        return values, np.ones(len(values), np.int64)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    members = np.array([numbers[name] for name in groups])
    return np.bincount(members, values), np.bincount(members)


def confidence_interval(mean: float, error: float, level: float = LEVEL) -> Interval:
    """The normal interval around a mean, from its standard error."""
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(mean - reach, mean + reach)


def wilson_interval(right: float, count: int, level: float = LEVEL) -> Interval:
    """The interval of a share of independent questions, in 0..1; useful at 0 % and 100 % too.

    Args:
        right: questions answered correctly.
        count: all questions, at least one.

    Source: Edwin B. Wilson, Journal of the American Statistical Association 22 (1927).
    """
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / count
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


# -------------------------------------------------------------------- many tests, few questions


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the order of `values`.

        .01 .04 .03 .2  ->  .04 .09 .09 .2

    Source: Sture Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    corrected, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def smallest_difference(error: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference that a comparison of this size shows with probability `power`.

    A difference of d is significant at `alpha` (two-sided) with probability `power` if
    d = (z(1 - alpha/2) + z(power)) * error; with 0.05 and 0.8 that is 2.80 standard errors.

    Args:
        error: standard error of the mean difference, see `standard_error`; it holds the number of
            questions, and how much the two models' answers go together.

    Source: Evan Miller, arXiv 2411.00640 (2024), section 5, with one answer per question.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error
