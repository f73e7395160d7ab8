"""Answer-language fidelity of stored answers, with the identifier's own accuracy beside it.

    lines of answers.jsonl -> answers, true answers -> metrics.fidelity

Questions about images that were asked without them too, or beside which others have no image, show
what the image costs: both kinds get numbers of their own, and the difference is the image-induced
loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.language_id import LanguageIdentifier, identify
from mllm_jax.evaluation.metrics.fidelity import fidelity, image_loss, shares


def line_fidelity(
    lines: Sequence[Line],
    languages: Sequence[str],
    identifier: LanguageIdentifier,
    without_images: Sequence[Line] = (),
) -> dict[str, float]:
    """Fidelity of generated answers to questions in one language, in percent.

    Args:
        lines: of answers.jsonl, all in one language.
        languages: candidates, codes; at least two, the language of the lines among them.
        identifier: see `language_id.open_identifier`.
        without_images: answers to the same questions, asked without their images.

    Returns:
        The numbers of `metrics.fidelity.fidelity`, where human text is the true answers. With
        `without_images` also `language_fidelity_image`, `undecided_image` of the questions that
        were asked both ways, the same with `_without_image`, and `image_loss`; otherwise, if some
        questions have images and others do not, these with `_text`. What cannot be told is absent.

    Raises:
        ConfigError: no answers, or languages that do not fit them.
    """
    require(len(lines) > 0, "language fidelity: no answers")
    language = lines[0]["language"]
    human = [text for line in lines for text in human_texts(line["truth"])]
    scores = fidelity([line["answer"] for line in lines], human, language, languages, identifier)
    kinds = _kinds(lines, without_images)
    if not all(kinds.values()):
        return scores
    for kind, answers in kinds.items():
        numbers = shares(identify(answers, languages, identifier), language)
        scores[f"undecided_{kind}"] = numbers["undecided"]
        if "right" in numbers:
            scores[f"language_fidelity_{kind}"] = numbers["right"]
    shown, alone = (scores.get(f"language_fidelity_{kind}") for kind in kinds)
    if shown is not None and alone is not None:
        scores["image_loss"] = image_loss(alone, shown)
    return scores


def _kinds(lines: Sequence[Line], without_images: Sequence[Line]) -> dict[str, list[str]]:
    """Answers to questions with images, and those that they are compared with."""
    shown = [line for line in lines if line["images"]]
    if not without_images:
        alone = [line["answer"] for line in lines if not line["images"]]
        return {"image": [line["answer"] for line in shown], "text": alone}
    by_id = {line["id"]: line["answer"] for line in without_images}
    both = [line for line in shown if line["id"] in by_id]
    return {
        "image": [line["answer"] for line in both],
        "without_image": [by_id[line["id"]] for line in both],
    }


def human_texts(truth: Any) -> list[str]:
    """The texts in a question's truth: an answer, several answers, the options of a choice."""
    if isinstance(truth, str):
        return [truth]
    if isinstance(truth, Mapping):
        return [text for value in truth.values() for text in human_texts(value)]
    if isinstance(truth, list | tuple):
        return [text for value in truth for text in human_texts(value)]
    return []
