"""Evaluation: answers as if asked alone, losses as of whole conversations, what is refused."""

import functools
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.evaluation.asking import ask, group_items
from mllm_jax.evaluation.items import make_items
from mllm_jax.evaluation.metrics import summary
from mllm_jax.evaluation.parts import questions_of
from mllm_jax.evaluation.questions import load_records
from mllm_jax.evaluation.results.write import scored
from mllm_jax.evaluation.runner import evaluate, free_task
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from tests.support import tiny

NEW = 6  # tokens of an answer at most


def record(key: str, language: str | None, images: list[str], *said: str) -> dict[str, Any]:
    """`said` are question and answer in turn; a question says where images stand."""
    names = ("human", "gpt")
    turns = [{"from": names[n % 2], "value": text} for n, text in enumerate(said)]
    made: dict[str, Any] = {"id": key, "conversations": turns}
    made |= {"image": images} if images else {}
    return made | ({"language": language} if language else {})


RECORDS = [
    record("long", "en", [], "red? " * 40, "green, of course"),
    record("one", "eu", ["0.png"], "<image>\nZein kolore?", "gorria"),
    record("two", "en", ["1.png", "2.png"], "<image>\n<image>\nWhich?", "red blue"),
    record("text", "eu", [], "gorria eta berdea?", "gorria berdea"),
    record(
        "turns",
        "eu",
        ["3.png", "4.png"],
        "<image>\nZer?",
        "zuria",
        "Eta <image>\nhau?",
        "bai horia",
    ),
    *(record(f"more{n}", "eu", [f"{n}.png"], "<image>\nZer da?", "beltza") for n in range(5, 9)),
]
BASQUE = ["one", "text", "turns/0", "turns/1", "more5", "more6", "more7", "more8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """tiny's folder with `heldout.json` in it; its images are in `images` beside the file."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.make_data(folder)
    (folder / "heldout.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(trained_run) -> Path:
    return trained_run


@pytest.fixture(scope="module")
def done(run, data, tmp_path_factory) -> Path:
    """OUT of an evaluation in batches of three."""
    out = tmp_path_factory.mktemp("evaluation") / "deep" / "out"
    evaluate(run, data / "heldout.json", out, max_new_tokens=NEW, rows=3)
    return out


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]


def scores(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_text("utf-8"))


@functools.partial(jax.jit, static_argnums=0)
def negative_log_likelihoods(model, params, inputs):
    """Of every token but the first, from the whole row's logits."""
    hidden = mllm.hidden(model, params, inputs)
    log_shares = jax.nn.log_softmax(mllm.logits(hidden, mllm.head(params)))[0, :-1]
    return -jnp.take_along_axis(log_shares, inputs.tokens[0, 1:, None], axis=1)[:, 0]


# ------------------------------------------------------------------------------------------ results


def test_every_answer_by_language_in_file_order(done, data):
    lines = answers(done)
    assert [line["id"] for line in lines] == ["long", "two", *BASQUE]
    assert [line["question"] for line in lines[:6]] == [
        ("red? " * 40).strip(),
        "Which?",
        "Zein kolore?",
        "gorria eta berdea?",
        "Zer?",
        "Eta \nhau?",
    ]
    assert [line["truth"] for line in lines[4:6]] == ["zuria", "bai horia"]
    folder = data / "images"
    assert [line["images"] for line in lines[1:6]] == [
        [str(folder / "1.png"), str(folder / "2.png")],
        [str(folder / "0.png")],
        [],
        [str(folder / "3.png")],  # the second picture is not yet shown
        [str(folder / "3.png"), str(folder / "4.png")],
    ]


def test_answers_equal_those_of_single_questions(done, run, data):
    """Asked alone, with the truth as history; whatever batch and padding the evaluation chose."""
    opened = Answerer(run)
    records = load_records("heldout", stream(data), ("eu", "en"))
    asked = [
        r.turns[:end]
        for language in ("en", "eu")
        for r in records
        for end, t in enumerate(r.turns)
        if t.role == "assistant" and r.language == language
    ]
    for turns, line in zip(asked, answers(done), strict=True):
        prompt = opened.prompt(turns, NEW)
        (tokens,) = opened.answer([prompt], [opened.pictures(line["images"])], NEW)
        assert line["answer_ids"] == tokens
        assert line["answer"] == opened.text(tokens).strip()
        assert line["finished"] == (tokens[-1] in opened.ends)


def stream(data: Path) -> StreamConfig:
    return StreamConfig(str(data / "heldout.json"), str(data / "images"))


def test_losses_equal_those_of_whole_conversations(done, run, data):
    """Each conversation read once; the losses of its turns add up to that of all of it."""
    opened, lines = Answerer(run), answers(done)
    for r in load_records("heldout", stream(data), ("eu", "en")):
        whole = opened.chat.encode(r.turns)
        batch = opened.batch([whole], [opened.pictures(r.images)], rows=1, slots=len(r.images))
        losses = negative_log_likelihoods(opened.model, opened.params, batch.inputs)
        own = [line for line in lines if line["id"].split("/")[0] == r.id]
        size = len(whole.tokens)
        total = float(np.sum(np.asarray(losses)[: size - 1] * whole.weights[1:]))
        assert -sum(line["log_likelihoods"][0] for line in own) == pytest.approx(total, rel=1e-5)
        assert sum(line["tokens"][0] for line in own) == whole.weights.sum()


def test_tokens_of_a_truth_are_its_content_and_its_end(done, run):
    opened = Answerer(run)
    for line in answers(done):
        content = opened.tokenizer(line["truth"], add_special_tokens=False)["input_ids"]
        assert line["tokens"] == [len(content) + 1]


def test_scores_are_sums_over_the_answers(done, data, run):
    lines, found = answers(done), scores(done)
    assert list(found["languages"]) == ["en", "eu"]  # as they appear in the file
    for language, own in found["languages"].items():
        mine = [line for line in lines if line["language"] == language]
        tokens = sum(line["tokens"][0] for line in mine)
        loss = -sum(line["log_likelihoods"][0] for line in mine) / tokens
        assert own["count"] == len(mine) and own["answer_tokens"] == tokens
        assert own["loss"] == pytest.approx(loss) and own["perplexity"] == pytest.approx(
            math.exp(loss)
        )
        assert own["exact_match"] == sum(line["correct"] for line in mine) / len(mine)
    settings = found["settings"]
    assert settings["model"] == str(run) and settings["decoding"]["max_new_tokens"] == NEW
    assert (
        settings["data_sha256"] == hashlib.sha256((data / "heldout.json").read_bytes()).hexdigest()
    )
    template = (run / "model" / "chat_template.jinja").read_bytes()
    assert settings["template_sha256"] == hashlib.sha256(template).hexdigest()
    assert settings["versions"]["jax"] == jax.__version__
    assert sorted(path.name for path in done.iterdir()) == [
        "answers.jsonl",
        "results.html",
        "results.json",
        "results.md",
        "results.svg",
        "results.tex",
        "scores.json",
        "scores.md",
        "settings.json",
    ]


def test_rows_change_nothing(done, run, data, tmp_path):
    """All at once; only the last bits of a sum may differ."""
    result = evaluate(run, data / "heldout.json", tmp_path / "out", max_new_tokens=NEW, rows=64)
    for one, other in zip(answers(done), answers(tmp_path / "out"), strict=True):
        assert one["answer_ids"] == other["answer_ids"]
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], rel=1e-5)
    assert result["languages"]["eu"]["loss"] == pytest.approx(
        scores(done)["languages"]["eu"]["loss"]
    )


