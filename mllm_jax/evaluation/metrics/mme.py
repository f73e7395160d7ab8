"""MME: two yes/no questions per image; accuracy per question and per image, summed by category.

    an image with both answers right:  100 + 100     one right:  50 + 0     none:  0

A category's score is the mean over its images, so 200 at most; perception and cognition are sums
over their categories (2,000 and 800 at most). Answers are read by `yes_no.mme`.

Source: calculation.py of MME's evaluation tool, as in lmms-eval's tasks/mme.
"""

from collections import defaultdict
from collections.abc import Iterable

from mllm_jax.common.errors import ConfigError, quoted

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme(answers: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """The sums and every category's score.

    Args:
        answers: (category, image, right) of each question.

    Returns:
        "perception" and "cognition", the sums over those of their categories that were asked, 0 if
        none was; "accuracy" and "accuracy_plus", shares in percent of all questions and of all
        images; then one number per category under its name.

    Raises:
        ConfigError: no answers, an image without exactly two questions, or an unknown category.
    """
    images: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for category, image, right in answers:
        images[category, image].append(right)
    _check(images)
    scores: dict[str, list[float]] = defaultdict(list)
    for (category, _), pair in images.items():
        scores[category].append(50 * sum(pair) + 100 * all(pair))
    means = {category: sum(values) / len(values) for category, values in scores.items()}
    return {
        "perception": sum(means.get(category, 0.0) for category in PERCEPTION),
        "cognition": sum(means.get(category, 0.0) for category in COGNITION),
        "accuracy": 50 * sum(map(sum, images.values())) / len(images),
        "accuracy_plus": 100 * sum(map(all, images.values())) / len(images),
        **means,
    }


def _check(images: dict[tuple[str, str], list[bool]]) -> None:
    if not images:
        raise ConfigError("MME: no answers to score")
    for (category, image), pair in images.items():
        if category not in (*PERCEPTION, *COGNITION):
            raise ConfigError(
                f"MME: category {quoted(category)} is not one of "
                f"{', '.join((*PERCEPTION, *COGNITION))}"
            )
        if len(pair) != 2:
            raise ConfigError(
                f"MME: image {quoted(image)} of {category}: MME asks two questions of each image, "
                f"got {len(pair)}; score whole images"
            )
