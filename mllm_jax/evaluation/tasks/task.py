"""Defines what a task asks a model and what it makes of the answers, for every kind of task.

    data folder -> Question -> (model) -> Answer -> judge -> Judged -> metrics
                                             a line of answers.jsonl

A model is asked one of three things about a question:

    kind        the model gives
    generate    a text, greedily; and the log-likelihoods of `options`, where a question has some
    choose      the log-likelihood of every option; nothing is generated
    perplexity  the log-likelihood of the truth, which is the one option; nothing is generated
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from mllm_jax.data.records.parse import Turn

Kind = Literal["generate", "choose", "perplexity"]


class Question(NamedTuple):
    """One question, as a model is asked it."""

    id: str  # stable: of the published data where it has one; unique in a task and language
    language: str
    turns: tuple[Turn, ...]  # the last is the user's, as it is asked, post-prompt included
    images: tuple[str | bytes, ...]  # paths or encoded images, in the order of the IMAGE parts
    truth: Any  # JSON: what `judge` compares with, as a text, ten answers, a letter
    options: tuple[str, ...] = ()  # continuations whose log-likelihoods are asked
    group: str = ""  # questions about one image or passage share it; errors are clustered by it
    category: str = ""  # POPE's adversarial, MMMU's subject; "" where there is none

    @property
    def text(self) -> str:
        """The last turn without its images: what a person would read as the question."""
        return "".join(part for part in self.turns[-1].parts if isinstance(part, str)).strip()


def image_name(image: str | bytes) -> str:
    """The path of an image; of an image that has none the digest of its bytes."""
    return image if isinstance(image, str) else f"sha256:{hashlib.sha256(image).hexdigest()}"


class Answer(NamedTuple):
    """What a model gave to a question."""

    text: str = ""  # generated, stripped of white space around it
    log_likelihoods: tuple[float, ...] = ()  # of each option: the sum over its tokens, in nats
    tokens: tuple[int, ...] = ()  # of each option: how many that are
    finished: bool = True  # whether the generated text ended before it was cut


class Judged(NamedTuple):
    """What one answer is worth."""

    parsed: str | None  # what was read from the answer; None: unparseable, never a random guess
    correct: float  # 0 to 1; soft accuracies are fractions
    # more numbers of this answer, as an edit distance and the length it is divided by
    numbers: dict[str, float]


class Task(Protocol):
    """A family of benchmarks with its settings; a task file makes one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def max_new_tokens(self) -> int:
        """Where a generated answer is cut."""
        ...

    @property
    def chat(self) -> bool:
        """Whether the prompt is rendered by the model's chat template, or is plain text."""
        ...

    @property
    def end_of_turn(self) -> bool:
        """Whether the log-likelihood of an option includes the token that ends a turn."""
        ...

    @property
    def headline(self) -> str:
        """The one of `metrics` by which models are ranked."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """JSON: all that the task's questions and numbers depend on, but the data."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the task has prompts and data for."""
        ...

    def questions(self, language: str, root: Path, limit: int | None = None) -> list[Question]:
        """The first `limit` questions, or all.

        Args:
            language: one of `languages`.
            root: folder of all prepared task data; what a task file names by path is not in it.
            limit: how many; all when None.

        Raises:
            ConfigError: the data are not there (with the command that fetches them), or a row
                cannot be used.
        """
        ...

    def judge(self, question: Question, answer: Answer) -> Judged:
        """What an answer is worth. Reads nothing of the question but language, truth, options,
        category and text, so that stored answers can be judged again."""
        ...

    def metrics(self, lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        """The numbers of a paper, from the lines of answers.jsonl of one language.

        Names as in the papers, shares in percent, not rounded.
        """
        ...

    def published(self, question: Question) -> Question:
        """A question that was read from a published file of truths, with the task's own truth.

        Raises:
            ConfigError: the file's truth is not one of the task.
        """
        ...

    def printed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Metrics as a paper's table prints them."""
        ...