def test_right_answers_are_counted(run, data, tmp_path, monkeypatch):
    """Answers put in the model's mouth: right but for case and full stop, or wrong."""

    def say(self, prompts, *_, **__) -> list[list[int]]:
        spoken = []
        for prompt in prompts:
            text = "GORRIA." if "kolore" in self.text(prompt.tokens.tolist()) else "horia"
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            spoken.append([*tokens, *self.ends[:1]])
        return spoken

    monkeypatch.setattr(Answerer, "answer", say)
    asked = [RECORDS[1], RECORDS[2], RECORDS[3], RECORDS[1] | {"id": "again"}]
    (data / "few.jsonl").write_text("\n".join(json.dumps(r) for r in asked), encoding="utf-8")
    result = evaluate(run, data / "few.jsonl", tmp_path / "out", rows=2)
    assert result["languages"]["eu"]["exact_match"] == 2 / 3
    assert result["languages"]["en"]["exact_match"] == 0
    assert result["languages"]["eu"]["unfinished"] == 0


# ------------------------------------------------------------------------------------- command line


def test_the_command(run, data, tmp_path, capsys):
    """By default into the run folder; the table is printed and written."""
    shutil.copytree(run, tmp_path / "run")
    (data / "some.json").write_text(json.dumps(RECORDS[1:4]), encoding="utf-8")
    words = ["evaluate", str(tmp_path / "run"), "--data", str(data / "some.json")]
    assert command_line.main(words) == 0
    out = tmp_path / "run" / "evaluation"
    table = (out / "scores.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["eu", "en"]
    assert command_line.main(words) == 2  # never written over
    assert "exists and is not empty" in capsys.readouterr().err
    assert (out / "scores.md").read_text() == table


def refused(run: Path, file: Path, out: Path | None, images: Path | None = None) -> str:
    """The message; nothing may be left behind."""
    before = sorted(file.parent.iterdir()) if file.parent.is_dir() else []
    with pytest.raises(ConfigError) as error:
        evaluate(run, file, out, images)
    message = str(error.value)
    assert "\n" not in message
    assert (sorted(file.parent.iterdir()) if file.parent.is_dir() else []) == before
    return message


def test_refuses_bad_data(run, data, tmp_path):
    file, out = tmp_path / "heldout.json", tmp_path / "out"
    images = data / "images"
    assert "no such file" in refused(run, file, out)
    file.write_text('[{"id": 1,\n "x": }]')
    assert f"{file}:2" in refused(run, file, out)
    file.write_text("[]")
    assert "no records" in refused(run, file, out)
    file.write_text(json.dumps([RECORDS[1], record("mute", None, [], "a", "b")]))
    message = refused(run, file, out, images)
    assert "'mute'" in message and "no language" in message
    file.write_text(json.dumps([record("gone", "eu", ["gone.png"], "<image>\na", "b")]))
    assert "gone.png" in refused(run, file, out)
    assert "no such folder" in refused(run, file, out, tmp_path / "nowhere")
    file.write_text(json.dumps([record("long", "eu", [], "gorria " * 600, "b")]))
    message = refused(run, file, out)
    assert "'long'" in message and "max_length=512" in message


def test_refuses_where_it_must_not_write(run, data, tmp_path):
    """A full folder keeps what it holds; a model folder is not written into unasked."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert "not empty" in refused(run, data / "heldout.json", out)
    assert (out / "mine").read_text() == "precious"
    folder = tmp_path / "folder"
    shutil.copytree(run / "model", folder)
    shutil.copytree(run / "checkpoints" / "4" / "params", folder / "params")
    assert "--out" in refused(folder, data / "heldout.json", None)


# ------------------------------------------------------------------------------------ single items

# huggingface.co/llava-hf/llava-1.5-7b-hf, chat_template.json: a space ends an answer
LLAVA15 = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def items_of(opened: Answerer, data: Path, *records: dict[str, Any]):
    """The free task of some records, and the items of all its languages."""
    path = data / "some.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    task = free_task(path, data / "images", NEW)
    asked = [one for of in questions_of(task).values() for one in of]
    return task, make_items(opened, task, asked)


def test_every_answer_pays_for_itself_alone(run, data):
    said = ("Zer?", "bat", "Eta?", "bi bi", "Hau?", "hiru", "Hori?", "lau lau lau")
    opened = Answerer(run)
    _, items = items_of(opened, data, record("four", "eu", [], *said))
    wholes = [item.options[0] for item in items]
    paid = [np.flatnonzero(whole.weights) for whole in wholes]
    together = np.flatnonzero(wholes[-1].weights > -1)
    (whole,) = load_records("some", StreamConfig(str(data / "some.json"), str(data)), ("eu",))
    trained = np.flatnonzero(opened.chat.encode(whole.turns).weights)
    assert np.concatenate(paid).tolist() == trained.tolist() and len(together) > len(trained)
    assert [item.question.id for item in items] == ["four/0", "four/1", "four/2", "four/3"]


def test_a_template_that_ends_no_answer_is_scored_by_answers_alone(run, data, capsys):
    opened = Answerer(run)
    image, patches = opened.config.image_token, opened.config.patches
    opened.chat = Chat(opened.tokenizer, LLAVA15, image, patches)
    task, items = items_of(opened, data, RECORDS[1], RECORDS[4])
    assert [item.options for item in items] == [(), (), ()]
    said = capsys.readouterr().out
    assert said.startswith("no loss is measured, only answers are: the chat template takes typed")
    prompt = items[2].prompt
    assert prompt is not None
    text = "".join(opened.tokenizer.convert_ids_to_tokens(prompt.tokens.tolist()))
    assert text.count("ASSISTANT:") == 2 and text.endswith("ASSISTANT:")
    groups = group_items(items, rows=2)
    lines = [line for of in ask(opened, task, items, groups) for line in of]
    assert [(line["log_likelihoods"], line["tokens"]) for line in lines] == [([], [])] * 3
    assert all(line["correct"] in (0, 1) and line["answer_ids"] for line in lines)
    assert summary.score(list(map(scored, lines)), ("eu",))["eu"]["loss"] is None


@pytest.mark.parametrize("language", ["\ud800", "e\nu", "", "x" * 1000, 7, None])
def test_what_cannot_be_the_name_of_a_language_is_named_by_its_record(language, run, data):
    path = data / "odd.json"
    odd = record("odd", None, [], "Zer?", "bat") | {"language": language}
    path.write_text(json.dumps([RECORDS[3], odd]), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"odd\.json: 1 of 2 records refused: record 'odd'"
    ) as error:
        evaluate(run, path, data / "out")
    assert "language" in str(error.value) and "data.languages" not in str(error.value)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()
