"""Answer-language fidelity of stored answers, with the identifier's own accuracy beside it.

    lines of answers.jsonl -> answers, true answers -> metrics.fidelity

Where some questions have images and some have none, both kinds also get numbers of their own, and
the difference: the image-induced loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.language_id import LanguageIdentifier, identify
from mllm_jax.evaluation.metrics.fidelity import fidelity, image_loss, shares


def line_fidelity(
    lines: Sequence[Line], languages: Sequence[str], identifier: LanguageIdentifier
) -> dict[str, float]:
    """Fidelity of generated answers to questions in one language, in percent.

    Args:
        lines: of answers.jsonl, all in one language.
        languages: candidates, codes; at least two, the language of the lines among them.
        identifier: see `language_id.open_identifier`.

    Returns:
        The numbers of `metrics.fidelity.fidelity`, where human text is the true answers. If some
        questions have images and others do not, also `language_fidelity_image`, `undecided_image`,
        the same with `_text`, and `image_loss`. What cannot be told is absent.

    Raises:
        ConfigError: no answers, or languages that do not fit them.
    """
    require(len(lines) > 0, "language fidelity: no answers")
    language = lines[0]["language"]
    human = [text for line in lines for text in human_texts(line["truth"])]
    scores = fidelity([line["answer"] for line in lines], human, language, languages, identifier)
    kinds = {
        "image": [line["answer"] for line in lines if line["images"]],
        "text": [line["answer"] for line in lines if not line["images"]],
    }
    if not all(kinds.values()):
        return scores
    for kind, answers in kinds.items():
        numbers = shares(identify(answers, languages, identifier), language)
        scores[f"undecided_{kind}"] = numbers["undecided"]
        if "right" in numbers:
            scores[f"language_fidelity_{kind}"] = numbers["right"]
    both = [scores.get(f"language_fidelity_{kind}") for kind in ("text", "image")]
    if both[0] is not None and both[1] is not None:
        scores["image_loss"] = image_loss(both[0], both[1])
    return scores


def human_texts(truth: Any) -> list[str]:
    """The texts in a question's truth: an answer, several answers, the options of a choice."""
    if isinstance(truth, str):
        return [truth]
    if isinstance(truth, Mapping):
        return [text for value in truth.values() for text in human_texts(value)]
    if isinstance(truth, list | tuple):
        return [text for value in truth for text in human_texts(value)]
    return []
