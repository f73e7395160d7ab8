"""Perplexity of true answers, three ways that do not agree.

(tokens, mean loss)   (3, 1.2)   (10, 0.8)   (2, 7.5)
own perplexities       3.3201     2.2255      1808.04

perplexity             5.890456   exp of the loss per token over all answers: 26.6 nats / 15
perplexity_ndino       2.772829   mean of the own perplexities up to 1,000; 1 dropped
perplexity_documents   7091.3     exp of the loss per answer, lm-eval's: 26.6 nats / 3
"""

import math
from collections.abc import Sequence

from mllm_jax.common.errors import require

MOST_PERPLEXITY = 1000  # of an answer that counts in `mean_perplexity`
MOST_NATS = 700.0  # exp(709.8) is the end of float64


def perplexities(losses: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """All three, and how many answers LLaVA-NDiNO's leaves out.

    Args:
        losses: mean loss over the tokens of each answer, in nats.
        tokens: their number.

    Returns:
        "perplexity", "perplexity_ndino" (absent where all answers are left out), "dropped",
        "perplexity_documents" (absent where it is larger than float64 holds).

    Raises:
        ConfigError: no answers, or a loss that is not a number.
    """
    loss = token_weighted(losses, tokens)
    mean, dropped = mean_perplexity(losses)
    nats = loss * sum(tokens) / len(losses)
    numbers = {
        "perplexity": math.exp(loss),
        "perplexity_ndino": mean,
        "dropped": dropped,
        "perplexity_documents": math.exp(nats) if nats < MOST_NATS else None,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def token_weighted(losses: Sequence[float], tokens: Sequence[int], name: str = "answers") -> float:
    """Loss per token over all answers, in nats: every token counts alike.

    Args:
        losses: mean loss over the tokens of each answer, in nats.
        tokens: their number.
        name: of the answers, for the message.

    Raises:
        ConfigError: no tokens, or a loss that is not a number or that no trained model gives.
    """
    require(sum(tokens) > 0, f"the loss on {name} cannot be computed: there are no answer tokens")
    loss = sum(mean * count for mean, count in zip(losses, tokens, strict=True)) / sum(tokens)
    # a chance guess over a million words costs 14 nats
    require(
        loss < MOST_NATS, f"the loss on {name} is {loss} per token: the model's weights are broken"
    )
    return loss


def mean_perplexity(losses: Sequence[float]) -> tuple[float | None, int]:
    """(mean of the answers' own perplexities, answers above `MOST_PERPLEXITY`, which are left out).

    Every answer counts alike, however long. None where all are left out.

    Args:
        losses: mean loss over the tokens of each answer, in nats.

    Source: swapUniba/LLaVA-NDiNO, evaluate_ppl.py.
    """
    usable = [math.exp(loss) for loss in losses if loss <= math.log(MOST_PERPLEXITY)]
    mean = sum(usable) / len(usable) if usable else None
    return mean, len(losses) - len(usable)
