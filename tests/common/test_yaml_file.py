"""YAML text -> values: what is read, and one short line in bounded time for all the rest."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.yaml_file import BYTES, DEPTH, NODES, NotYAML, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-17", -17),
        ("+1_000", 1000),
        ("0x1F", 31),
        ("0b101", 5),
        ("1.5", 1.5),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("null", None),
        # no number and no date in a config looks like these
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("'2024-01-02'", "2024-01-02"),
        ("runs/2024-01-02", "runs/2024-01-02"),
        ("=", "="),
        ("1e-4", "1e-4"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!int '7'", 7),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
    ],
)
def test_what_is_read(text: str, value: Any):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_the_first_of_several_merged_sections_wins():
    text = "a: &a {k: 1, l: 1}\nb: &b {k: 2, m: 2}\nc: {<<: [*a, *b], m: 3}\n"
    assert parse_yaml(text)["c"] == {"k": 1, "l": 1, "m": 3}


def test_a_merged_section_may_override_before_its_own_turn():
    # PyYAML builds level by level: `b` is merged into `c` before `b` itself is built
    text = "x: {y: {a: &a {k: 1}, b: &b {<<: *a, k: 2}}}\nc: {<<: *b}\n"
    assert parse_yaml(text)["c"] == {"k": 2}


def test_uses_of_an_alias_are_apart():
    tree = parse_yaml("a: &x {p: 1}\nb: *x")
    tree["a"]["p"] = 2
    assert tree["b"] == {"p": 1}


LAUGHS = "a0: &a0 [l, l, l, l, l, l, l, l]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: !!int x", 2, "'x' is not a valid int"),
        ("a: !!int ''", 1, "'' is not a valid int"),
        ("a: !!bool maybe", 1, "'maybe' is not a valid bool"),
        ("a: !!float x", 1, "'x' is not a valid float"),
        ("a: 0x_", 1, "'0x_' is not a valid int"),
        ("a: !!int [1]", 1, "expected a scalar node, but found sequence"),
        ("a: 1\nb: !!timestamp x", 2, "'x' reads as a date"),
        ("a: 1\nb: 2024-99-99", 2, "'2024-99-99' reads as a date; if it is text, put it in quotes"),
        ("2024-01-02: a", 1, "'2024-01-02' reads as a date"),
        ("2001-12-14t21:59:43.10-05:00", 1, "reads as a date"),
        ("a: !!binary aGk=", 1, "tag 'tag:yaml.org,2002:binary' is not allowed"),
        ("a: !!set {b}", 1, "tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", 1, "tag 'tag:yaml.org,2002:python/object/"),
        ("a: !x 1", 1, "tag '!x' is not allowed"),
        ("a: 1\nb: " + "1" * 5000, 2, "is not a valid int"),
        ("a: 1\nb: x\0y", 2, r"character U\+0000 is not allowed"),
        ("a: \x07", 1, r"character U\+0007 is not allowed"),
        ("a: 1\na: 2", 2, "key 'a' is given twice"),
        ("a: {b: 1, c: 2, b: 3}", 1, "key 'b' is given twice"),
        ("? {a: 1}\n: 2", 1, "a key must be text"),
        ("? [a]\n: 2", 1, "a key must be text"),
        ("a: &x [1, *x]", 1, "an alias inside of what it stands for"),
        ("a: &x {b: *x}", 1, "an alias inside of what it stands for"),
        ("a: *nobody", 1, "found undefined alias 'nobody'"),
        ("<<: 1", 1, "<< takes a section, or a list of sections"),
        ("a: b\n---\nc: d", 2, "but found another document"),
        ("a: [1", 1, "expected ',' or ']'"),
        ('a: "\\xZZ"', 1, "expected escape sequence of 2 hexadecimal numbers"),
        ("\ta: 1", 1, "found character"),
        (LAUGHS, 6, "stands for more than 100,000 values"),
        ("[" * 2000 + "]" * 2000, 1, "nested deeper than 50 levels"),
        ("- " * 2000 + "a", 1, "nested deeper than 50 levels"),
    ],
)
def test_what_is_refused_in_one_short_line_at_once(text: str, line: int, reason: str):
    start = time.perf_counter()
    with pytest.raises(NotYAML, match=reason) as caught:
        parse_yaml(text)
    assert time.perf_counter() - start < 5, "a tenth of a second on an idle machine"
    assert caught.value.line == line
    assert len(caught.value.reason) <= 170 and "\n" not in caught.value.reason


def test_the_limits_are_where_they_say():
    assert parse_yaml("[" * (DEPTH - 1) + "1" + "]" * (DEPTH - 1))
    with pytest.raises(NotYAML, match="nested deeper"):
        parse_yaml("[" * DEPTH + "1" + "]" * DEPTH)
    assert len(parse_yaml("a: &a [" + "1," * 99 + "]\nb: [" + "*a," * 900 + "]")["b"]) == 900
    with pytest.raises(NotYAML, match="values"):
        parse_yaml("a: &a [" + "1," * 99 + "]\nb: [" + "*a," * (NODES // 100) + "]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder; give a YAML file"),
        (b"a: caf\xe9", "not UTF-8 text: unexpected end of data at byte 6"),
        (b"\xff\xfe", "not UTF-8 text: invalid start byte at byte 0"),
        (b"a: 1\nb: [", ":2: not valid YAML: "),
        (b"- 1", "expected sections (a mapping), found list"),
        (b"2024-99-99", ":1: not valid YAML: '2024-99-99' reads as a date"),
        (b"text", "expected sections (a mapping), found str"),
        (b"a: " + b"x" * BYTES, "has 1,048,579 bytes; a config has at most 1,048,576"),
    ],
)
def test_what_is_not_a_config_is_named_with_its_file(tmp_path: Path, content: Any, message: str):
    path = tmp_path / "stage.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["no", "1", "1.5", "010", "1:30", "2024-01-02", "~", "a: b", "=", "<<", "é", "1e5", "", "#"],
)
def test_text_written_by_the_library_stays_text(value: str):
    assert parse_yaml(yaml.safe_dump({"a": value}, allow_unicode=True)) == {"a": value}
