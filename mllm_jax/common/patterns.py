"""Checks regular expressions over parameter paths, and matches them in bounded time.

Python's `re` cannot be interrupted, and `(a|a)*b` would take it years for one path of sixty
characters. The `regex` library reads the same language and stops after a time limit. (RE2 is linear
but knows no `(?!...)`, which configs use; looking for nested quantifiers finds some bombs only.)
`re` decides what is a valid expression, so that none of the additions of `regex` become a dialect.
"""

import functools
import re
import time
import warnings
from typing import Any

import regex

from mllm_jax.common.errors import ConfigError, quoted

LIMIT = 1_000  # characters of an expression
# product of all counted repeats: `regex` unrolls ((a{1000}){1000}){1000} in memory as it compiles
REPEATS = 10_000
REPEAT = re.compile(r"\{(\d{1,9})?(?:,(\d{1,9})?)?\}")
SECONDS = 0.5  # of one match, and of all slow matches of an expression; ordinary ones take 10 us
SLOW = 1e-3  # seconds of processor time from which a match counts as slow


def problem(pattern: str) -> str | None:
    """What is wrong with an expression, in one clause; None if it is valid."""
    if len(pattern) > LIMIT:
        return f"has {len(pattern):,} characters; at most {LIMIT:,} are allowed"
    bare, counts = pattern, 1
    for repeat in REPEAT.finditer(pattern):
        counts *= max(1, *(int(number) for number in repeat.groups(default="0") if number))
        bare = bare.replace(repeat[0], "")
    if counts > REPEATS:
        return f"repeats too often: the product of all {{n}} must not exceed {REPEATS:,}"
    if "{" in bare:  # fuzzy matching in `regex`, a literal in `re`; no path holds one
        return "holds a { that is not a repeat, such as {2} or {1,3}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
            regex.compile(pattern)
    except (re.error, regex.error) as error:
        return f"is not a regular expression: {error}"
    except Warning as error:
        return f"is ambiguous: {error}; escape the brackets"
    except (RecursionError, OverflowError):
        return "is not a regular expression: nested too deeply"
    return None


def matches(pattern: str, path: str, location: str) -> bool:
    """Whether an expression matches a whole path.

    Args:
        pattern: one in which `problem` finds nothing.
        path: the text.
        location: the config field, for the message.

    Raises:
        ConfigError: it takes too long.
    """
    matcher = _matcher(pattern)
    if (matched := matcher.fullmatch(path)) is None:
        raise ConfigError(
            f"{location}={quoted(pattern)} takes longer than {SECONDS} s to match {path!r}; "
            "write it without repeats inside repeats"
        )
    return matched


class _Matcher:
    """A compiled expression that knows how long its slow matches took together."""

    def __init__(self, pattern: str):
        self._compiled: Any = regex.compile(pattern)
        self._spent = 0.0

    def fullmatch(self, path: str) -> bool | None:
        """Whether it matches; None if that takes too long."""
        if self._spent > SECONDS:
            return None
        start = time.thread_time()  # processor time: a crowded machine must not cause a refusal
        try:
            matched = self._compiled.fullmatch(path, timeout=SECONDS) is not None
        except TimeoutError:
            return None
        taken = time.thread_time() - start
        self._spent += taken if taken > SLOW else 0.0
        return matched


@functools.lru_cache(maxsize=256)
def _matcher(pattern: str) -> _Matcher:
    return _Matcher(pattern)
