"""Rows of a task: prepared folders, Parquet and JSON, images as files and bytes, bad rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.records.parse import IMAGE
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task
from tests.support.task_data import png, rows_file

ROW = {"question_id": 7, "question": "Is it red?", "image": "a.png", "answer": "yes"}


def task_of(folder: Path, text: str) -> TableTask:
    file = folder / "task.yaml"
    file.write_text(text, encoding="utf-8")
    return load_task(str(file))


def prepared(root: Path, hub: str, revision: str = "abc") -> Path:
    folder = root / hub.replace("/", "--")
    (folder / "data").mkdir(parents=True)
    note = json.dumps({"hub": hub, "revision": revision})
    (folder / "hub.json").write_text(note, encoding="utf-8")
    return folder


def test_a_prepared_folder_is_read(tmp_path: Path):
    folder = prepared(tmp_path, "lmms-lab/POPE")
    rows = [
        {
            "question_id": str(number),
            "question": f"Is it {number}?",
            "image": {"bytes": png(number % 2), "path": None},
            "answer": ("yes", "no")[number % 2],
            "category": ("random", "popular")[number // 2],
        }
        for number in range(4)
    ]
    rows[2]["question_id"] = "0"  # POPE counts in each category
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/test-00000-of-00001.parquet")
    questions = load_task("pope").questions("en", tmp_path)
    assert [one.id for one in questions] == ["random/0", "random/1", "popular/0", "popular/3"]
    first = questions[0]
    assert first.images == (png(0),)
    assert first.turns[0].parts[:2] == (IMAGE, "\n")
    assert first.text == "Is it 0?\nAnswer the question using a single word or phrase."
    assert (first.truth, first.category) == ("yes", "random")
    assert first.group == questions[2].group != questions[1].group
    assert len(load_task("pope").questions("en", tmp_path, limit=2)) == 2


def test_splits_that_are_categories(tmp_path: Path):
    folder = prepared(tmp_path, "swap-uniba/POPE_IT")
    for split in ("adversarial", "popular", "random"):
        row = {"id": 1, "question": "C'è?", "image": png(), "answer": "sì"}
        table = pa.Table.from_pylist([row])
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    questions = load_task("pope").questions("it", tmp_path)
    assert [(one.id, one.category) for one in questions] == [
        ("adversarial/1", "adversarial"),
        ("popular/1", "popular"),
        ("random/1", "random"),
    ]


def test_images_of_a_second_table(tmp_path: Path):
    folder = prepared(tmp_path, "lmms-lab/GQA")
    for name, row in (
        ("instructions", {"id": "q", "question": "Zer?", "imageId": "n1", "answer": "red"}),
        ("images", {"id": "n1", "image": png()}),
    ):
        inside = folder / f"testdev_balanced_{name}"
        inside.mkdir()
        table = pa.Table.from_pylist([row])
        pq.write_table(table, inside / "testdev-00000-of-00001.parquet")
    (question,) = load_task("gqa").questions("en", tmp_path)
    assert question.images == (png(),)


def test_unprepared_data_of_a_task_file_name_the_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("from: pope\n")
    with pytest.raises(ConfigError, match=r"mllm-jax prepare --task mine\.yaml --language en"):
        load_task(str(tmp_path / "mine.yaml")).questions("en", tmp_path)


def test_unprepared_data_name_the_command(tmp_path: Path):
    with pytest.raises(ConfigError, match="lmms-lab/POPE is not in") as error:
        load_task("pope").questions("en", tmp_path)
    command = f"mllm-jax prepare --task pope --language en --folder {tmp_path}"
    assert str(error.value).endswith(f"fetch it by: {command}")


def test_another_revision_is_refused(tmp_path: Path):
    prepared(tmp_path, "a/b", "old")
    text = "from: pope\ndata: {eu: {hub: a/b, revision: new, path: data}}"
    with pytest.raises(ConfigError, match="needs a/b at new; move it away"):
        task_of(tmp_path, text).questions("eu", tmp_path)


def test_languages_without_data_or_prompt(tmp_path: Path):
    with pytest.raises(ConfigError, match="no published data in 'eu' are known"):
        load_task("pope").questions("eu", tmp_path)
    rows_file(tmp_path, [ROW])
    task = task_of(tmp_path, "from: pope\ndata: {hr: {path: rows.jsonl}}")
    with pytest.raises(ConfigError, match="no post_prompt in 'hr'; write post_prompt: "):
        task.questions("hr", tmp_path)
    assert "hr" not in task.languages


def test_a_file_in_the_place_of_published_data(tmp_path: Path):
    file = rows_file(tmp_path / "mine", [ROW])
    (question,) = load_task("pope").with_data("eu", file).questions("eu", tmp_path)
    assert question.text.endswith("hitz edo esaldi bakar batekin.")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "mine/a.png").rename(folder / "a.png")
    (question,) = load_task("pope").with_data("eu", file, folder).questions("eu", tmp_path)
    assert question.images == (str(folder / "a.png"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "no column 'answer', the answer of task task; the row has question_id"),
        ({"question": ["a"]}, "question=['a'] is not text"),
        ({"question_id": None}, "no column 'question_id', the id of task task"),
        ({"image": 3}, "image 3 is neither a path"),
        ({"image": "b.png"}, "b.png"),
        ({"answer": "maybe"}, "label 'maybe' is neither yes nor no in English"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict, message: str):
    rows_file(tmp_path, [ROW])
    row = {**ROW, "question_id": 8, **change}
    text = json.dumps(ROW) + "\n" + json.dumps(row)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    task = task_of(tmp_path, "from: pope\ndata: {en: {path: rows.jsonl}}")
    with pytest.raises(ConfigError) as error:
        task.questions("en", tmp_path)
    assert message in str(error.value)
    assert "rows.jsonl:2: " in str(error.value)


def test_a_missing_column_of_images_is_not_a_question_without_one(tmp_path: Path):
    row = {name: value for name, value in ROW.items() if name != "image"}
    rows_file(tmp_path, [row])
    task = task_of(tmp_path, "from: pope\ndata: {en: {path: rows.jsonl}}")
    with pytest.raises(ConfigError, match="no column 'image', the image of task task"):
        task.questions("en", tmp_path)
    rows_file(tmp_path, [{**row, "image": None}])
    (question,) = task.questions("en", tmp_path)
    assert question.images == ()


def test_duplicate_ids_are_named(tmp_path: Path):
    rows_file(tmp_path, [ROW, {**ROW, "question": "Other?"}])
    task = task_of(tmp_path, "from: pope\ndata: {en: {path: rows.jsonl}}")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: id '7' is that of .*rows\.jsonl:1"):
        task.questions("en", tmp_path)


def test_rows_of_one_language_and_image_names(tmp_path: Path):
    rows = [
        {"key": "a", "lang": "IT", "qa": [{"question": "Cosa?", "answer": "vino"}]},
        {"key": "b", "lang": "DE", "qa": []},
        {"key": "c", "lang": "IT", "qa": str([{"question": q, "answer": "sì"} for q in "ab"])},
    ]
    rows_file(tmp_path, rows)
    for row in rows:
        (tmp_path / f"{row['key']}.png").write_bytes(png())
    text = """
from: mtvqa
data: {it: {path: rows.jsonl, only: {lang: IT}, image_name: "{}.png"}}
columns: {id: key, image: key, pairs: qa}
"""
    questions = task_of(tmp_path, text).questions("it", tmp_path)
    assert [one.id for one in questions] == ["a/0", "c/0", "c/1"]
    assert questions[2].images == (str(tmp_path / "c.png"),)
    assert questions[1].group == questions[2].group
