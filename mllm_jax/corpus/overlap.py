"""Finds runs of words that two texts share, whatever their case and punctuation.

    "<image>\\nZer  da HAU?"  ->  zer da hau  ->  64-bit hashes of every run of 13 words

A word is a run of letters, marks and digits; in scripts without spaces every character is one.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import regex
from jaxtyping import Int64, UInt64

from mllm_jax.data.records.parse import MARK

WORDS = 13  # of a run: Brown et al., Language Models are Few-Shot Learners (2020), appendix C
FEWEST = 8  # words of a shorter text without pictures that is compared whole; there, too
# What so many records of one evaluation set have, and this share of them, is a prompt, not a
# question (ours). It is looked for in runs of FEWEST words, as "answer in a single word or phrase".
PROMPT_RECORDS, PROMPT_SHARE = 10, 0.01
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_NO_SPACES}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_NO_SPACES}]]+", regex.V1)
_FACTOR = 0x9E3779B97F4A7C15  # odd: an invertible multiplier modulo 2^64 (2^64 / golden ratio)


def words_of(text: str) -> list[str]:
    """The words of a text, NFC, case folded; image marks are left out."""
    return [word for word, _, _ in placed_words(text)]


def placed_words(text: str) -> list[tuple[str, int, int]]:
    """(word, first character, end) of every word of a text that is NFC."""
    text = unicodedata.normalize("NFC", text).replace(MARK, " " * len(MARK))
    matches = _WORD.finditer(text)
    # folding may leave NFC, as that of the Greek letters with an iota below
    return [(unicodedata.normalize("NFC", m[0].casefold()), m.start(), m.end()) for m in matches]


class Runs(NamedTuple):
    """All runs of words of some texts."""

    hashes: UInt64[np.ndarray, "r"]
    texts: Int64[np.ndarray, "r"]  # number of the text that each is of
    inner: UInt64[np.ndarray, "r k"]  # hashes of the shorter runs inside, where they are asked for


def runs_of(
    texts: Sequence[Sequence[str]],
    size: int = WORDS,
    whole: Sequence[bool] = (),
    inner: bool = False,
) -> Runs:
    """Every run of `size` words in each text.

    Args:
        texts: their words.
        size: words of a run.
        whole: whether a text of fewer words, but `FEWEST` or more, is one run; of none by default.
        inner: also hashes the runs of `FEWEST` words inside each; inside a whole text, itself.
    """
    shorter = min(FEWEST, size)
    lengths = np.array([len(text) for text in texts], np.int64)
    values = np.array([_word_hash(word) for text in texts for word in text], np.uint64)
    firsts, counts = np.cumsum(lengths) - lengths, np.maximum(lengths - size + 1, 0)
    number = np.repeat(np.arange(len(texts)), counts)
    start = firsts[number] + np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    short = [n for n, also in enumerate(whole) if also and shorter <= lengths[n] < size]
    single = np.array([_word_hash("\0".join(texts[n])) for n in short], np.uint64)
    places = range(size - shorter + 1) if inner else ()
    insides = [np.append(_run_hashes(values, start + n, shorter), single) for n in places]
    return Runs(
        np.append(_run_hashes(values, start, size), single),
        np.append(number, np.array(short, np.int64)),
        np.array(insides, np.uint64).reshape(len(places), len(number) + len(short)).T,
    )


def _run_hashes(
    values: UInt64[np.ndarray, "w"], starts: Int64[np.ndarray, "r"], size: int
) -> UInt64[np.ndarray, "r"]:
    """Hashes of the runs of `size` words that start there: a polynomial modulo 2^64."""
    hashes = np.zeros(len(starts), np.uint64)
    for step in range(size):
        hashes = hashes * np.uint64(_FACTOR) + values[starts + step]
    return hashes


@lru_cache(2**18)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


class SetRuns(NamedTuple):
    """The runs of the records of one data set."""

    count: int  # records of the set
    hashes: UInt64[np.ndarray, "r"]
    inner: UInt64[np.ndarray, "r k"]
    records: Int64[np.ndarray, "r"]  # of each run; numbers differ between sets


class KnownRuns:
    """The runs of evaluation records, and which records have them."""

    def __init__(self, sets: Sequence[SetRuns]):
        """Takes the runs of each evaluation set; those that hold a prompt are left out."""
        self.prompts = 0  # runs that are left out
        usable = [self._without_prompts(one) for one in sets]
        hashes = np.concatenate([one.hashes for one in usable])
        records = np.concatenate([one.records for one in usable])
        inner = np.concatenate([one.inner for one in usable])
        first, order = _distinct(hashes, records)
        self._records = records[order][first]
        self.hashes, starts = np.unique(hashes[order][first], return_index=True)  # sorted
        self._starts = np.append(starts, len(self._records))
        self._inner = inner[order][first][starts]

    def match(
        self, count: int, hashes: UInt64[np.ndarray, "r"], rows: Int64[np.ndarray, "r"]
    ) -> dict[int, tuple[int, int]]:
        """row -> (the record that shares most runs with it, how many).

        Args:
            count: training records in all.
            hashes: known runs of theirs; those of prompts, among them, are left out.
            rows: the record of each.
        """
        inner = self._inner[np.searchsorted(self.hashes, hashes)]
        runs = self._without_prompts(SetRuns(count, hashes, inner, rows))
        first, order = _distinct(runs.records.astype(np.uint64), runs.hashes.astype(np.int64))
        votes: dict[int, Counter[int]] = {}
        for row, hash_value in zip(
            runs.records[order][first].tolist(), runs.hashes[order][first].tolist(), strict=True
        ):
            place = int(np.searchsorted(self.hashes, np.uint64(hash_value)))
            of = self._records[self._starts[place] : self._starts[place + 1]]
            votes.setdefault(row, Counter()).update(of.tolist())
        return {row: counter.most_common(1)[0] for row, counter in votes.items()}

    def _without_prompts(self, runs: SetRuns) -> SetRuns:
        """The runs without those that hold a shorter one of very many records."""
        hashes = runs.inner.ravel()
        first, order = _distinct(hashes, np.repeat(runs.records, runs.inner.shape[1]))
        values, counts = np.unique(hashes[order][first], return_counts=True)
        prompts = values[counts > max(PROMPT_RECORDS, PROMPT_SHARE * runs.count)]
        usable = ~np.isin(runs.inner, prompts).any(1)
        self.prompts += len(np.unique(runs.hashes[~usable]))
        return SetRuns(runs.count, runs.hashes[usable], runs.inner[usable], runs.records[usable])


def _distinct(
    hashes: UInt64[np.ndarray, "r"], records: Int64[np.ndarray, "r"]
) -> tuple[np.ndarray, np.ndarray]:
    """(whether a pair is the first of its kind, in this order of the pairs: by hash, record)."""
    order = np.lexsort((records, hashes))
    hashes, records = hashes[order], records[order]
    changes = (hashes[1:] != hashes[:-1]) | (records[1:] != records[:-1])
    return np.append(True, changes)[: len(hashes)], order


def find_known(
    known: UInt64[np.ndarray, "k"], hashes: UInt64[np.ndarray, "r"]
) -> Int64[np.ndarray, "f"]:
    """Numbers of the hashes that are among the known ones, which are sorted."""
    if len(known) == 0:
        return np.zeros(0, np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.flatnonzero(known[places] == hashes)


def shared_words(
    first: Sequence[str], second: Sequence[str], size: int = WORDS
) -> tuple[set[int], set[int]]:
    """Numbers of the words, in each text, that are part of a run which both have.

    Of two equal texts of fewer than `size` words, all.
    """
    if len(first) < size and first == second:
        return set(range(len(first))), set(range(len(second)))
    places: dict[tuple[str, ...], list[int]] = {}
    for place in range(len(second) - size + 1):
        places.setdefault(tuple(second[place : place + size]), []).append(place)
    a, b = set[int](), set[int]()
    for place in range(len(first) - size + 1):
        for other in places.get(tuple(first[place : place + size]), ()):
            a.update(range(place, place + size))
            b.update(range(other, other + size))
    return a, b
