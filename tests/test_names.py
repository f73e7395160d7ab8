"""Names that say something and words that everybody knows: counted, per folder of the package."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
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
ALLOWED: dict[str, tuple[str, ...]] = {  # file -> words that mean there what they mean everywhere
}


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


def shares(matches: Counter[str], totals: Counter[str]) -> str:
    """The share of every folder, largest first, for the message of a failure."""
    share = {name: matches[name] / total for name, total in totals.items()}
    return "\n".join(
        f"{name:16} {matches[name]:4} of {totals[name]:5}   {share[name]:.2%}"
        for name in sorted(share, key=lambda name: -share[name])
        if matches[name]
    )


def test_names_say_what_they_hold():
    matches, totals, places = Counter[str](), Counter[str](), []
    for file in FILES:
        for name, line in names(parse(file)):
            totals[folder(file)] += 1
            if name.strip("_") in FILLERS:
                matches[folder(file)] += 1
                places.append(f"{file.relative_to(ROOT)}:{line}: {name}")
    share = matches.total() / totals.total()
    message = f"{share:.2%} of all names are fillers\n{shares(matches, totals)}\n"
    assert share <= FILLER_LIMIT, message + "\n".join(places)


def test_the_prose_uses_words_that_everybody_knows():
    private = re.compile("|".join(PRIVATE))
    matches, totals, places = Counter[str](), Counter[str](), []
    for file in FILES:
        path = file.relative_to(ROOT).as_posix()
        for text, line in prose(file):
            totals[folder(file)] += 1
            for word in private.finditer(text):
                if word[0] not in ALLOWED.get(path, ()):
                    matches[folder(file)] += 1
                    places.append(f"{path}:{line}: {word[0]}")
    share = matches.total() / totals.total()
    message = f"{share:.2%} of all lines hold a private word\n{shares(matches, totals)}\n"
    assert share <= PRIVATE_LIMIT, message + "\n".join(places)


def test_every_allowed_word_is_used():
    for path, words in ALLOWED.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not [word for word in words if word not in text], path
