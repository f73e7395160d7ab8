"""Regular expressions of configs: what is refused when read, and that no match takes long."""

import re
import time

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.patterns import LIMIT, REPEATS, matches, problem

OTHERS = ("vision/patches/bias", "connector/linear_1/kernel", "language/embedding", "")
PATH = "language/layers/attention/query/kernel_of_a_name_that_is_long_and_longer"


@pytest.mark.parametrize(
    "pattern",
    [
        ".*",
        "",
        "vision/.*",
        "(connector|language)/.*",
        "language/(?!embedding).*",
        r".*(bias|scale|embedding)",
        r"(?i)LANGUAGE/.*",
        r"language/\w+/[a-z]{3,9}/(query|key)/.*",
        r"(.*/)?kernel_.*",
        r"(?P<tower>language)/.*",
        r"language/layers/(?:attention|mlp)/.*(?<!bias)",
    ],
)
def test_ordinary_expressions_match_as_re_does(pattern: str):
    assert problem(pattern) is None
    for path in (
        PATH,
        "vision/patches/bias",
        "connector/linear_1/kernel",
        "language/embedding",
        "",
    ):
        assert matches(pattern, path, "x") == (re.fullmatch(pattern, path) is not None)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("vision/(", r"is not a regular expression: missing \)"),
        ("*", "is not a regular expression: nothing to repeat"),
        ("[a", "is not a regular expression: unterminated character set"),
        ("(?R)", "is not a regular expression: unknown extension"),  # `regex` would recurse
        (r"\p{L}", "holds a {"),  # an addition of `regex`
        (r"\X", r"is not a regular expression: bad escape \\X"),
        ("(?:abc){e<2}", "holds a {"),  # fuzzy matching in `regex`, literal in `re`
        ("[[a]", "is ambiguous: .*; escape the brackets"),
        ("a" * (LIMIT + 1), "has 1,001 characters; at most 1,000 are allowed"),
        ("a{10001}", "repeats too often"),
        ("a{10001,}", "repeats too often"),
        ("((a{1000}){1000}){1000}", "repeats too often"),  # gigabytes in `regex`
        ("a{99999999999999999999}", "holds a {"),
        ("(" * 499 + ")" * 499, "nested too deeply"),
    ],
)
def test_what_is_refused_when_it_is_read(pattern: str, reason: str):
    start = time.perf_counter()
    wrong = problem(pattern)
    assert wrong is not None and re.search(reason, wrong), wrong
    assert time.perf_counter() - start < 5
    assert "\n" not in wrong and len(wrong) < 200


def test_the_limits_are_where_they_say():
    assert problem("a" * LIMIT) is None
    assert problem(f"a{{{REPEATS}}}") is None
    assert problem("(a{100}){100}") is None


@pytest.mark.parametrize("pattern", ["(.|.)*!.*l", "(.|..)+!.*r"])
def test_an_expression_that_explodes_is_ended_with_its_name(pattern: str):
    path = PATH.replace("_of_", "!of!") + "!"
    assert problem(pattern) is None
    start = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        matches(pattern, path, "init.fresh")
    assert time.perf_counter() - start < 10, "`re` takes longer than a life"
    assert str(error.value) == (
        f"init.fresh='{pattern}' takes longer than 0.5 s to match {path!r}; "
        "write it without repeats inside repeats"
    )


def test_many_slow_matches_count_together():
    # each of these takes less than the limit: 39 parameters took 17 s
    start = time.perf_counter()
    paths = [f"{'ab' * 8}{number}" for number in range(2000)]
    with pytest.raises(ConfigError, match="takes longer than"):
        [matches(r"(\w|\w)+!.*x", f"{path}!q", "x") for path in paths]
    assert time.perf_counter() - start < 10


def test_many_quick_matches_do_not():
    assert all(matches("language/.*", f"language/{number}", "x") for number in range(50_000))
