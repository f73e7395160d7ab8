"""How values and messages are printed: cut, on one line, with bounded work."""

import time

import pytest

from mllm_jax.common.errors import LINE, closest, one_line, quoted


def test_ordinary_values_are_their_repr():
    for value in ("a", 1, -2.5, None, True, [1, "b"], {"a": [1, 2]}, b"ab", 2**64):
        assert quoted(value) == repr(value)


def test_control_characters_are_escaped():
    assert quoted("a\nb\x1b[2J\u202e\ud800") == r"'a\nb\x1b[2J\u202e\ud800'"
    assert one_line("bad \x1b[2J\ud800\nvalue\r\n") == r"bad \x1b[2J\ud800 value"


def test_a_long_text_loses_its_middle():
    assert quoted("a" * 10**8 + "end").endswith("aaend'")
    assert len(quoted("a" * 10**8)) <= 120
    line = one_line("file.json: " + "x" * 10**7 + "; remove it")
    assert len(line) <= LINE
    assert line.startswith("file.json: xxx")
    assert line.endswith("xx; remove it")


def test_the_name_that_a_misspelt_one_means():
    assert closest("lenght", ["length", "rows"]) == "length"
    assert closest("x" * 10**6, ["length", "rows"]) is None


def laughs() -> list:
    value: list = ["ha"] * 9
    for _ in range(9):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(laughs(), id="lists of lists"),
        pytest.param(10**5000, id="integer"),
        pytest.param(b"a" * 10**8, id="bytes"),
        pytest.param({"a" * 10**6: "b" * 10**6}, id="texts"),
    ],
)
def test_work_is_bounded(value: object):
    start = time.perf_counter()
    assert len(quoted(value)) <= 120
    assert time.perf_counter() - start < 1
