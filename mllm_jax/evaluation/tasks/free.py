"""Conversations of a LLaVA JSON file: every assistant's turn is a question with a true answer.

The turns before it are the true ones, not the model's. Answers are compared by exact match, both
ways; where the chat template ends answers, the loss of the true answer is measured too.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mllm_jax.common.errors import quoted, require
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.heldout import images_beside
from mllm_jax.data.records.parse import IMAGE, Record
from mllm_jax.evaluation.questions import languages_in, load_records
from mllm_jax.evaluation.tasks.base import EVERY, Line, TableTask, share, unparseable
from mllm_jax.evaluation.tasks.perplexity import loss_of, losses
from mllm_jax.evaluation.tasks.short_answer import EXACT
from mllm_jax.evaluation.tasks.task import Answer, Judged, Question, image_name


@dataclass(frozen=True, kw_only=True)
class Free(TableTask):
    """Reads records, not rows: `data` names a file, and no column or prompt is changed."""

    family: ClassVar[str] = "free"
    end_of_turn: ClassVar[bool] = True
    headline: ClassVar[str] = "exact_match"
    own_languages: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("columns", "question", "pre_prompt", "post_prompt", "remove"):
            require(not getattr(self, name), f"{name}: has no effect in family free")

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the records name, in order of appearance."""
        names = [name for name in self.data if name != EVERY]
        if EVERY not in self.data:
            return tuple(names)
        path = self._path(EVERY)
        found = languages_in(path)
        if not found:  # no record says its language; this names the first ones
            load_records(self.name, StreamConfig(path, str(self._folder(EVERY))), ())
        return found

    def _path(self, language: str) -> str:
        data = self.data.get(language, self.data.get(EVERY))
        require(
            data is not None and data.path is not None,
            f"task {self.name}: no file of conversations in {quoted(language, 40)}; give --data "
            "FILE (LLaVA JSON or JSONL)",
        )
        return data.path  # type: ignore[union-attr]

    def _folder(self, language: str) -> Path:
        """Where image paths start."""
        data = self.data.get(language, self.data.get(EVERY))
        images = data.images if data is not None else None
        folder = Path(images) if images is not None else images_beside(Path(self._path(language)))
        require(folder.is_dir(), f"images={str(folder)!r}: no such folder")
        return folder

    def questions(self, language: str, root: Path, limit: int | None = None) -> list[Question]:
        """See `Task.questions`; `root` is not read."""
        del root
        path, folder = self._path(language), self._folder(language)
        names = languages_in(path)
        require(
            language in names,
            f"{path}: no records in {quoted(language, 40)}; there are {', '.join(names) or 'none'}",
        )
        stat = Path(path).stat()
        records = _records(path, str(folder), names, stat.st_mtime_ns + stat.st_size)
        chosen = [one for record in records if record.language == language for one in asked(record)]
        _check_ids(path, chosen)
        return chosen[:limit]

    def judge(self, question: Question, answer: Answer) -> Judged:
        parsed = answer.text or None
        numbers = {
            name: float(parsed is not None and rule(answer.text, question.truth))
            for name, rule in EXACT.items()
        }
        if answer.log_likelihoods:
            numbers |= loss_of(question, answer)
        return Judged(parsed, numbers["exact_match"], numbers)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        scores = {name: share([line["numbers"][name] for line in lines]) for name in EXACT}
        if all("loss" in line["numbers"] for line in lines):
            scores |= losses(lines)
        return {
            **scores,
            "unparseable": unparseable(lines),
            "unfinished": share([not line["finished"] for line in lines]),
        }

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Perplexities and counts with as many digits as they need."""
        return {
            name: f"{value:.6g}" if name.startswith(("perplexity", "answer")) else f"{value:.2f}"
            for name, value in metrics.items()
        }


@functools.lru_cache(maxsize=1)
def _records(path: str, folder: str, names: tuple[str, ...], stamp: int) -> Sequence[Record]:
    """All records of a file, read once for all its languages; `stamp` changes with the file."""
    del stamp
    return load_records("evaluation", StreamConfig(path, folder), names)


def asked(record: Record) -> list[Question]:
    """A question for each of a record's answers; ids of several are ID/0, ID/1, ..."""
    ends = [end for end, turn in enumerate(record.turns) if turn.role == "assistant"]
    questions = []
    for number, end in enumerate(ends):
        seen = sum(part is IMAGE for turn in record.turns[:end] for part in turn.parts)
        parts = record.turns[end].parts
        truth = "".join(part for part in parts if isinstance(part, str)).strip()
        question = Question(
            id=record.id if len(ends) == 1 else f"{record.id}/{number}",
            language=record.language,
            turns=record.turns[:end],
            images=record.images[:seen],
            truth=truth,
            options=(truth,),
            group=image_name(record.images[0]) if record.images else record.id,
        )
        questions.append(question)
    return questions


def _check_ids(path: str, questions: Sequence[Question]) -> None:
    ids: set[str] = set()
    for question in questions:
        require(
            question.id not in ids,
            f"{path}: id {quoted(question.id, 60)} is that of two records; make ids unique",
        )
        ids.add(question.id)
