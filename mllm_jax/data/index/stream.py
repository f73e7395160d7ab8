"""Presents an indexed stream as a numbered sequence of the training examples that fit a row.

An image is one token on disk and widened to its placeholders when an example is read. Records that
do not fit are dropped, cut or refused here, and counted; later steps see only what fits. A text
document is cut into pieces of the row length that share one token, so that each token is a target
once:

    length = 4    document  B a b c d e f E    pieces  B a b c | c d e f | f E
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from mllm_jax.batch import Example
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.model import ModelConfig
from mllm_jax.data.chat.tokens import NO_TOKEN, Encoded, expand
from mllm_jax.data.index.image_layouts import ImageLayouts
from mllm_jax.data.index.pairing import NO_VALUE, Pairing, pair_up, partners
from mllm_jax.data.index.storage import Store
from mllm_jax.data.mixture import packing
from mllm_jax.data.mixture.weights import Measured
from mllm_jax.data.record_errors import NAMED, NEVER_SKIPPED, RefusedRow, refusal
from mllm_jax.data.records.unread import keys_in
from mllm_jax.data.tokenizer_report import TextCounts


class StreamIndex:
    """The usable records of one stream, numbered from 0, as examples."""

    def __init__(
        self,
        number: int,
        name: str,
        store: Store,
        data: DataConfig,
        model: ModelConfig,
        pictures: Any = None,
        notes: Sequence[str] = (),
        digest: str = "",
    ):
        """Decides over every record from its lengths.

        Args:
            number: of the stream in the mixture.
            name: of the stream in the mixture.
            store: its index folder.
            data: lengths, the policies for records that are too long or cannot be used.
            model: image token, and how images are laid out.
            pictures: row -> images, for those that are in the rows themselves.
            notes: what of the stream's folder is not read, for people.
            digest: of the source's files.

        Raises:
            ConfigError: more record errors than the stream allows, a record is over-long and the
                policy is `fail`, or nothing is left.
        """
        self.number, self.name, self.notes, self.digest = number, name, list(notes), digest
        self._store, self._pictures = store, pictures
        stream = data.streams[name]
        self._folder = image_folder(stream)
        self._length, self._slots = data.length, "tiles" if model.grids else "images"
        self._layouts = ImageLayouts(store, model)
        image = model.image_token if model.patches else None
        self._image = NO_TOKEN if image is None else image
        faults = list(store.faults())
        self.total = len(store) + len(faults) - len(store.duplicates)
        check_faults(name, stream, faults, self.total)
        require(self.total > 0, f"{stream.path}: no records (data.streams.{name}.path)")
        self.faults = dict(sorted(collections.Counter(line.code for line in faults).items()))
        records = np.setdiff1d(np.arange(len(store)), store.duplicates, assume_unique=True)
        if stream.is_text:
            fates = np.zeros(len(records), np.int64)
            self._records, self._pieces, self.sizes = _pieces(store, records, data.length)
            self.images = self.tiles = np.zeros(len(self._records), np.int64)
        else:
            lengths = self._layouts.lengths(records)
            fates = packing.fate(lengths, data.length, data.image_slots, data.over_long)
            self._refuse(records, lengths, fates, data)
            usable = np.flatnonzero(fates <= packing.CUT)
            self._records, self._pieces = records[usable], np.zeros(len(usable), np.int64)
            self.sizes = np.minimum(lengths.size, data.length)[usable]
            self.images = store.records["images"][self._records].astype(np.int64)
            self.tiles = lengths.tiles[usable]
        require(
            len(self._records) > 0,
            f"data.streams.{name}: no record fits into data.length={data.length} tokens and "
            f"data.image_slots={data.image_slots} {self._slots}",
        )
        table = store.records[records]
        self.dropped = _by_language(table["language"][fates >= packing.LONG], data.languages)
        self.cut = _by_language(table["language"][fates == packing.CUT], data.languages)
        self.languages = tuple(data.languages[code] for code in np.unique(table["language"]))
        self.trained = int(table["trained"][fates == packing.FITS].sum())
        cut = np.flatnonzero(np.isin(self._records, records[fates == packing.CUT]))
        self.pairing = None if stream.pairs is None else self._pair_up(stream.pairs, cut, data)
        self._sides = None if self.pairing is None else self.pairing.sides
        self.trained += sum(int(self.tokens(int(i)).weights.sum()) for i in cut)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """A usable example, its images widened to placeholders, cut to the row's length."""
        images = self._images(int(self._records[index]))
        key, side = self.key(index), 0 if self._sides is None else int(self._sides[index])
        return Example(*self.tokens(index), images, self.number, self.language(index), key, side)

    @property
    def units(self) -> Measured:
        """What is packed as one: pairs and records alone, or every example."""
        return self if self.pairing is None else self.pairing

    def examples(self, unit: int) -> tuple[int, ...]:
        """The examples of a unit."""
        return (unit,) if self.pairing is None else self.pairing.records(unit)

    def key(self, index: int) -> str:
        """ "stream/id" of an example, with the number of the piece from the second one on."""
        record, piece = int(self._records[index]), int(self._pieces[index])
        return f"{self.name}/{self._store.id(record)}" + (f"#{piece}" if piece else "")

    def tokens(self, index: int) -> Encoded:
        """Tokens, weights and placeholders of an example; its images are not opened."""
        record, piece = int(self._records[index]), int(self._pieces[index])
        start = piece * (self._length - 1)
        tokens, weights = (field[start:] for field in self._store.tokens(record))
        if piece:
            weights[0] = 0  # a target of the piece before
        wide = expand(tokens, weights, self._image, self._layouts.placeholders(record))
        return Encoded(*(field[: self._length] for field in wide))

    def image_layouts(self, index: int) -> list[ImageLayout]:
        """How the images of an example are laid out."""
        return self._layouts.of(int(self._records[index]))

    def language(self, index: int) -> int:
        """Number of the language of an example."""
        return int(self._store.records["language"][self._records[index]])

    @property
    def language_numbers(self) -> Int64[np.ndarray, "n"]:
        """Number of the language of every example."""
        return self._store.records["language"][self._records].astype(np.int64)

    @property
    def unread(self) -> dict[str, int]:
        """Keys that nothing read -> how many times they held something, most frequent first."""
        return self._store.unread()

    @property
    def numbered(self) -> int:
        """Records with the id of an earlier one and other content."""
        return len(self._store.numbers)

    @property
    def hashes(self) -> UInt64[np.ndarray, "i"]:
        """Perceptual hashes of all images of the stream; 0 where they were not decoded."""
        return self._store.hashes

    def text_counts(self, languages: tuple[str, ...]) -> dict[str, TextCounts]:
        """The trained text without the ends of answers, of each language that has some."""
        table, counts = self._store.records, {}
        for code, language in enumerate(languages):
            rows = table["language"] == code
            columns = ("trained", "answers", "words", "characters")
            trained, answers, *text = (int(table[name][rows].sum()) for name in columns)
            if text[1]:
                counts[language] = TextCounts(trained - answers, *text)
        return counts

    def named_tokens(self, code: int, limit: int) -> dict[tuple[str, ...], int]:
        """Tokens of the trained text of records, by what they share with their translations.

        That is the id, the names of the pictures, and the hashes of pictures that have none.
        Records without pictures that are numbered instead of named are left out: others have the
        same numbers by chance.

        Args:
            code: number of the language.
            limit: records of the stream that are looked at, from the first on.
        """
        store, named = self._store, {}
        table = store.records[:limit]
        for record in np.flatnonzero(table["language"] == code).tolist():
            name, pictures = store.id(record), store.pictures(record)
            if pictures or not name.isdecimal():
                hashes = store.hashes[store.images(record)].tolist() if "" in pictures else ()
                tokens = int(table["trained"][record]) - int(table["answers"][record])
                named.setdefault((name, *pictures, *map(str, hashes)), tokens)
        return named

    def _images(self, record: int) -> tuple[str | bytes, ...]:
        paths = self._store.pictures(record)
        if all(paths):
            return tuple(str(self._folder / path) for path in paths)
        return self._pictures(int(self._store.records["row"][record]))

    def _pair_up(self, field: str, cut: Int64[np.ndarray, "c"], data: DataConfig) -> Pairing:
        """Pairs the examples; a cut one has no partner, since its answer is not the whole one.

        Raises:
            ConfigError: no pair, more than two records with one value, or a pair that does not fit
                a row where the policy is `fail`.
        """
        option = f"data.streams.{self.name}.pairs={quoted(field)}"
        values = np.array(self._store.pairs[self._records])
        values[cut] = NO_VALUE
        pairs, more = partners(values)
        third = quoted(self.key(int(more[0])), 60) if len(more) else ""
        require(
            len(more) == 0,
            f"{option}: more than two records share the value of {third}; give each two a value of "
            "their own",
        )
        require(len(pairs) > 0, f"{option}: no two records that fit a row share a value")
        sizes, tiles = self.sizes[pairs].sum(axis=1), self.tiles[pairs].sum(axis=1)
        together = (sizes <= data.length) & (tiles <= data.image_slots)
        if not together.all() and (data.over_long == "fail" or not together.any()):
            bad, some = int(np.argmin(together)), bool(together.any())
            raise ConfigError(
                f"{option}: {int((~together).sum())} of {len(pairs)} pairs do not fit a row: "
                f"{' and '.join(quoted(self.key(int(n)), 60) for n in pairs[bad])} have "
                f"{sizes[bad]} tokens and {tiles[bad]} {self._slots} together, but "
                f"data.length={data.length} and data.image_slots={data.image_slots}; raise the "
                f"limit{', or set data.over_long to drop to train them apart' * some}"
            )
        return pair_up(pairs, self.sizes, self.tiles, together, self.languages)

    def _refuse(
        self,
        records: Int64[np.ndarray, "n"],
        lengths: packing.Lengths,
        fates: Int64[np.ndarray, "n"],
        data: DataConfig,
    ) -> None:
        """Raises ConfigError for records that do not fit, if the policy says so."""
        bad = np.flatnonzero(fates >= packing.LONG) if data.over_long == "fail" else []
        if len(bad) == 0:
            return
        reasons = []
        for i in bad[:NAMED]:
            if fates[i] == packing.IMAGES:
                reason = (
                    f"{lengths.tiles[i]} {self._slots}, but data.image_slots={data.image_slots}"
                )
            else:
                reason = f"{lengths.size[i]} tokens, but data.length={data.length}"
            reasons.append(f"record {quoted(self._store.id(int(records[i])), 60)} has {reason}")
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ConfigError(
            f"data.streams.{self.name}: {len(bad)} of {len(records)} records do not fit a row: "
            f"{'; '.join(reasons)}{more}; raise the limit, or set data.over_long to drop or cut"
        )


