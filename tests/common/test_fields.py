"""Fields of JSON objects: what each reader takes, and what it refuses in one line."""

import math
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.fields import REQUIRED, Fields

TREE = {"n": 3, "x": 0.5, "yes": True, "name": "a", "list": [1], "in": {"n": 4}, "none": None}


def fields(tree: Any = TREE) -> Fields:
    return Fields("a.json", tree)


def test_values_of_the_right_type():
    get = fields()
    assert get.whole("n", 0) == 3
    assert get.number("n", 0.0) == 3.0 and get.number("x", 0.0) == 0.5
    assert get.flag("yes", False) is True
    assert get.text("name", "") == "a"
    assert get.choice("name", "b", "a", "b") == "a"
    assert get.items("list", []) == [1]
    assert get.section("in").whole("n", 0) == 4
    assert "n" in get and "none" not in get


def test_true_is_no_number_and_a_text_may_be_as_long_as_its_limit():
    with pytest.raises(ConfigError, match="yes=True; expected a number"):
        fields().number("yes", 0.0)
    assert fields({"name": "abc"}).text("name", "", limit=3) == "abc"
    with pytest.raises(ConfigError, match="name='abcd'; expected text"):
        fields({"name": "abcd"}).text("name", "", limit=3)


def test_null_and_absent_are_the_default():
    get = fields()
    assert get.whole("none", 7) == 7
    assert get.text("absent", None) is None
    with pytest.raises(ConfigError, match=r"^a\.json: absent is missing$"):
        get.whole("absent", REQUIRED)


REFUSED = [
    ("whole", {"n": 3.0}, "n=3.0; expected a whole number from 0 to 2147483647"),
    ("whole", {"n": True}, "n=True; expected a whole number from 0 to 2147483647"),
    ("whole", {"n": -1}, "n=-1; expected a whole number from 0 to 2147483647"),
    ("whole", {"n": 2**31}, "n=2147483648; expected a whole number from 0 to 2147483647"),
    ("number", {"n": math.nan}, "n=nan; expected a number"),
    ("number", {"n": -math.inf}, "n=-inf; expected a number"),
    ("number", {"n": 10**400}, "n=an integer of 1329 bits; expected a number"),
    ("number", {"n": "1"}, "n='1'; expected a number"),
    ("flag", {"n": 1}, "n=1; expected true or false"),
    ("text", {"n": "\ud800"}, r"n='\\ud800'; expected text"),
    ("text", {"n": "a\0"}, r"n='a\\x00'; expected text"),
    ("text", {"n": 1}, "n=1; expected text"),
    ("items", {"n": {}}, "n={}; expected a list"),
    ("section", {"n": []}, r"n=\[\]; expected an object"),
]


@pytest.mark.parametrize(("reader", "tree", "message"), REFUSED)
def test_other_values_are_refused(reader: str, tree: dict, message: str):
    with pytest.raises(ConfigError, match=rf"^a\.json: {message}$"):
        getattr(fields(tree), reader)("n", {})


def test_bounds_are_part_of_the_message():
    with pytest.raises(ConfigError, match=r"n=3; expected a whole number from 4 to 9"):
        fields().whole("n", 5, 4, 9)
    with pytest.raises(ConfigError, match=r"x=0.5; expected a number from 1 to 2"):
        fields().number("x", 1.0, 1.0, 2.0)
    assert (fields().whole("n", 0, 3, 3), fields().number("x", 1.0, 0.5, 0.5)) == (3, 0.5)


def test_choice_and_expect_compare_types():
    with pytest.raises(ConfigError, match="yes=True; expected 1 or 2"):
        fields().choice("yes", 2, 1, 2)
    with pytest.raises(ConfigError, match="yes=True is not supported; only 1 is"):
        fields().expect("yes", 1)
    fields().expect("n", 3)
    fields().expect("absent", 3)


def test_only_objects_have_fields():
    with pytest.raises(ConfigError, match=r"^a\.json: expected an object, found a list$"):
        fields([])
