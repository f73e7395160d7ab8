"""Reports how the backbone's tokenizer splits the project's languages, from samples.

--data        -> the records that lengths are measured on
--parallel    -> line n of one file is the translation of line n of the other
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.failures import reason
from mllm_jax.data.records.parse import Record, trained_texts
from mllm_jax.data.tokenizer_report import (
    ENGLISH,
    Parallel,
    Row,
    count_text,
    count_tokens,
    table,
)

LINES = 100_000  # of --parallel that are tokenised, from the first on
Lines = tuple[list[str], list[str]]  # the language's and the English ones


def read_parallel(files: Sequence[Path]) -> Lines:
    """The lines of two files in which both languages have text.

    Args:
        files: in the project's language, and in English.

    Raises:
        ConfigError: a file cannot be read, they have different numbers of lines, or no text.
    """
    texts, english = (_lines(path) for path in files)
    require(
        len(texts) == len(english),
        f"--parallel: {files[0]} has {len(texts):,} lines and {files[1]} {len(english):,}; line n "
        "of one must be the translation of line n of the other",
    )
    both = [(a, b) for a, b in zip(texts, english, strict=True) if a.strip() and b.strip()][:LINES]
    require(len(both) > 0, f"--parallel {files[0]} {files[1]}: no line has text in both files")
    return [a for a, _ in both], [b for _, b in both]


def _lines(path: Path) -> list[str]:
    require(path.is_file(), f"--parallel {path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(f"--parallel {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--parallel {path}: not UTF-8 at byte {error.start:,}") from error
    require("\0" not in text, f"--parallel {path}: holds a NUL character, so it is not a text file")
    return text.rstrip("\n").split("\n")


def report(
    tokenizer: Any, records: Iterable[Record], language: str, parallel: Lines | None = None
) -> str:
    """The table of a project.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        records: a sample.
        language: the project's, in which the first lines of `parallel` are.
        parallel: as `read_parallel` gives them.
    """
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record.language, []).extend(trained_texts(record))
    rows = [
        Row("sample of --data", code, count_text(of, count_tokens(tokenizer, of)), None)
        for code, of in texts.items()
    ]
    if parallel is None:
        hint = "give two files of translated lines: --parallel FILE ENGLISH_FILE"
        return table(rows) + f"no premium over English: {hint}\n"
    tokens, english = (count_tokens(tokenizer, lines) for lines in parallel)
    premium = Parallel(sum(tokens), sum(english), len(tokens))
    rows.append(Row("--parallel", language, count_text(parallel[0], tokens), premium))
    rows.append(Row("--parallel", ENGLISH, count_text(parallel[1], english), None))
    return table(rows)
