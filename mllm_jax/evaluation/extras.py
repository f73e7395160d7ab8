"""Computes what is asked for beside a task's own numbers: the language of answers, chrF and BLEU.

lines of answers, lines without the images -> fidelity, image-induced loss, chrF -> tables
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.evaluation.answers import Line
from mllm_jax.evaluation.chrf import line_chrf, references
from mllm_jax.evaluation.fidelity import line_fidelity
from mllm_jax.evaluation.language_id import LETTERS, open_identifier
from mllm_jax.evaluation.metrics.fidelity import fidelity as text_fidelity
from mllm_jax.evaluation.metrics.translation import translation_scores
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.task import Question


class Extra(NamedTuple):
    """More numbers of the answers to a task in a language."""

    numbers: Mapping[str, float] = {}
    signatures: Mapping[str, str] = {}  # of chrF and BLEU

    @property
    def printed(self) -> dict[str, str]:
        """As tables print them."""
        return {name: f"{value:.1f}" for name, value in self.numbers.items()}


NOTHING = Extra()


class Extras:
    """What is asked for; the language identifier is opened once.

    Attributes:
        languages: that answers may be in; empty: their language is not identified.
        chrf: whether chrF and BLEU against the true answers are computed.
    """

    def __init__(
        self, languages: Sequence[str] = (), identifier: Path | None = None, chrf: bool = False
    ):
        """Opens the identifier, if there is use for it.

        Args:
            languages, chrf: see above.
            identifier: model file, see `language_id.open_identifier`.

        Raises:
            ConfigError: an identifier without languages, or one that cannot be opened.
        """
        require(
            len(languages) > 0 or identifier is None,
            "--identifier is used with --fidelity LANGUAGE ... alone",
        )
        self.languages, self.chrf = tuple(languages), chrf
        self._identifier = open_identifier(identifier) if languages else None

    @property
    def settings(self) -> dict[str, Any]:
        """As results store them; empty where nothing is asked for."""
        of_language = {}
        if self._identifier is not None:
            of_language = {"languages": list(self.languages), "identifier": self._identifier.name}
        fidelity = {"fidelity": of_language} if of_language else {}
        return fidelity | ({"chrf": True} if self.chrf else {})

    def say(self) -> None:
        """Prints by what the language of answers is identified."""
        if self._identifier is not None:
            languages = ", ".join(self.languages)
            print(f"language identified by {self._identifier.name} among {languages}", flush=True)

    def check(self, task: TableTask, language: str, questions: Sequence[Question] = ()) -> None:
        """Looks at all that could be wrong, before anything is asked.

        Args:
            task: one that asks for text, if fidelity is asked for.
            language: of the questions.
            questions: whose truths chrF would read.

        Raises:
            ConfigError: a task without generated text, a language that is not among those to tell
                apart or that the identifier does not know, a truth that is not text.
        """
        if self._identifier is not None:
            require(
                task.kind == "generate",
                f"fidelity: task {task.name} asks for no text whose language could be identified",
            )
            try:
                text_fidelity(["a" * LETTERS], (), language, self.languages, self._identifier)
            except ConfigError as error:
                raise ConfigError(f"fidelity: task {task.name}: {error}") from error
        if self.chrf:
            require(
                task.kind == "generate",
                f"chrf: task {task.name} asks for no text that could be compared",
            )
            try:
                translation_scores(["a"], [["a"]])  # whether it is installed
                for question in questions:
                    references(question.id, question.truth)
            except ConfigError as error:
                raise ConfigError(f"chrf: task {task.name}: {error}") from error

    def of(self, lines: Sequence[Line], without_images: Sequence[Line] = ()) -> Extra:
        """The numbers of the answers in one language.

        Args:
            lines: of answers.jsonl.
            without_images: answers to the same questions, asked without their images.
        """
        numbers: dict[str, float] = {}
        signatures: dict[str, str] = {}
        if self._identifier is not None:
            numbers |= line_fidelity(lines, self.languages, self._identifier, without_images)
        if self.chrf:
            scores, signatures = line_chrf(lines)
            numbers |= scores
        return Extra(numbers, signatures)
