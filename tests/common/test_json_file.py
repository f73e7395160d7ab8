"""JSON objects in files: the round trip, and what is refused with its place."""

from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.json_file import parse_json, read_json, write_json


def test_round_trip_with_letters_as_they_are(tmp_path: Path):
    tree = {"hizkuntza": "español", "n": [1, 2.5, None], "b": {"a": True}}
    write_json(tmp_path / "a.json", tree)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "español" in text
    assert text.endswith("}\n")
    assert read_json(tmp_path / "a.json") == tree
    assert list(read_json(tmp_path / "a.json")) == list(tree)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "a.json:2: not JSON: Expecting ':' delimiter"),
        (b"", "a.json:1: not JSON: Expecting value"),
        (b"\xff\xfe", "a.json: not JSON: not UTF-8 text (invalid start byte)"),
        (b'{"a": ' + b"[" * 10**5, "a.json: not JSON: nested too deeply"),
        (
            b'{"a": ' + b"1" * 5000 + b"}",
            "a.json: not JSON: an integer of more digits than can be read",
        ),
        (b'{"a": {"b": 1, "b": 1}}', "a.json: not JSON: key 'b' is given twice"),
        (b"[1]", "a.json: expected an object, found list"),
        (None, "a.json: no such file"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_json(path)
    assert str(error.value) == f"{tmp_path}/{message}"


def test_half_surrogates_are_refused_whole_ones_are_read():
    """What is read can be written again."""
    assert parse_json(r'{"a": "\ud83d\ude00"}', "x.json") == {"a": "\U0001f600"}
    for text in (r'{"a": ["\ud83d"]}', r'{"\uDE00": 1}'):
        for data in (text, text.encode()):
            with pytest.raises(ConfigError, match=r"^x\.json: not JSON: a text with half a surrog"):
                parse_json(data, "x.json")
