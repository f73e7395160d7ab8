"""Answer-language fidelity: whether a model answers in the language that it was asked in.

    language_fidelity         answers in the language asked for / answers whose language is decided
    undecided                 answers too short, or between two languages / all answers
    identifier_accuracy       the same two of texts that people wrote in the language: what the
    identifier_undecided      identifier itself can do, without which the first says little

A model that follows the language of a text but not of a question about an image has an
image-induced loss: its fidelity without images less the one with them.

Source: 2407.02333, 2503.22577 (arXiv).
"""

from collections.abc import Sequence

from mllm_jax.common.errors import require
from mllm_jax.evaluation.language_id import LanguageIdentifier, identify


def fidelity(
    answers: Sequence[str],
    human: Sequence[str],
    language: str,
    languages: Sequence[str],
    identifier: LanguageIdentifier,
) -> dict[str, float]:
    """The four numbers above, in percent. One whose texts are all undecided is absent.

    Args:
        answers: a model's, to questions in `language`.
        human: texts that people wrote in it, such as the true answers; none: only the first two.
        language: code of the language asked for.
        languages: candidates, codes; the languages of the task.
        identifier: see `language_id.open_identifier`.

    Raises:
        ConfigError: no answers, a language that is not among the candidates, fewer than two of
            those, or one that the identifier does not know.
    """
    require(
        language in languages,
        f"language {language!r} is not among those to tell apart: {', '.join(languages)}",
    )
    numbers = shares(identify(answers, languages, identifier), language)
    scores = {
        name: numbers[key]
        for name, key in (("language_fidelity", "right"), ("undecided", "undecided"))
        if key in numbers
    }
    if human:
        numbers = shares(identify(human, languages, identifier), language)
        names = (("identifier_accuracy", "right"), ("identifier_undecided", "undecided"))
        scores |= {name: numbers[key] for name, key in names if key in numbers}
    return scores


def shares(identified: Sequence[str | None], language: str) -> dict[str, float]:
    """Percentages: "right" of the decided ones (absent if none is), "undecided" of all."""
    require(len(identified) > 0, "language fidelity: no answers")
    decided = [code for code in identified if code is not None]
    undecided = 100 * (len(identified) - len(decided)) / len(identified)
    if not decided:
        return {"undecided": undecided}
    return {"right": 100 * decided.count(language) / len(decided), "undecided": undecided}


def image_loss(without_image: float, with_image: float) -> float:
    """Image-induced fidelity loss: fidelity on text alone less fidelity with images, in points."""
    return without_image - with_image
