"""Multiple choice by log-likelihood: which option the model finds most likely, three ways.

    acc         by the sum over the option's tokens                   lm-eval's acc
    acc_norm    by the sum over the number of characters of its text  lm-eval's acc_norm
    acc_token   by the mean over its tokens                           ours

The first of several equal ones is chosen, as numpy's argmax does.
"""

import math
from collections.abc import Sequence

from mllm_jax.common.errors import require


def chosen(
    loglikelihoods: Sequence[float], options: Sequence[str], tokens: Sequence[int]
) -> dict[str, int]:
    """The option chosen by each of `acc`, `acc_norm` and `acc_token`, from 0.

    Args:
        loglikelihoods: sum over the tokens of each option, in nats.
        options: their texts, without the space before them.
        tokens: how many tokens each sum is over.

    Raises:
        ConfigError: no options, one without characters or tokens, or a sum that is not a number.
    """
    count = len(loglikelihoods)
    require(
        count == len(options) == len(tokens) and count > 0,
        f"options: {count} log-likelihoods, {len(options)} texts and {len(tokens)} token counts",
    )
    require(not any(map(math.isnan, loglikelihoods)), "options: a log-likelihood is not a number")
    require(all(options) and all(number > 0 for number in tokens), "options: one is empty")
    lengths = {"acc": [1] * count, "acc_norm": [len(text) for text in options], "acc_token": tokens}
    return {name: _argmax(loglikelihoods, divisors) for name, divisors in lengths.items()}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, from the sample's deviation (n - 1), as lm-eval prints it; 0 for one value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return 0.0
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _argmax(sums: Sequence[float], divisors: Sequence[int]) -> int:
    scores = [total / divisor for total, divisor in zip(sums, divisors, strict=True)]
    return scores.index(max(scores))
