"""Objects of JSON files with their lines; what is refused is tested with `records`."""

import pytest

from mllm_jax.data.json_files import read_objects
from mllm_jax.errors import ConfigError


def test_a_list_and_lines(write):
    assert list(read_objects(write("a.json", [1, {"a": 2}]))) == [(None, 1), (None, {"a": 2})]
    lines = write("a.jsonl", '{"a": 1}\n\n  \n[2]\n')
    assert list(read_objects(lines)) == [(1, {"a": 1}), (4, [2])]


def test_line_separators_inside_a_string_end_no_object(write):
    path = write("a.jsonl", [{"a": "a\u2028b\u0085c"}])
    assert list(read_objects(path)) == [(1, {"a": "a\u2028b\u0085c"})]


def test_a_byte_order_mark_is_no_content(write):
    assert list(read_objects(write("a.json", "\ufeff[1]"))) == [(None, 1)]


def test_too_deep(write):
    with pytest.raises(ConfigError, match=r"a\.json:1: not JSON we can read: nested too deeply"):
        list(read_objects(write("a.json", "[" * 200_000)))
