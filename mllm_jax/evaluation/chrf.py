"""chrF and BLEU of stored answers against their true answers, with sacrebleu's signatures.

For languages that build long words, such as Basque, chrF says more about a caption or a long answer
than counts of whole words do.
"""

from collections.abc import Sequence
from typing import Any

from mllm_jax.common.errors import ConfigError, quoted
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.metrics.translation import Translated, translation_scores


def line_chrf(lines: Sequence[Line]) -> Translated:
    """Scores of generated answers; the truth of each is a text, or several.

    Args:
        lines: of answers.jsonl.

    Raises:
        ConfigError: no answers, a truth that is not text, or sacrebleu is not installed.
    """
    truths = [references(line["id"], line["truth"]) for line in lines]
    return translation_scores([line["answer"] for line in lines], truths)


def references(key: str, truth: Any) -> list[str]:
    """The texts of a truth. Raises ConfigError, which names the question, where it is not text."""
    texts = [truth] if isinstance(truth, str) else truth
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise ConfigError(
            f"chrF and BLEU: the truth of question {quoted(key, 60)} is {quoted(truth, 60)}; they "
            "need a text, or several"
        )
    return texts
