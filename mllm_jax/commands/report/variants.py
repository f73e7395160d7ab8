"""The finished models of a recipe that is a tree, beside one another: scores, and answers to the
same questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.commands.report.answers import read_answers, read_scores
from mllm_jax.config.stage import Config
from mllm_jax.report.views import Answer, OtherAnswer, Scores, Variant


def read_variants(
    folder: Path, summary: Mapping[str, Any], configs: Mapping[str, Config]
) -> tuple[list[Variant], list[str]]:
    """The variants of a recipe, and lines about what is missing.

    Args:
        folder: of the recipe; evaluations are in `evaluation/NAME`.
        summary: its summary.json.
        configs: of the stages that have steps.

    Raises:
        ConfigError: damaged files (named).
    """
    starts = {stage["name"]: stage.get("from") for stage in summary["stages"]}
    variants, missing = [], []
    for name, stage in summary["variants"].items():
        if stage not in starts or stage not in configs:
            missing.append(f"{name}: stage {stage} is not finished yet")
            continue
        place = folder / "evaluation" / name
        scores, notes = read_scores(place, configs[stage], summary.get("kinds", {}))
        variants.append(Variant(name, _path(stage, starts), scores))
        missing += [f"{name}: {note}" for note in notes]
    return _with_others(folder, variants), missing


def _path(stage: str, starts: Mapping[str, str | None]) -> list[str]:
    """The stages from the first one to this one."""
    path, start = [stage], starts[stage]
    while start is not None and start not in path:
        path.append(start)
        start = starts.get(start)
    return path[::-1]


def _with_others(folder: Path, variants: Sequence[Variant]) -> list[Variant]:
    """The last evaluated variant's answers with those of the others; these show scores alone."""
    evaluated = [variant for variant in variants if variant.scores is not None]
    if not evaluated:
        return list(variants)
    others: dict[tuple[str, str], list[OtherAnswer]] = {}
    for variant in evaluated[:-1]:
        for line in read_answers(folder / "evaluation" / variant.name):
            answer = OtherAnswer(variant.name, line["answer"], bool(line["correct"]))
            others.setdefault((str(line["id"]), line["truth"]), []).append(answer)

    def together(scores: Scores, last: bool) -> Scores:
        def full(answer: Answer) -> Answer:
            return answer._replace(others=others.get((answer.id, answer.truth), ()))

        answers, misses = (map(full, of) for of in (scores.answers, scores.misses))
        return scores._replace(
            answers=list(answers) if last else [], misses=list(misses) if last else []
        )

    return [
        variant._replace(scores=together(variant.scores, variant is evaluated[-1]))
        if variant.scores is not None
        else variant
        for variant in variants
    ]
