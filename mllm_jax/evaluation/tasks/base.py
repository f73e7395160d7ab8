"""The base of all tasks that are read from rows: prompts per language, ids, groups, limits."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.ranges import NameText, Range, Section, Size
from mllm_jax.config.loading import to_dict
from mllm_jax.data.records.parse import user_turn
from mllm_jax.evaluation.languages import Language, language
from mllm_jax.evaluation.tasks.data import Columns, Data, Names, Prompt, Prompts
from mllm_jax.evaluation.tasks.rows import ROOT, Row, Rows, TruthRows
from mllm_jax.evaluation.tasks.task import Answer, Judged, Kind, Question, image_name

EVERY = "*"  # in the place of a language: all that are not named
Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TableTask(Section):
    """What every task file can say. A family adds its own keys, and says how answers are judged."""

    family: ClassVar[str]  # its name in task files
    kind: ClassVar[Kind] = "generate"
    chat: ClassVar[bool] = True
    end_of_turn: ClassVar[bool] = False
    headline: ClassVar[str] = "accuracy"
    own_languages: ClassVar[bool] = False  # whether a file names the language of each record

    name: NameText
    """The task's name in results."""
    data: Annotated[dict[NameText, Data], Size("[0, 1_000]")] = field(default_factory=dict)
    """Language -> where its rows are."""
    columns: Columns = field(default_factory=dict)
    """The task's names for columns -> columns; `{language}` in one is the language."""
    image_columns: Names = ("image",)
    """Columns with images, in the order in which they are shown."""
    question: Prompts = field(default_factory=dict)
    """Language -> what is asked about every row, in the place of its own question."""
    pre_prompt: Prompts = field(default_factory=dict)
    """Language -> text before every question; `*` is every other language."""
    post_prompt: Prompts = field(default_factory=dict)
    """Language -> text after every question; `*` is every other language."""
    remove: Prompt = ""
    """Text that is taken out of the questions, such as a post-prompt that they already hold."""
    max_new_tokens: Annotated[int, Range("[1, 100_000]")] = 16
    """Where a generated answer is cut."""
    words: Annotated[dict[NameText, Language], Size("[0, 1_000]")] = field(default_factory=dict)
    """Language -> its table of words, in the place of the built-in one."""

    @property
    def settings(self) -> dict[str, Any]:
        """The task file as it was resolved, with the family and without the places of data."""
        settings = {name: value for name, value in to_dict(self).items() if name != "data"}
        return {"family": self.family, **settings}

    @property
    def leaves_out(self) -> bool:
        """Whether the task asks only some of the questions of its data."""
        return False

    @property
    def languages(self) -> tuple[str, ...]:
        """Those with data and, where the task has prompts, with prompts."""
        return tuple(name for name in self.data if self._lacks(name) is None)

    def table(self, name: str) -> Language:
        """The words of a language. Raises ConfigError where it has no table."""
        return self.words[name] if name in self.words else language(name)

    def questions(self, language: str, root: Path, limit: int | None = None) -> list[Question]:
        """See `Task.questions`."""
        if language not in self.data:
            raise ConfigError(
                f"task {self.name}: no published data in {quoted(language, 40)} are known (there "
                f"are: {', '.join(self.data) or 'none'}); give --data FILE, or data.{language} in "
                f"a task file (from: {self.name})"
            )
        if (lacking := self._lacks(language)) is not None:
            raise ConfigError(
                f"task {self.name}: no {lacking} in {quoted(language, 40)}; write {lacking}: "
                f"{{{language}: ...}} in a task file (from: {self.name}), with {EVERY} for all"
            )
        rows = Rows(self.name, language, self.data[language], self.columns, root)
        questions = list(islice(self._asked(rows), limit))
        require(len(questions) > 0, f"task {self.name}: no questions in {quoted(language, 40)}")
        return questions

    def truths(
        self, language: str, items: Sequence[tuple[Mapping[str, Any], str]]
    ) -> list[Question]:
        """The questions of rows, each with its place, whose images nobody looks at."""
        data = self.data.get(language, Data(path="."))
        return list(self._asked(TruthRows(self.name, language, data, self.columns, ROOT, items)))

    def _asked(self, rows: Rows) -> Iterator[Question]:
        places: dict[str, str] = {}
        for row, split in rows:
            for question in self.ask(rows, row, split):
                earlier = places.setdefault(question.id, row.location)
                if earlier is not row.location:
                    raise ConfigError(
                        f"{row.location}: id {quoted(question.id, 60)} is that of {earlier}; ids "
                        f"are unique in a task (columns.id of task {self.name} names their column)"
                    )
                yield question

    def ask(self, rows: Rows, row: Row, split: str) -> Iterator[Question]:
        """The questions of a row: one, more (rotated options), or none."""
        raise NotImplementedError

    def judge(self, question: Question, answer: Answer) -> Judged:
        """See `Task.judge`."""
        raise NotImplementedError

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        """See `Task.metrics`."""
        raise NotImplementedError

    def published(self, question: Question) -> Question:
        """A question that was read from a published file, with the family's truth: one text."""
        return question._replace(truth=one_text(question.truth))

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Metrics as a paper's table prints them."""
        return {name: f"{value:.2f}" for name, value in metrics.items()}

    # ------------------------------------------------------------------ what families make of a row

    def make(
        self,
        rows: Rows,
        row: Row,
        split: str,
        truth: Any,
        text: str,
        image_names: Sequence[str] | None = None,
        **more: Any,
    ) -> Question:
        """A question about a row.

        Args:
            rows, row, split: as `ask` gets them.
            truth: what an answer is compared with.
            text: as it is asked, see `wording`.
            image_names: columns with its images, if not all of `image_columns`.
            more: other fields of `Question`.
        """
        images = rows.images(row, self.image_columns if image_names is None else image_names)
        category = row.optional("category") or split
        key = self.key(row, split)
        return Question(
            **{
                "id": key,
                "language": rows.language,
                "turns": (user_turn(text, len(images)),),
                "images": images,
                "truth": truth,
                "group": row.optional("group") or (image_name(images[0]) if images else key),
                "category": category,
                **more,
            }
        )

    def key(self, row: Row, split: str) -> str:
        """The id of a row: that of the data, behind its split's name where several are read."""
        key = row.text("id") if "id" in self.columns or row.has("id") else row.number
        return f"{split}/{key}" if split else key

    def wording(self, language: str, text: str) -> str:
        """A question between its pre-prompt and its post-prompt."""
        if self.remove:
            text = text.replace(self.remove, "")
        before, after = self._prompt("pre_prompt", language), self._prompt("post_prompt", language)
        return f"{before}{text.strip()}{after}"

    def asked(self, row: Row, language: str) -> str:
        """The question of a row, or the one that is asked about all."""
        fixed = self._prompt("question", language)
        return fixed or row.text("question")

    def _prompt(self, name: str, language: str) -> str:
        prompts = getattr(self, name)
        return prompts.get(language, prompts.get(EVERY, ""))

    def _lacks(self, language: str) -> str | None:
        """The first kind of prompt that the task has, but not in a language."""
        for name in ("question", "pre_prompt", "post_prompt"):
            prompts = getattr(self, name)
            if name == "question" and "question" in self.columns:
                continue  # rows hold theirs
            if prompts and language not in prompts and EVERY not in prompts:
                return name
        return None

    def with_data(
        self, language: str | None, path: Path, images: Path | None = None
    ) -> "TableTask":
        """The task with a file in the place of its published data, of one language or of all.

        Raises:
            ConfigError: no language is named, and the file's rows do not name theirs.
        """
        if language is None:
            require(self.own_languages, f"task {self.name}: --data FILE needs --language xx")
        images_text = None if images is None else str(images.absolute())
        data = Data(path=str(path.absolute()), images=images_text)
        return dataclasses.replace(self, data={language or EVERY: data})


def one_text(truth: Any) -> Any:
    """The text of a truth that a file of lines gives as the only reference; else as it is."""
    return truth[0] if isinstance(truth, list) and len(truth) == 1 else truth


def share(values: Sequence[float | bool]) -> float:
    """The mean in percent."""
    return 100 * sum(values) / len(values)


def unparseable(lines: Sequence[Line]) -> float:
    """Answers that could not be read, in percent; they are wrong, never guessed."""
    return share([line["parsed"] is None for line in lines])


def by_category(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines of each category, in order of appearance; empty where there is at most one."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line["category"], []).append(line)
    return groups if len(groups) > 1 else {}
