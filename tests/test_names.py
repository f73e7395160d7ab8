"""Names that say something and words that everybody knows: counted, per folder of the package."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "mllm_jax"
FILES = sorted(ROOT.rglob("*.py"))

FILLERS = frozenset("found made it own said given wanted kept shown where words".split())
FILLER_LIMIT = 0.005  # of all names; eight admired codebases have 0 to 0.005

# The words of a private language, and what the field says instead.
PRIVATE = {
    r"(?<!there )\bis no [a-z]+": "is not a (valid) ...",
    r"\btorn\b": "truncated, corrupt",
    r"\b(anew|afresh)\b": "again",
    r"\bgo(es)? on\b": "continue",
    r"\bmend(s|ed)?\b": "fix",
    r"\bseats?\b": "placeholder",
    r"\b(ground floor|wings?|doors?)\b": "base layer, folder, command",
    r"\bguards?\b": "watchdog; protects",
    r"\bsigns? of life\b": "heartbeat",
    r"\bknobs?\b": "option",
    r"\bpeers?\b": "PyTorch baseline",
    r"\bforecasts?\b": "estimate",
    r"\bseal(s|ed)?\b": "manifest",
    r"\bstands\b(?! for\b)": "is",
    r"(?<!must )\b(lies|lie)\b": "is",
    r"\bhow often\b": "how many times",
    r"\bwished\b": "target",
}
PRIVATE_LIMIT = 0.005  # of the lines of docstrings, comments and messages


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def folder(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of all variables, arguments, attributes, functions and classes defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def prose(file: Path) -> Iterator[tuple[str, int]]:
    """(text, line) of the lines of docstrings, comments and other strings that hold words."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines()):
                yield line, node.lineno + number
    source = file.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def assert_rare(what: str, limit: float, lines: Iterable[tuple[Path, int, Sequence[str]]]) -> None:
    """Fails if more than a share `limit` of (file, line, matches in it) hold a match.

    The message has the share of every folder, largest first, and every place.
    """
    matches, totals, places = Counter[str](), Counter[str](), []
    for file, line, words in lines:
        totals[folder(file)] += 1
        matches[folder(file)] += len(words)
        places += [f"{file.relative_to(ROOT)}:{line}: {word}" for word in words]
    shares = {name: matches[name] / total for name, total in totals.items() if matches[name]}
    table = [
        f"{name:16} {matches[name]:4} of {totals[name]:5}   {shares[name]:.2%}"
        for name in sorted(shares, key=lambda name: -shares[name])
    ]
    share = matches.total() / totals.total()
    assert share <= limit, "\n".join([f"{share:.2%} of all {what}", *table, *places])


def test_names_say_what_they_hold():
    assert_rare(
        "names are fillers",
        FILLER_LIMIT,
        (
            (file, line, [name] if name.strip("_") in FILLERS else [])
            for file in FILES
            for name, line in names(parse(file))
        ),
    )


def test_the_prose_uses_words_that_everybody_knows():
    private = re.compile("|".join(PRIVATE))
    assert_rare(
        "lines hold a private word",
        PRIVATE_LIMIT,
        (
            (file, line, [word[0] for word in private.finditer(text)])
            for file in FILES
            for text, line in prose(file)
        ),
    )
