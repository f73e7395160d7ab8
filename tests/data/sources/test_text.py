"""Plain text: lines and files by number, whatever the line ends and however the blocks fall."""

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources import text
from mllm_jax.data.sources.text import TextSource


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "eu.txt"
    path.write_bytes("\ufeffKaixo mundua.\n\n  \t\r\n Zer moduz? \r\n\x00a\nazkena ñ".encode())
    return path


def test_a_document_on_every_line_that_is_not_blank(corpus: Path):
    source = TextSource(corpus)
    assert [source[n] for n in range(len(source))] == [
        {"id": "eu.txt:1", "text": "Kaixo mundua."},
        {"id": "eu.txt:4", "text": " Zer moduz? "},
        {"id": "eu.txt:5", "text": "\x00a"},  # the records' checks name it
        {"id": "eu.txt:6", "text": "azkena ñ"},
    ]
    assert source.location(1) == f"{corpus}:4"
    assert source.files == [corpus]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["a", "ñb", " ", "\t", "\r", "\n", "\n\n", "\r\n"])),
    block=st.integers(1, 9),
)
def test_lines_are_those_of_python_whatever_the_block(tmp_path, monkeypatch, pieces, block):
    monkeypatch.setattr(text, "BLOCK", block)
    path = tmp_path / "a.txt"
    path.write_bytes("".join(pieces).encode())
    expected = [
        {"id": f"a.txt:{number}", "text": line.removesuffix("\r")}
        for number, line in enumerate("".join(pieces).split("\n"), start=1)
        if line.strip()
    ]
    source = TextSource(path)
    assert [source[n] for n in range(len(source))] == expected


def test_a_file_is_a_document_in_a_folder(tmp_path: Path):
    for name, content in {"b/2.txt": "bi\nlerro", "a.txt": "bat", "b/10.txt": "hamar"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "notes.md").write_text("no document")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.txt").write_text("no document")
    source = TextSource(tmp_path)
    assert [source[n] for n in range(len(source))] == [
        {"id": "a.txt", "text": "bat"},
        {"id": "b/10.txt", "text": "hamar"},
        {"id": "b/2.txt", "text": "bi\nlerro"},
    ]
    assert source.location(2) == f"{tmp_path / 'b' / '2.txt'}:1"


def test_an_empty_file_has_no_lines(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"")
    assert len(TextSource(tmp_path / "a.txt")) == 0


def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"bat\n\nbi\xff\nhiru\n")
    source = TextSource(path)
    assert source[2]["text"] == "hiru"
    with pytest.raises(RecordError) as fault:
        source[1]
    assert fault.value.code == "text"
    assert str(fault.value) == f"{path}:3: not UTF-8 text (invalid start byte)"
    with pytest.raises(RecordError, match=r"a\.txt:3: not UTF-8 text"):
        TextSource(tmp_path)[0]


def test_a_file_without_text_is_a_fault(tmp_path: Path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(RecordError, match="nothing but space") as fault:
        TextSource(tmp_path)[0]
    assert fault.value.code == "field"


def test_a_copy_in_another_process_reads_the_same(corpus: Path):
    source = TextSource(corpus)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[n] for n in range(len(copy))] == [source[n] for n in range(len(source))]


def test_numbers_outside_are_refused(corpus: Path):
    for number in (-1, 4):
        with pytest.raises(IndexError):
            TextSource(corpus)[number]


def test_paths_that_hold_no_text_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder$"):
        TextSource(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r": no \.txt file in this folder$"):
        TextSource(tmp_path)
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(ConfigError, match=r"a\.csv: expected a file named \.txt"):
        TextSource(tmp_path / "a.csv")
