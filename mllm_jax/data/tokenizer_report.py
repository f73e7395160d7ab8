"""Reports how a tokenizer splits the text of each language, for who chooses a model or mixes data.

    Katu beltz bat.   3 words, 15 characters, 8 tokens     2.67 tokens per word, 0.53 per character
    A black cat.      3 words, 12 characters, 4 tokens     premium over English 8 / 4 = 2

All are ratios of sums over a corpus, not means over its texts; special tokens do not count.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mllm_jax.common.markdown import markdown_table
from mllm_jax.data.chat.literal_tokenizer import LiteralTokenizer, control_tokens

ENGLISH = "en"
# ISO 639 codes of languages written without spaces between words (Unicode Standard Annex 29, Word
# Boundaries: Thai, Lao, Khmer, Myanmar, ideographs; Tibetan script divides syllables alone)
UNSPACED = frozenset("zh cmn yue wuu nan lzh ja th lo km my bo dz".split())


class TextCounts(NamedTuple):
    """A corpus in one language."""

    tokens: int  # without special tokens
    word_count: int  # between white space
    characters: int  # Unicode code points, white space included

    def plus(self, other: "TextCounts") -> "TextCounts":
        """Both together."""
        return TextCounts(*(a + b for a, b in zip(self, other, strict=True)))

    def tokens_per_word(self, language: str) -> float | None:
        """Fertility; None without words, or where the language does not write spaces."""
        if base_language(language) in UNSPACED or not self.word_count:
            return None
        return self.tokens / self.word_count

    @property
    def tokens_per_character(self) -> float:
        """Raises ZeroDivisionError without text."""
        return self.tokens / self.characters


class Parallel(NamedTuple):
    """Texts of one language that are there in English too."""

    tokens: int
    english: int  # tokens of the same texts in English
    texts: int

    @property
    def premium(self) -> float | None:
        """Tokens of the language for one in English (Petrov et al., 2023); None without text."""
        return self.tokens / self.english if self.english else None


class Row(NamedTuple):
    """A line of the report."""

    source: str  # stream or file
    language: str
    counts: TextCounts
    parallel: Parallel | None  # None for English


def base_language(code: str) -> str:
    """`zh` of `zh-Hant` (BCP 47)."""
    return code.split("-")[0].lower()


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text without special tokens; special-token text inside a text is text.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        texts: any.
    """
    control = frozenset(control_tokens(tokenizer, ""))
    literal = LiteralTokenizer(tokenizer.backend_tokenizer, control)
    return [len(ids) for ids in literal.ids(list(texts), first=True)]


def count_text(texts: Sequence[str], tokens: Sequence[int]) -> TextCounts:
    """A corpus of texts, whose `tokens` are as `count_tokens` gives them."""
    return TextCounts(sum(tokens), sum(len(x.split()) for x in texts), sum(map(len, texts)))


def pair(texts: Mapping[Any, int], english: Mapping[Any, int]) -> Parallel:
    """The texts that both languages have.

    Args:
        texts: what names a text -> its tokens in the language.
        english: likewise in English.
    """
    both = [key for key in texts if key in english]
    return Parallel(sum(texts[key] for key in both), sum(english[key] for key in both), len(both))


def table(rows: Iterable[Row]) -> str:
    """The report as a Markdown table, and why cells are empty."""
    rows = [row for row in rows if row.counts.characters]
    if not rows:
        return "tokenizer: no text to measure it on\n"
    head = ("text", "language", "words", "tokens per word", "tokens per character")
    head += ("premium over English", "parallel texts")
    lines = markdown_table(head, [_cells(row) for row in rows])
    unspaced = sorted({row.language for row in rows if base_language(row.language) in UNSPACED})
    if unspaced:
        lines += (
            f"{', '.join(unspaced)}: written without spaces, so tokens are per character only\n"
        )
    others = [row for row in rows if row.parallel is not None]
    if others and not any(row.parallel and row.parallel.english for row in others):
        lines += f"no premium over English: {_why(rows)}\n"
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    counts, parallel = row.counts, row.parallel
    per_word, per_character = counts.tokens_per_word(row.language), counts.tokens_per_character
    premium = parallel.premium if parallel else None
    return (
        row.source,
        row.language,
        f"{counts.word_count:,}" if per_word is not None else "",
        _ratio(per_word),
        _ratio(per_character),
        _ratio(premium),
        f"{parallel.texts:,}" if parallel and premium is not None else "",
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _why(rows: Sequence[Row]) -> str:
    if not any(base_language(row.language) == ENGLISH for row in rows):
        return "there is no English text"
    return "no text is there in English too (records with the same id and pictures)"
