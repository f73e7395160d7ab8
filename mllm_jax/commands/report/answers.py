"""An evaluation's folder as the report's scores: groups, majority answers, cards with pictures."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.commands.report.damage import naming_damage
from mllm_jax.common.errors import ConfigError, one_line, require
from mllm_jax.common.json_file import read_json
from mllm_jax.config.stage import Config
from mllm_jax.data.images import decode
from mllm_jax.evaluation.answers import languages_of
from mllm_jax.evaluation.fidelity import line_fidelity
from mllm_jax.evaluation.language_id import open_identifier
from mllm_jax.evaluation.metrics.text import normalise
from mllm_jax.evaluation.results import tables
from mllm_jax.report.metrics_file import read_lines
from mllm_jax.report.views import Answer, Group, Scores

ANSWERS = "answers.jsonl"
PER_GROUP = 3  # answers of every kind and language on the page
CARDS = 60  # at most so many in all
OTHER = "question"  # kind of the records whose ids name none
MISSES = 12  # further wrong answers on the page
KEYS = {  # of a line, and their types
    "id": (str, int),
    "language": str,
    "images": list,
    "question": str,
    "answer": str,
    "truth": str,
    "correct": (bool, int, float),  # before tasks, a bool
}

Line = dict[str, Any]  # of answers.jsonl
Groups = Mapping[tuple[str, str], Sequence[Line]]  # kind, language -> lines


def read_scores(
    folder: Path, config: Config, kinds: Mapping[str, str]
) -> tuple[Scores | None, list[str]]:
    """An evaluation's scores, and lines about what is missing.

    Args:
        folder: of the evaluation.
        config: of the stage that was evaluated: how pictures are prepared.
        kinds: headings of the kinds of questions, for those that have one.

    Raises:
        ConfigError: damaged files (named).
    """
    if not (folder / ANSWERS).is_file():
        return None, ["no evaluation yet, so no scores and answers"]
    lines, scores_file = read_answers(folder), folder / "scores.json"
    with naming_damage(scores_file):
        languages = {
            name: {key: of[key] for key in ("loss", "perplexity")}
            for name, of in read_json(scores_file)["languages"].items()
        }
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[kind_of(line), line["language"]].append(line)
    first, misses = _chosen(groups, lines)
    pictures = _Pictures(config)
    fidelity, unknown = _fidelity(lines)
    scores = Scores(
        languages=languages,
        groups=[group(*key, of) for key, of in groups.items()],
        kinds={OTHER: "All questions"} | dict(kinds),
        answers=[_answer(line, pictures) for line in first],
        misses=[_answer(line, pictures) for line in misses],
        count=len(lines),
        intervals=_intervals(lines),
        fidelity=fidelity,
    )
    return scores, [*pictures.notes(), *unknown]


def _intervals(lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """95 % intervals of exact match, per language."""
    intervals = {}
    for language in languages_of(lines):
        # folders of before tasks have no groups
        own = [{"group": "", **line} for line in lines if line["language"] == language]
        mean = tables.mean(own)
        intervals[language] = (mean.low / 100, mean.high / 100)
    return intervals


def _fidelity(lines: Sequence[Line]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Whether answers are in their question's language, per language; or why it is not known."""
    languages = languages_of(lines)
    candidates = languages if len(languages) > 1 else tuple(dict.fromkeys([*languages, "en"]))
    if len(candidates) < 2:
        return {}, []
    try:
        identifier = open_identifier()
        return {
            name: line_fidelity(
                [line for line in lines if line["language"] == name], candidates, identifier
            )
            for name in languages
        }, []
    except ConfigError as error:  # not installed, or a language that it does not know
        return {}, [f"the language of answers is not identified: {error}"]


def read_answers(folder: Path) -> list[Line]:
    """The lines of an evaluation's answers.jsonl. Raises ConfigError where one is not valid."""
    path = folder / ANSWERS
    lines = list(read_lines(path))
    for number, line in enumerate(lines, start=1):
        wrong = [key for key, kind in KEYS.items() if not isinstance(line.get(key), kind)]
        require(not wrong, f"{path}:{number}: not a line of answers ({', '.join(wrong)})")
    require(len(lines) > 0, f"{path}: is empty; evaluate again")
    return lines


def kind_of(line: Line) -> str:
    """What a question asks, from its id "<kind>-<language>-<count>"; OTHER for other ids."""
    match = re.fullmatch(rf"(.+)-{re.escape(line['language'])}-\d+", str(line["id"]))
    return match[1] if match else OTHER


def group(kind: str, language: str, lines: Sequence[Line]) -> Group:
    """Counts right answers, and those that the most frequent true answer alone would get right.

    truths: bai, ez, Bai.    ->    majority 2 of 3, "bai"
    """
    truths = Counter(normalise(line["truth"]) for line in lines)
    common, majority = truths.most_common(1)[0]
    right = sum(bool(line["correct"]) for line in lines)
    return Group(kind, language, right, len(lines), majority, common)


def _chosen(groups: Groups, lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """The first answers of every group, and wrong ones from all over the rest."""
    each = max(1, min(PER_GROUP, CARDS // len(groups)))
    first = [line for of in groups.values() for line in of[:each]][:CARDS]
    numbers = {id(line) for line in first}
    misses = [line for line in lines if not line["correct"] and id(line) not in numbers]
    return first, misses[:: max(1, len(misses) // MISSES)][:MISSES]


def _answer(line: Line, pictures: "_Pictures") -> Answer:
    return Answer(
        id=str(line["id"]),
        language=line["language"],
        question=line["question"].replace("<image>", "").strip(),
        answer=line["answer"],
        truth=line["truth"],
        right=bool(line["correct"]),
        pictures=[x for image in line["images"] for x in pictures.load(image, line["images"])],
    )


class _Pictures:
    """Reads pictures as the evaluation gave them to the model."""

    def __init__(self, config: Config):
        # a run's model has the image processor that its data section asks for
        self._model = config.model
        self._fit: Any = config.data.image_fit
        self._unread: list[str] = []

    def load(self, path: str, images: Sequence[str]) -> Sequence[Any]:
        """The squares that the model reads of one of the images; or why there are none."""
        if self._model.vision is None:
            return ["this model reads text only"]
        try:
            return list(decode.load_tiles(path, self._model, self._fit, len(images)).pixels)
        except ConfigError as error:  # moved or removed since the evaluation: said, not hidden
            self._unread.append(str(error))
            return [one_line(str(error), 120)]

    def notes(self) -> list[str]:
        """One line about pictures that could not be read."""
        if not self._unread:
            return []
        return [f"{len(self._unread)} pictures of answers cannot be read: {self._unread[0]}"]
