"""JSON and JSONL by number: bytes found again, faults named by file and line."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources import json_file
from mllm_jax.data.sources.base import LONG_INTEGER
from mllm_jax.data.sources.json_file import JsonSource

ROWS = [{"id": "ñ", "text": "Zer da?\u2028 \n"}, {"a": [1, {"b": "]},{"}]}, {}, {"é": "😀"}]
SPACES = st.sampled_from(["", " ", "\n", "\r\n\t"])


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_by_number(write, name, mark):
    whole = name.endswith(".json")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = json.dumps(ROWS, ensure_ascii=False, indent=1) if whole else "\n".join(lines)
    source = JsonSource(write(name, mark + text))
    assert [source[n] for n in (3, 0, 2, 1)] == [ROWS[n] for n in (3, 0, 2, 1)]
    assert len(source) == 4
    sent = pickle.loads(pickle.dumps(source))
    assert sent[1] == ROWS[1] and sent.files == source.files
    path = source.files[0]
    assert source.location(0) == (f"{path}:2" if whole else f"{path}:1")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_read_ahead_are_the_same(write, name, monkeypatch):
    """Rows shorter and longer than a window, of letters of several bytes, in any order."""
    monkeypatch.setattr(json_file, "AHEAD", 64)
    rows = [{"id": n, "text": "é😀 a"[: n % 5] * (n * 7 % 23)} for n in range(300)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    source = JsonSource(
        write(name, f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines))
    )
    anyhow = np.random.default_rng(0).permutation(300).tolist()
    for order in (range(300), anyhow, range(299, -1, -1)):
        assert [source[n] for n in order] == [rows[n] for n in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, range(300))) == rows


@given(st.lists(st.tuples(SPACES, SPACES), max_size=6), SPACES, SPACES)
def test_any_space_between_elements(tmp_path_factory, gaps, before, after):
    path = tmp_path_factory.mktemp("json") / "a.json"
    items = [f'{a}{{"n": {n}}}{b}' for n, (a, b) in enumerate(gaps)]
    path.write_text(f"{before}[{','.join(items)}]{after}", encoding="utf-8", newline="")
    source = JsonSource(path)
    assert [source[n]["n"] for n in range(len(source))] == list(range(len(gaps)))


def test_blank_lines_are_no_rows(write):
    source = JsonSource(write("a.jsonl", '\n{"a": 1}\n\n  \t\n{"a": 2}\r\n\n'))
    assert [source[n] for n in range(len(source))] == [{"a": 1}, {"a": 2}]
    assert source.location(1).endswith("a.jsonl:5")
    assert len(JsonSource(write("b.jsonl", ""))) == 0
    assert len(JsonSource(write("b.json", " [ ] "))) == 0


LONG = "7" * 5000


def test_an_integer_that_python_does_not_read_ends_its_own_record(write):
    source = JsonSource(write("a.json", f'[{{"a": 1}}, {{"b": [{LONG}]}}, {{"a": 3}}]'))
    with pytest.raises(RecordError) as fault:
        source[1]
    assert (fault.value.code, fault.value.reason) == (
        "json",
        f"not JSON we can read: {LONG_INTEGER}",
    )
    assert [source[0], source[2]] == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ('{"a": }', "json", "not JSON: Expecting value (column 7)"),
        ("[2]", "field", "expected an object, found list"),
        ("[" * 200_000, "json", "not JSON we can read: nested too deeply"),
        (f'{{"a": {LONG}}}', "json", f"not JSON we can read: {LONG_INTEGER}"),
        (f' {{"a": -{LONG}}}', "json", f"not JSON we can read: {LONG_INTEGER}"),
    ],
)
def test_a_broken_line_is_a_fault_of_its_own(write, line, code, reason):
    source = JsonSource(write("a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3}}\n'))
    with pytest.raises(RecordError) as fault:
        source[1]
    assert (fault.value.code, fault.value.reason) == (code, reason)
    assert source[2] == {"a": 3}


def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(RecordError, match=r"not UTF-8 text \(invalid start byte\)"):
        JsonSource(tmp_path / "a.jsonl")[0]
    (tmp_path / "a.json").write_bytes(b'[\n{"a": "\xff"}]')
    with pytest.raises(ConfigError, match=r"a\.json:2: not UTF-8 text \(invalid start byte\)"):
        JsonSource(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n{"a": }]', "a.json:2: not JSON: Expecting value (column 7)"),
        ('[{"a": 1}\n{"a": 2}]', "a.json:2: not JSON: Expecting ',' delimiter or ']' (column 1)"),
        ('[{"a": 1},\n]', "a.json:2: not JSON: Expecting value (column 1)"),
        ('[{"a": 1}', "a.json:1: not JSON: Expecting ',' delimiter or ']'"),
        ('[{"a": 1}] x', "a.json:1: not JSON: Extra data (column 12)"),
        ('{"a": 1}', "a.json: expected a list of records, found dict"),
        ('{"a": 1}\n{"a": 2}', "name the file .jsonl"),
        ("", "a.json:1: not JSON: Expecting value (column 1)"),
        ("[" * 200_000, "a.json:1: not JSON we can read: nested too deeply"),
    ],
)
def test_a_broken_list_is_refused_whole(write, text, said):
    with pytest.raises(ConfigError) as error:
        JsonSource(write("a.json", text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_names(write, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: no such file"):
        JsonSource(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"a\.txt: expected a file named \.json"):
        JsonSource(write("a.txt", "[]"))