def image_folder(stream: StreamConfig) -> Path:
    """Where the stream's image paths start."""
    if stream.images is not None:
        return Path(stream.images)
    path = Path(stream.path)
    return path if path.is_dir() else path.parent


def check_faults(name: str, stream: StreamConfig, faults: list[RefusedRow], total: int) -> None:
    """Refuses a stream with more record errors than its config allows.

    Raises:
        ConfigError: names the first few records with their reasons, and what would allow them.
    """
    counts = collections.Counter(line.code for line in faults)
    over = {
        code
        for code, count in counts.items()
        if code in NEVER_SKIPPED or count > stream.skip.get(code, 0) * total
    }
    refused = [line for line in faults if line.code in over]
    if not refused:
        return
    shares = {c: f"{counts[c] / total:.2g}" for c in sorted(over - set(NEVER_SKIPPED))}
    hint = ", ".join(f"{code}: {share}" for code, share in shares.items())
    allow = ""
    if hint and len(refused) < total:  # without all of them nothing would be left
        allow = f"; fix them, or leave them out by data.streams.{name}.skip: {{{hint}}}"
    keys = keys_in(line.reason for line in refused if line.code == "unread_key")
    if keys:
        names = ", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")
        allow += f"; to train without these keys: data.streams.{name}.ignore: [{names}]"
    raise ConfigError(refusal(stream.path, refused, total) + allow)


