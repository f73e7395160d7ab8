"""Identifies the language that an answer is written in, among the languages of a task.

    "Bai, txakur beltz bat belardian."  ->  "eu"        "Bai"  ->  None: undecided

Restricted to few candidates an identifier is right more than 99 % of the time on a sentence of
Basque; on a word or two none can be, so short answers, and those between two languages, are
undecided and counted as such.
"""

import hashlib
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.evaluation.languages import all_languages

LETTERS = 20  # an answer with fewer is undecided
MARGIN = 0.2  # between the two likeliest languages; less is undecided
# what says nothing about the language: image tags, options' letters with their mark, digits
_SILENT = re.compile(r"<image[^<>]*>|(?<![\w.])\(?[A-Z]\s?[.):](?!\w)|\d")


@runtime_checkable
class LanguageIdentifier(Protocol):
    """What tells languages apart."""

    name: str  # with its version or digest, as results store it

    def probabilities(self, text: str, languages: Sequence[str]) -> dict[str, float]:
        """The probability of each of the languages (codes), which sum to 1 or less.

        Raises:
            ConfigError: the identifier does not know a language.
        """
        ...


def identify(
    texts: Sequence[str], languages: Sequence[str], identifier: LanguageIdentifier
) -> list[str | None]:
    """The language of each text; None is undecided.

    Args:
        texts: answers as they are; what says nothing about the language is left out.
        languages: the candidates, as codes, at least two.
        identifier: what tells them apart.

    Raises:
        ConfigError: fewer than two candidates, or the identifier does not know one.
    """
    require(
        len(set(languages)) > 1,
        f"language identification needs two languages or more to tell apart, got "
        f"{', '.join(languages) or 'none'}; add those that answers may slip into",
    )
    return [_identify(meaningful(text), languages, identifier) for text in texts]


def meaningful(text: str) -> str:
    """A text without image tags, letters of options and digits, on one line."""
    return " ".join(_SILENT.sub(" ", text).split())


def _identify(text: str, languages: Sequence[str], identifier: LanguageIdentifier) -> str | None:
    if sum(c.isalpha() for c in text) < LETTERS:
        return None
    chances = identifier.probabilities(text, languages)
    best, second = sorted(chances, key=lambda code: -chances[code])[:2]
    return best if chances[best] - chances[second] >= MARGIN else None


def open_identifier(model: str | Path | None = None) -> LanguageIdentifier:
    """py3langid, or a fastText model (GlotLID, lid.176) whose file is given.

    Raises:
        ConfigError: no such file, not a fastText model, or the library is not installed.
    """
    return Py3LangID() if model is None else FastText(Path(model))


class Py3LangID:
    """py3langid, whose model of 5 MB comes with it."""

    def __init__(self):
        library = _library("py3langid.langid", "py3langid", "mllm-jax[evaluation]")
        self._model = library.LanguageIdentifier.from_model_file(
            library.MODEL_FILE, norm_probs=True
        )
        self._languages: tuple[str, ...] = ()  # that the model is restricted to
        self.name = f"py3langid {importlib.import_module('py3langid').__version__}"

    def probabilities(self, text: str, languages: Sequence[str]) -> dict[str, float]:
        if self._languages != tuple(languages):  # as costly as forty texts
            try:
                self._model.set_languages(languages)
            except ValueError as error:
                raise ConfigError(f"{self.name}: {one_line(str(error), 200)}") from error
            self._languages = tuple(languages)
        return dict(self._model.rank(text))


class FastText:
    """A fastText model from a file: GlotLID's (labels such as eus_Latn) or lid.176 (eu)."""

    def __init__(self, file: Path):
        require(file.is_file(), f"{file}: no such file; give the model file of GlotLID or lid.176")
        library = _library("fasttext", "fastText", "fasttext-predict")
        try:
            self._model = library.load_model(str(file))
        except ValueError as error:
            raise ConfigError(
                f"{file}: not a fastText model: {one_line(str(error), 200)}"
            ) from error
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        self.name = f"fastText {file.name} sha256:{digest[:12]}"
        self._codes = {code: {code, table.iso3} for code, table in all_languages().items()}

    def probabilities(self, text: str, languages: Sequence[str]) -> dict[str, float]:
        labels, shares = self._model.predict(text.replace("\n", " "), k=-1)
        chances = dict.fromkeys(languages, 0.0)
        for label, share in zip(labels, shares, strict=True):
            code = label.removeprefix("__label__").split("_")[0]
            for language in languages:
                if code in self._codes.get(language, {language}):
                    chances[language] += float(share)
        total = sum(chances.values())
        return {code: share / total if total else 0.0 for code, share in chances.items()}


def _library(module: str, name: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"language identification by {name} needs it: pip install {quoted(package)}"
        ) from error
