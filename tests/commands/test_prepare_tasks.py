"""`prepare --task`: data sets of tasks, fetched once at a stated revision; no network."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.prepare import task_data
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.sources import hub
from tests.support.task_data import png

ROW = {"question_id": "1", "question": "Is it red?", "image": png(), "answer": "yes"}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[str] | None]]:
    """The data sets that are asked for: POPE, with one question in each of its splits."""
    asked: list[tuple[str, str, list[str] | None]] = []

    def snapshot(name, repo_type, revision, local_dir, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        data = Path(local_dir) / "data"
        data.mkdir()
        for split in ("adversarial", "popular", "random", "test"):
            row = {**ROW, "id": "1"}
            table = pa.Table.from_pylist([row])
            pq.write_table(table, data / f"{split}-00000-of-00001.parquet")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    return asked


def test_a_task_is_fetched_once(fetched, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pins = ["lmms-lab/POPE=abc", "swap-uniba/POPE_IT=def"]
    for _ in range(2):
        reports = task_data.run(["pope"], revisions=pins, folder=tmp_path)
    assert fetched == [("lmms-lab/POPE", "abc", None), ("swap-uniba/POPE_IT", "def", None)]
    assert reports == [
        {"task": "pope", "language": "en", "questions": 1, "images": 1},
        {"task": "pope", "language": "it", "questions": 3, "images": 3},
    ]
    assert "| pope" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give another folder"):
        task_data.run(["pope_en"], revisions=["lmms-lab/POPE=xyz"], folder=tmp_path)


def test_the_command(fetched, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["prepare", "--task", "pope", "pope_ndino", "--language", "en", "--folder"]
    words += [str(tmp_path), "--json", str(tmp_path / "o.json")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "lmms-lab/POPE: no revision is pinned; choose a commit on https://" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--revision", "lmms-lab/POPE=abc"]) == 0
    assert len(json.loads((tmp_path / "o.json").read_text())) == 2
    assert len(fetched) == 1


def test_only_the_files_of_the_task(fetched, tmp_path: Path):
    with pytest.raises(ConfigError, match="no file of split"):  # the played set is not VQAv2's
        task_data.run(["vqav2"], revisions=["lmms-lab/VQAv2=abc"], folder=tmp_path)
    assert fetched == [("lmms-lab/VQAv2", "abc", ["data/validation-*"])]
    note = json.loads((tmp_path / "lmms-lab--VQAv2/hub.json").read_text())
    assert note["files"] == ["data/validation-*"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task popr", "task 'popr' is not known; did you mean pope?"),
        ("--task pope --language eu", "task pope: no data or prompts in 'eu'; there are en, it;"),
        ("--task captions", "task captions: no published data are known"),
        ("--task pope --revision abc", "--revision 'abc': expected HUB=COMMIT"),
        ("--task pope --revision a/b=c", "--revision 'a/b': no data set of these tasks"),
        ("--task pope --config c.yaml", "'c.yaml' belongs to a stage or recipe"),
        ("--task pope --seed 3", "'--seed' belongs to a stage or recipe"),
        ("r.yaml --language eu", "prepare: --language belongs to --task"),
        ("r.yaml --folder d", "prepare: --folder belongs to --task"),
    ],
)
def test_wrong_words_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_pinned_revision_stays(fetched, tmp_path: Path):
    file = tmp_path / "t.yaml"
    file.write_text("from: pope\ndata: {en: {hub: a/b, revision: abc, path: data, split: test}}")
    with pytest.raises(ConfigError, match="--revision a/b=xyz: the task file pins abc"):
        task_data.run([str(file)], ["en"], ["a/b=xyz"], tmp_path)
    task_data.run([str(file)], ["en"], [], tmp_path)
    assert fetched == [("a/b", "abc", None)]
