"""Loads the instructions of the tasks, a YAML file per language, and fills them in.

    load()["en"].pivot, load()["eu"].answer_in["en"]
        -> "First translate the question ..., then answer {answer_in} ...", "in Basque"

They are ours: the paper shows its own in a figure that cannot be read.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config.loading import build

MARK = "{answer_in}"  # in a sentence: the phrase for the language of the answer
ADD = "add it in a YAML file for --wordings (docs/lrm.md)"


@dataclass(frozen=True)
class Wordings:
    """What is said in one language, and how the language is called in others."""

    language: str  # its code
    name: str  # in English
    answer_in: dict[str, str] = field(hash=False)  # language of an instruction -> "in Basque"
    pivot: str | None = None  # EP-VQA: translate the question, then answer
    bilingual: str | None = None  # BVQA: answer in another language
    describe: tuple[str, ...] = ()  # questions for captions; of equal meaning by their place

    def __post_init__(self):
        for name in ("pivot", "bilingual"):
            text = getattr(self, name)
            require(
                text is None or text.count(MARK) == 1,
                f"wordings of {self.name}: {name}={quoted(text, 60)} must hold {MARK} once",
            )
        texts = (self.language, self.name, *self.answer_in.values(), *self.describe)
        require(all(map(str.strip, texts)), f"wordings of {self.name}: a text is empty")


class Instructions:
    """The sentences that tasks need, in one language or in that of the question."""

    def __init__(self, known: Mapping[str, Wordings], language: str | None):
        """`language` of all instructions; None: that of each question."""
        self._known, self._language = known, language
        self._sentences: dict[tuple[str, str, str], str] = {}

    def pivot(self, question: str, answer: str) -> str:
        """EP-VQA's for a question and an answer in these languages."""
        return self._sentence("pivot", question, answer)

    def bilingual(self, question: str, answer: str) -> str:
        """BVQA's for a question and an answer in these languages."""
        return self._sentence("bilingual", question, answer)

    def describe(self, language: str, number: int) -> str:
        """A question for a caption; the same `number` asks the same in every language.

        Raises:
            ConfigError: no wordings of the language, or fewer than English's.
        """
        texts, count = self._of(language).describe, len(self._of("en").describe)
        if len(texts) != count:
            raise ConfigError(
                f"language {quoted(language, 40)} has {len(texts)} wordings of 'describe', English "
                f"{count}, and records without questions need them; {ADD}"
            )
        return texts[number % count]

    def _sentence(self, kind: str, question: str, answer: str) -> str:
        """Filled in once: every record asks for it."""
        key = kind, question, answer
        if key not in self._sentences:
            self._sentences[key] = self._filled(*key)
        return self._sentences[key]

    def _filled(self, kind: str, question: str, answer: str) -> str:
        language = self._language or question
        sentence = getattr(self._of(language), kind)
        require(
            sentence is not None,
            f"language {quoted(language, 40)} has no wording {kind!r}; {ADD}",
        )
        phrase = self._of(answer).answer_in.get(language)
        if phrase is None:
            raise ConfigError(
                f"language {quoted(answer, 40)} has no wording for instructions in {language}: "
                f"'answer_in: {{{language}: ...}}' is missing; {ADD}"
            )
        return sentence.replace(MARK, phrase)

    def _of(self, language: str) -> Wordings:
        if language not in self._known:
            raise ConfigError(
                f"language {quoted(language, 40)} has no wordings (there are "
                f"{', '.join(sorted(self._known))}); give language, name and answer_in in a YAML "
                "file: --wordings FILE (docs/lrm.md)"
            )
        return self._known[language]


def load(files: Sequence[Path] = ()) -> dict[str, Wordings]:
    """All wordings by language; those in `files` replace ours.

    Raises:
        ConfigError: a file is not valid, or two are about one language.
    """
    own: dict[str, Wordings] = {}
    for file in files:
        try:
            read = build(Wordings, read_yaml(file))
        except ConfigError as error:
            prefix = "" if str(error).startswith(str(file)) else f"{file}: "
            raise ConfigError(f"{prefix}{error}") from error
        require(read.language not in own, f"{file}: wordings of {read.language} are given twice")
        own[read.language] = read
    return {**_packaged(), **own}


@functools.cache
def _packaged() -> Mapping[str, Wordings]:
    files = sorted(Path(__file__).with_name("wordings").glob("*.yaml"))
    return {file.stem: build(Wordings, read_yaml(file)) for file in files}
