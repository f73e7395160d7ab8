"""Our tasks as the harnesses see them: the same questions, prompts and numbers as `evaluate`."""

import numpy as np
import pytest
import yaml

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.answers import make_line
from mllm_jax.evaluation.harness import documents, task_files
from mllm_jax.evaluation.harness.messages import from_messages
from mllm_jax.evaluation.tasks.registry import load_task
from mllm_jax.evaluation.tasks.task import Answer
from tests.support import harness_data
from tests.support.task_data import rows_file

OPTIONS = {"choice_a": "gatto", "choice_b": "cane", "choice_c": "tavolo", "choice_d": "albero"}
ROW = {
    "id": "7", "image": "a.png", "question": "Che cosa c'è?", "answer": "no", "choices": ["a", "b"],
    "correct_choice_idx": 1, "index": "7", "question_id": "7", "direct_answers": ["bai"] * 10,
    "answers": ["bai"] * 10, "transcription": "Kaixo", "imageId": "a.png", "hint": None,
    "data_type": "image", "img_id": "a.png", "sent": "Che cosa?", "category": "",
}  # fmt: skip
ANSWERS = ("sì", "No.")


class Named(yaml.SafeLoader):
    """Reads the harnesses' YAML: a function is its name."""


Named.add_constructor("!function", lambda _, node: str(node.value))


@pytest.fixture(autouse=True)
def fresh():
    documents.asked.cache_clear()
    yield
    documents.asked.cache_clear()


def read(name: str) -> dict:
    return yaml.load((task_files.FOLDER / name).read_text(encoding="utf-8"), Named)


def test_the_shipped_files_are_those_that_are_written():
    expected = dict(task_files.files())
    stored = {path: path.read_text(encoding="utf-8") for path in task_files.FOLDER.glob("*/*")}
    assert stored == expected, "run: python -m mllm_jax.evaluation.harness.task_files"


def test_every_function_that_the_files_name_exists():
    for path in task_files.FOLDER.glob("*/*"):
        for word in path.read_text(encoding="utf-8").replace(",", "").split():
            if word.startswith(task_files.FUNCTIONS):
                assert callable(getattr(documents, word.rpartition(".")[2]))


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in task_files.FOLDER.glob("lmms_eval/*.yaml"))
)
def test_prompts_and_metrics_are_those_of_evaluate(name, tmp_path, monkeypatch):
    """Of every shipped task, on two questions of its own columns."""
    config = read(f"lmms_eval/{name}.yaml")
    task, language = name.rsplit("_", 1)
    ours = load_task(task)
    answer = {"ocr": "x", "seedbench": "B", "mmstar": "B"}.get(task, "no")
    rows = [{**ROW, **OPTIONS, "answer": answer, "question_id": n, "id": n} for n in range(2)]
    rows = [{**row, "index": str(row["id"])} for row in rows]
    file = rows_file(tmp_path, rows)
    ours = ours.with_data(language, file)
    monkeypatch.setattr(documents, "load_task", lambda _: ours)
    questions = ours.questions(language, tmp_path)
    lines = []
    items: dict[str, list] = {}
    for number, document in enumerate(documents.rows(task, language)):
        turns, images = from_messages(documents.messages(document), "a")
        assert tuple(turns) == questions[number].turns and len(images) == 1
        assert documents.text(document).strip() == questions[number].text
        (visual,) = documents.visuals(document)
        assert np.asarray(visual).shape == (4, 4, 3)
        text = ANSWERS[number]
        judged = ours.judge(questions[number], Answer(text))
        lines.append(make_line(ours.name, questions[number], Answer(text), judged))
        for metric, item in documents.results(document, [f" {text} "]).items():
            items.setdefault(metric, []).append(item)
    stated = {one["metric"]: one["higher_is_better"] for one in config["metric_list"]}
    expected = ours.metrics(lines)
    assert set(stated) == set(items) == set(expected)
    assert {metric: documents.aggregated(items[metric]) for metric in stated} == expected
    assert config["generation_kwargs"]["max_new_tokens"] == ours.max_new_tokens
    assert config["generation_kwargs"]["until"] == []  # nothing else ends an answer of `evaluate`


def test_options_come_without_the_space_that_lm_eval_adds(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="comes with lm-eval: pip install '.[lm-eval]'")
    monkeypatch.setenv(documents.VARIABLE, str(harness_data.make(tmp_path)))
    config = read("lm_eval/xstorycloze_eu.yaml")
    found = documents.data_set(**config["metadata"])[documents.SPLIT]
    _, questions = documents.asked("xstorycloze", "eu")
    delimiter = config["target_delimiter"]
    for document, question in zip(found, questions, strict=True):
        assert tuple(delimiter + one for one in document["options"]) == question.options
        assert document["answer"] == question.truth
        assert document["question"] == question.text


def test_data_that_are_not_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv(documents.VARIABLE, str(tmp_path))
    message = "task pope: swap-uniba/POPE_IT is not in .*mllm-jax prepare --task pope"
    with pytest.raises(ConfigError, match=message):
        documents.rows("pope", "it")
