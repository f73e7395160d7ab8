"""Opens aligned records: one file, or a LLaVA file per language, paired by id.

    en.json  {"id": "7", "image": "a.png", "conversations": [human "<image>\\nWho?", gpt "A cat."]}
    eu.json  {"id": "7", "image": "a.png", "conversations": [human "<image>\\nNor?", gpt "Katua."]}
    -> {"id": "7", "image": "a.png", "q": {"en": "Who?", "eu": "Nor?"},
        "a": {"en": "A cat.", "eu": "Katua."}}

Conversations of several rounds give an aligned record for each: `7/1`, `7/2`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.corpus.tasks.ids import Ids, digest
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import check_id, is_name
from mllm_jax.data.records.parse import MARK
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.json_file import JsonSource


def open_aligned(path: Path | None, parallel: Sequence[str]) -> tuple[Source, str]:
    """The aligned records of a file, or of LANGUAGE=FILE pairs; and what to call them.

    Raises:
        ConfigError: neither or both are given, a file is not valid or an id occurs twice in it.
    """
    require(
        (path is None) != (len(parallel) == 0),
        "corpus tasks: give one file of aligned records, or --parallel LANGUAGE=FILE ...",
    )
    if path is not None:
        return JsonSource(path), str(path)
    files: dict[str, JsonSource] = {}
    for pair in parallel:
        code, equals, file = pair.partition("=")
        require(
            bool(equals) and is_name(code) and bool(file),
            f"--parallel {quoted(pair)}: expected LANGUAGE=FILE",
        )
        require(code not in files, f"--parallel {quoted(pair)}: {code} is given twice")
        files[code] = JsonSource(file)
    require(len(files) > 1, f"--parallel {parallel[0]}: needs files of two languages or more")
    return Parallel(files), " ".join(parallel)


class Parallel:
    """LLaVA files of several languages as aligned records, in the order of the first file."""

    notes: Sequence[str] = ()

    def __init__(self, files: dict[str, JsonSource]):
        """Reads every file once, for ids and rounds.

        Raises:
            ConfigError: a record is not valid, or an id occurs twice in a file.
        """
        self.files = [file for source in files.values() for file in source.files]
        self._files, self._codes = files, list(files)
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # sorted digests, their rows
        before, entries = np.zeros(0, np.uint64), []
        for number, code in enumerate(self._codes):
            digests, rounds = self._scan(code)
            order = np.argsort(digests, kind="stable")
            self._rows[code] = digests[order], order
            rows = np.flatnonzero(~np.isin(digests, before))
            before = np.union1d(before, digests)
            for row in rows:
                entries += [(number, int(row), turn) for turn in range(rounds[row])]
        self._entries = np.array(entries, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The record; raises RecordError where the files do not agree about it."""
        code, row, turn = self._place(number)
        first = self._files[code][row]
        rounds = _rounds(first)
        questions, answers = {}, {}
        for other in self._codes:
            raw = first if other == code else self._find(other, str(first["id"]))
            if raw is None:
                continue
            turns = _rounds(raw)
            _expect(raw.get("image") == first.get("image"), f"{other}: has another image")
            _expect(
                len(turns) == len(rounds),
                f"{other}: has {len(turns)} rounds, {code} has {len(rounds)}",
            )
            questions[other], answers[other] = turns[turn]
        key = first["id"] if len(rounds) == 1 else f"{first['id']}/{turn + 1}"
        image = {} if first.get("image") is None else {"image": first["image"]}
        return {"id": key, **image, "q": questions, "a": answers}

    def location(self, number: int) -> str:
        code, row, _ = self._place(number)
        return self._files[code].location(row)

    def _place(self, number: int) -> tuple[str, int, int]:
        code, row, turn = self._entries[number].tolist()
        return self._codes[code], row, turn

    def _scan(self, code: str) -> tuple[np.ndarray, list[int]]:
        """Digests of the ids, and numbers of rounds."""
        source, ids, rounds = self._files[code], Ids(), []
        for row in range(len(source)):
            try:
                raw = source[row]
                check_id(raw.get("id"))
                _expect(raw.get("id") is not None, "no id, by which files are paired")
                rounds.append(len(_rounds(raw)))
            except RecordError as error:
                raise ConfigError(f"{source.location(row)}: {error}") from error
            ids.add(str(raw["id"]))
        ids.check(lambda row: str(source[row]["id"]), source.location)
        return ids.array(), rounds

    def _find(self, code: str, key: str) -> dict[str, Any] | None:
        digests, rows = self._rows[code]
        at = int(np.searchsorted(digests, np.uint64(digest(key))))
        if at == len(digests):
            return None
        raw = self._files[code][int(rows[at])]
        return raw if str(raw["id"]) == key else None


def _rounds(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) of a LLaVA conversation, without the marks of its images."""
    for name in raw:
        if name not in ("id", "image", "language", "conversations"):
            near = closest(name, ("id", "image", "conversations"))
            hint = f"; did you mean {near!r}?" if near else ""
            raise RecordError("unread_key", f"key {quoted(name, 60)} is not read{hint}")
    turns = raw.get("conversations")
    roles = [turn.get("from") if isinstance(turn, dict) else None for turn in _listed(turns)]
    _expect(
        len(roles) > 0 and roles == ["human", "gpt"] * (len(roles) // 2),
        "conversations: expected turns of human and gpt in alternation",
    )
    texts = [turn.get("value") for turn in _listed(turns)]
    _expect(all(isinstance(text, str) for text in texts), "conversations: a value is not text")
    texts[0] = texts[0].replace(MARK, "").strip()
    return list(zip(texts[::2], texts[1::2], strict=True))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _expect(condition: bool, reason: str) -> None:
    if not condition:
        raise RecordError("field", reason)
