"""Compares the evaluation of a folder with those of earlier stages in `compared/STAGE`."""

from pathlib import Path

from mllm_jax.evaluation.comparison import compare, load, pair_up
from mllm_jax.report.views import Compared

FOLDER = "compared"  # beside `evaluation`; a results folder for each stage


def read_compared(folder: Path, after: str) -> list[Compared]:
    """A row for every earlier stage and language.

    Args:
        folder: of the recipe.
        after: name of the stage in `evaluation`.

    Raises:
        ConfigError: damaged answers, or answers to other questions.
    """
    last, rows = folder / "evaluation", []
    if not (last / "answers.jsonl").is_file():
        return []
    for place in sorted((folder / FOLDER).glob("*/answers.jsonl")):
        for one in compare(pair_up([load(place.parent), load(last)])):
            rows.append(
                Compared(
                    before=place.parent.name,
                    after=after,
                    language=one.language,
                    count=one.count,
                    score_before=one.score_a,
                    score_after=one.score_b,
                    interval=_turned(one.low, one.high),
                    before_only=one.a_only,
                    after_only=one.b_only,
                    p=one.p_holm,
                    smallest=one.smallest_difference,
                )
            )
    return rows


def _turned(low: float | None, high: float | None) -> tuple[float, float] | None:
    """The interval of after less before, from that of before less after."""
    return None if low is None or high is None else (-high, -low)
