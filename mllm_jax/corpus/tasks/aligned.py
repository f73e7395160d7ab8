"""Reads aligned records: a picture with its question and its answer in several languages.

    {"id": "42", "image": "42.jpg", "q": {"en": "What animal is this?", "eu": "Zein animalia da?"},
     "a": {"en": "A cat.", "eu": "Katu bat."}}

Without `q` the answers are captions, and the question comes from the wordings.
"""

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.corpus.tasks.wordings import Instructions
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import check_id, check_text, is_name
from mllm_jax.data.records.parse import MARK
from mllm_jax.data.sources.base import Source

KEYS = ("id", "image", "q", "a")
Texts = Mapping[str, str]  # by language; one that is empty or null is not there


class Aligned(NamedTuple):
    """One picture, asked about and answered in several languages."""

    id: str
    image: Any  # as stored: a path, a list of paths, or None
    questions: Texts
    answers: Texts

    @property
    def images(self) -> int:
        """How many pictures there are."""
        return len(self.image) if isinstance(self.image, list) else int(self.image is not None)


def read_all(
    source: Source, instructions: Instructions, ignore: Collection[str] = ()
) -> Iterator[Aligned]:
    """The records of a source, in order.

    Args:
        source: of dicts as above.
        instructions: what asks for captions.
        ignore: keys that are knowingly not read.

    Raises:
        ConfigError: a record is not valid; names its place.
    """
    for number in range(len(source)):
        try:
            yield _read(source[number], instructions, ignore)
        except RecordError as error:
            raise ConfigError(f"{source.location(number)}: {error}") from error


def languages_of(source: Source) -> list[str]:
    """The languages of all answers, English first, the others as they come."""
    codes = dict.fromkeys(["en"])
    seen = set()
    for number in range(len(source)):
        try:
            answers = source[number].get("a")
        except RecordError as error:
            raise ConfigError(f"{source.location(number)}: {error}") from error
        for code in answers if isinstance(answers, dict) else ():  # read_all says what is wrong
            codes[code] = None
            seen.add(code)
    return [code for code in codes if code in seen]


def _read(raw: dict[str, Any], instructions: Instructions, ignore: Collection[str]) -> Aligned:
    unknown = [name for name in raw if name not in KEYS and name not in ignore]
    if unknown:
        near = closest(unknown[0], KEYS)
        hint = f"did you mean {near!r}?" if near else "name it with --ignore to leave it aside"
        raise RecordError("unread_key", f"key {quoted(unknown[0], 60)} is not read; {hint}")
    check_id(raw.get("id"))
    if raw.get("id") is None:
        raise RecordError("field", "no id; every record needs one of its own")
    key = str(raw["id"])
    answers = _texts(raw.get("a"), "a")
    if "q" in raw:
        questions = _texts(raw["q"], "q")
    else:
        number = zlib.crc32(key.encode())
        questions = {code: instructions.describe(code, number) for code in answers}
    return Aligned(key, _image(raw.get("image")), questions, answers)


def _texts(value: Any, name: str) -> Texts:
    if not isinstance(value, dict):
        raise RecordError("field", f"{name} {quoted(value, 60)} is not {{language: text}}")
    texts = {}
    for code, text in value.items():
        if not is_name(code):
            raise RecordError("field", f"{name}: {quoted(code, 60)} is not a language")
        if text is None:
            continue
        if not isinstance(text, str):
            raise RecordError("field", f"{name}.{code} {quoted(text, 60)} is not text")
        check_text(text, f"{name}.{code}")
        if MARK in text:
            raise RecordError("field", f"{name}.{code} holds {MARK}, which is added here")
        if text.strip():
            texts[code] = text
    return texts


def _image(value: Any) -> Any:
    paths: Sequence[Any] = value if isinstance(value, list) else [value]
    is_path = all(isinstance(path, str) and path for path in paths)
    if value is not None and not is_path:
        raise RecordError("field", f"image {quoted(value, 60)} is not a path or paths")
    return value or None


def check_languages(chosen: Sequence[str], present: Sequence[str]) -> None:
    """Raises ConfigError for a language that no record has, or one given twice."""
    for code in chosen:
        near = closest(code, present)
        hint = f"; did you mean {near!r}?" if near else ""
        require(
            code in present,
            f"--languages {quoted(code, 40)}: no record has an answer in it; there are "
            f"{', '.join(present)}{hint}",
        )
        require(chosen.count(code) == 1, f"--languages {code}: is given twice; give each once")
