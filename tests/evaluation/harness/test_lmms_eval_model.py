"""lmms-eval itself with our model: found by its entry point, scored as `evaluate` scores."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError, RunError
from mllm_jax.data.records.parse import user_turn
from mllm_jax.evaluation.harness import documents, task_files
from mllm_jax.evaluation.tasks.registry import load_task
from tests.support import harness_data

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of other people's packages
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None,
        reason="needs lmms-eval: pip install '.[lmms-eval]' (docs/harnesses.md)",
    ),
]
TASK = "mllm_jax_pope_it"
CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function tiny.visuals
doc_to_text: question
doc_to_choice: options
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROUNDS = """
task: tiny_rounds
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until_multi_round
doc_to_visual: !function tiny.visuals
doc_to_text: !function tiny.rounds
doc_to_target: question
process_results: !function tiny.count
generation_kwargs: {max_new_tokens: 5, do_sample: false}
lmms_eval_specific_kwargs: {default: {}}
metric_list: [{metric: rounds, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
from PIL import Image

def visuals(doc):
    return [Image.open(name).convert("RGB") for name in doc["images"]]

def rounds(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None,
           previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx > doc["answer"] + 1:
        return None, None, True, previous_output, previous_round_info
    text = doc["question"] + " " + previous_output[-1].strip()
    return visuals(doc), text, False, previous_output, (previous_round_info or 0) + 1

def count(doc, results):
    texts = results[0] if isinstance(results[0], (list, tuple)) else results
    return {"rounds": len(texts)}
"""
QUESTIONS = ["Zenbat itsasontzi daude portuan?", "Zein kolore?", "Que hai na mesa?"]
OPTIONS = ["Hiru txiki eta bat handia", "urdina", "Un prato de peixe"]


@pytest.fixture(scope="module")
def chat(oracle) -> Any:
    from lmms_eval.models import get_model  # pyright: ignore[reportMissingImports]

    return get_model("mllm_jax")(str(oracle / "llava_mlp"), batch_size=8)


@pytest.fixture(scope="module")
def simple(oracle) -> Any:
    from lmms_eval.models import get_model  # pyright: ignore[reportMissingImports]

    return get_model("mllm_jax", force_simple=True)(str(oracle / "llava_mlp"), batch_size=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Two tasks with one, two and no images."""
    folder = tmp_path_factory.mktemp("tiny_tasks")
    files = [str(file) for file in harness_data.shades(folder, 3)]
    images = [files[:1], files[1:], []]
    rows = [
        {"question": question, "images": images[n], "options": OPTIONS, "answer": n}
        for n, question in enumerate(QUESTIONS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.py").write_text(FUNCTIONS)
    (folder / "choices.yaml").write_text(CHOICES)
    (folder / "rounds.yaml").write_text(ROUNDS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory) -> Any:
    """Data sets are cached here, and nothing is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setenv("HF_DATASETS_CACHE", cache)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def evaluated(model: Any, task: str, folder: Path) -> dict[str, Any]:
    from lmms_eval import evaluator  # pyright: ignore[reportMissingImports]
    from lmms_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name="mllm_jax")
    return evaluator.simple_evaluate(
        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, batch_size=8
    )


@pytest.mark.parametrize("kind", ["chat", "simple"])
def test_a_task_of_ours_scores_as_evaluate_does(kind, request, oracle, tmp_path, monkeypatch):
    """Answers and numbers by both classes, on eight devices, are those of the command on one."""
    model = request.getfixturevalue(kind)
    root = harness_data.make(tmp_path / "data")
    monkeypatch.setenv(documents.VARIABLE, str(root))
    documents.asked.cache_clear()
    found = evaluated(model, TASK, task_files.FOLDER / "lmms_eval")
    expected, lines = harness_data.evaluated(
        oracle / "llava_mlp", "pope_it", root, tmp_path / "out"
    )
    samples = sorted(found["samples"][TASK], key=lambda one: one["doc_id"])
    texts = [sample["filtered_resps"][0].strip() for sample in samples]
    assert texts == [line["answer"] for line in lines]
    assert len(set(texts)) > 1
    results = found["results"][TASK]
    for name in task_files.metrics(load_task("pope")):
        assert results[f"{name},none"] == pytest.approx(expected[name])


def test_losses_are_those_of_transformers(simple, tiny, oracle):
    """The mean LOSS of the option's tokens: the lowest is lmms-eval's choice."""
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    found = evaluated(simple, "tiny_choices", tiny)
    folder = oracle / "llava_mlp"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    samples = sorted(found["samples"]["tiny_choices"], key=lambda one: one["doc_id"])
    right = 0
    for number, sample in enumerate(samples):
        images = [Image.open(name) for name in sample["doc"]["images"]]
        content = [{"type": "image"}] * len(images)
        content += [{"type": "text", "text": sample["doc"]["question"]}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        losses = []
        for option in OPTIONS:
            inputs = processor(text=prompt + option, images=images or None, return_tensors="pt")
            begin = inputs["input_ids"].shape[1] - len(
                processor.tokenizer(option, add_special_tokens=False)["input_ids"]
            )
            labels = inputs["input_ids"].clone()
            labels[:, :begin] = -100
            with torch.no_grad():
                losses.append(float(model(**inputs, labels=labels).loss))
        ours = [one[0] for one in sample["filtered_resps"]]
        assert ours == pytest.approx(losses, abs=1e-4)
        right += int(np.argmin(losses)) == number
    assert found["results"]["tiny_choices"]["acc,none"] == pytest.approx(right / len(samples))


@pytest.mark.parametrize("kind", ["chat", "simple"])
def test_rounds_until_the_task_ends_them(kind, request, tiny):
    """1, 2 and 3 rounds; the second asks with the first answer in its prompt."""
    model = request.getfixturevalue(kind)
    found = evaluated(model, "tiny_rounds", tiny)
    samples = sorted(found["samples"]["tiny_rounds"], key=lambda one: one["doc_id"])
    rounds = [sample["resps"][0][0] for sample in samples]
    assert [len(texts) for texts in rounds] == [2, 3, 4]
    opened = model._asker.opened
    for sample, texts in zip(samples, rounds, strict=True):
        question, images = sample["doc"]["question"], sample["doc"]["images"]
        for number, text in enumerate(texts[:2]):
            asked = question if number == 0 else f"{question} {texts[0].strip()}"
            prompt = opened.prompt([user_turn(asked, len(images))], 5, images=images)
            (ids,) = opened.answer([prompt], [opened.pictures(images)], 5)
            assert text.strip() == opened.text(ids).strip()


def test_a_task_that_never_ends_is_an_error(chat, monkeypatch):
    class Request:
        args = ("", lambda doc, **_: said, {"max_new_tokens": 1}, 0, "endless", "test")

    said: Any = [{"role": "user", "content": "Zer?"}]
    monkeypatch.setattr(chat, "task_dict", {"endless": {"test": [{}]}})
    with pytest.raises(RunError, match=r"task endless, 0: .* does not say whether a round follows"):
        chat.generate_until_multi_round([Request()])


def test_documents_that_are_refused(chat, monkeypatch):
    class Request:
        def __init__(self, arguments: dict[str, Any], message: dict[str, Any]):
            self.args = ("", lambda doc: [message], arguments, 0, "tiny", "test")

    monkeypatch.setattr(chat, "task_dict", {"tiny": {"test": [{}]}})
    user = {"role": "user", "content": "Zer?"}
    with pytest.raises(ConfigError, match="task tiny: generation argument num_beams=3 is not"):
        chat.generate_until([Request({"num_beams": 3}, user)])
    video = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
    with pytest.raises(ConfigError, match="task tiny, 0: 'video' cannot be read"):
        chat.generate_until([Request({}, video)])