def _pieces(
    store: Store, records: Int64[np.ndarray, "n"], length: int
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "p"], Int64[np.ndarray, "p"]]:
    """(record, number, tokens) of every piece of the documents; see the top of this file."""
    sizes = store.records["size"][records].astype(np.int64)
    counts = np.maximum(1, -(-(sizes - 1) // (length - 1)))
    record = np.repeat(np.arange(len(records)), counts)
    piece = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
    return records[record], piece, np.minimum(sizes[record] - piece * (length - 1), length)


def _by_language(codes: Any, languages: tuple[str, ...]) -> dict[str, int]:
    counts = collections.Counter(codes.tolist())
    return {languages[code]: counts[code] for code in sorted(counts)}


class StreamReport(NamedTuple):
    """What a stream gives to a run; counts of over-long records are by language."""

    records: int  # rows of the source
    used: int  # examples: records that fit, whole or cut, and pieces of documents
    # "pairs", "alone" (records without a partner), "apart" (pairs that do not fit a row together)
    paired: dict[str, int]
    faults: dict[str, int]  # rows left out, by code
    unread: dict[str, int]  # keys that nothing read -> how many times they held something
    numbered: int  # records with the id of an earlier one and other content
    dropped: dict[str, int]
    cut: dict[str, int]
    images: int
    tiles: int  # squares that the vision tower reads for them
    tokens: int  # image placeholders included
    trained_tokens: int
    trained_share: float
    tokens_per_word: dict[str, float]  # by language, see TextCounts
    tokens_per_character: dict[str, float]


def report(stream: StreamIndex, languages: tuple[str, ...]) -> StreamReport:
    """Counts over one pass through a stream's usable records."""
    tokens, counts = int(stream.sizes.sum()), stream.text_counts(languages)
    return StreamReport(
        records=stream.total,
        used=len(stream),
        paired={} if stream.pairing is None else stream.pairing.counts,
        faults=stream.faults,
        unread=stream.unread,
        numbered=stream.numbered,
        dropped=stream.dropped,
        cut=stream.cut,
        images=int(stream.images.sum()),
        tiles=int(stream.tiles.sum()),
        tokens=tokens,
        trained_tokens=stream.trained,
        trained_share=stream.trained / tokens,
        tokens_per_word={
            language: ratio
            for language, of in counts.items()
            if (ratio := of.tokens_per_word(language)) is not None
        },
        tokens_per_character={language: of.tokens_per_character for language, of in counts.items()},
    )
