"""Preparing a stage's data: the report, the table, and a run that then reads nothing anew."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from mllm_jax.commands.prepare import tables as prepare
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.index import build
from mllm_jax.data.loader import Loader
from tests.support import tiny


@pytest.fixture
def config(tmp_path):
    tiny.make_data(tmp_path / "data")
    return tiny.config(tmp_path / "data", tmp_path / "run")


def test_the_report_says_what_there_is(config, tmp_path, capsys):
    found = prepare.run(config, workers=1, json_file=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert {name: of["records"] for name, of in found.items()} == {"eu": 24, "en": 24, "text": 12}
    assert found["eu"]["images"] == 24 + 5, "every fifth record has two"
    assert 0 < found["eu"]["near_duplicates"] < 29
    assert list(found["text"]["tokens_per_word"]) == ["eu"]
    table = capsys.readouterr().out
    assert {name: of["unread"] for name, of in found.items()} == {name: {} for name in found}
    for cell in ("| stream |", "| eu ", "| tokens per word |", "| unread |"):
        assert cell in table


def test_the_premium_is_of_records_with_one_id_and_the_same_pictures(config, tmp_path, capsys):
    """eu and en are translations of each other, the records of text are there in Basque alone."""
    reports = prepare.run(config, workers=1)
    tokenizer = load_tokenizer(tmp_path / "data" / "tokenizer")
    texts = {}
    for language in ("eu", "en"):
        records = json.loads((tmp_path / "data" / f"{language}.json").read_text())
        texts[language] = [record["conversations"][1]["value"] for record in records]
    tokens = {
        code: sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in of)
        for code, of in texts.items()
    }
    premium = {"premium": tokens["eu"] / tokens["en"], "texts": 24}
    assert reports["eu"]["premium_over_english"] == {"eu": premium}
    assert reports["en"]["premium_over_english"] == reports["text"]["premium_over_english"] == {}
    for code, of in texts.items():
        characters, word_count = sum(map(len, of)), sum(len(text.split()) for text in of)
        assert reports[code]["tokens_per_character"] == {code: tokens[code] / characters}
        assert reports[code]["tokens_per_word"] == {code: tokens[code] / word_count}
    assert f"{premium['premium']:.2f}" in capsys.readouterr().out


def test_numbered_texts_are_not_taken_for_translations(config, tmp_path):
    """Record 1 of one file is not a translation of record 1 of another; a name says that it is."""
    data = tmp_path / "data"
    for names, texts in ((("0", "1"), 0), (("a-0", "a-1"), 2)):
        for language in ("eu", "en"):
            asked, answer = (
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b c"},
            )
            rows = [
                {"id": name, "messages": [asked, answer], "language": language} for name in names
            ]
            (data / f"{language}.json").write_text(json.dumps(rows))
        of = prepare.run(config, workers=1)["eu"]["premium_over_english"]
        assert of == ({"eu": {"premium": 1.0, "texts": texts}} if texts else {})


def test_afterwards_nothing_is_read_anew(config, tmp_path, monkeypatch):
    prepare.run(config, workers=1)
    monkeypatch.setattr(build, "read_chunk", None)
    tokenizer = load_tokenizer(tmp_path / "data" / "tokenizer")
    Loader(config.data, config.model, tokenizer, config.seed, share=[1]).batch(3)
    prepare.run(config, workers=1)


def test_an_image_that_cannot_be_decoded_is_named_before_the_run(config, tmp_path):
    """A header that is whole lets it pass where images are only looked at."""
    file = tmp_path / "data" / "images" / "7.png"
    file.write_bytes(file.read_bytes()[:-30])
    tokenizer = load_tokenizer(tmp_path / "data" / "tokenizer")
    Loader(config.data, config.model, tokenizer, config.seed)
    shutil.rmtree(tmp_path / "data" / "eu.json.index")
    with pytest.raises(ConfigError, match=r"eu\.json: \d of 24 records refused: .*7\.png"):
        prepare.run(config, workers=1)


def test_alike_are_images_with_the_same_hash():
    assert prepare.near_duplicates(np.array([3, 5, 3, 0, 3, 0, 7], np.uint64)) == 2
    assert prepare.near_duplicates(np.zeros(0, np.uint64)) == 0


def test_the_table_names_tasks(config, tmp_path, capsys):
    streams = dict(config.data.streams)
    streams["eu"] = dataclasses.replace(streams["eu"], task="ep")
    data = dataclasses.replace(config.data, streams=streams)
    report = prepare.run(dataclasses.replace(config, data=data), workers=1)
    assert report["eu"]["task"] == "ep" and "task" not in report["en"]
    head, _, row = (line.split("|") for line in capsys.readouterr().out.splitlines()[:3])
    assert head[-2].strip() == "task" and row[-2].strip() == "ep"


def test_the_table_names_the_most_frequent_unread_keys(config, tmp_path, capsys):
    path = tmp_path / "data" / "eu.json"
    records = json.loads(path.read_text())
    for n, record in enumerate(records):
        record |= {"source": "w"} | ({f"key{n}": 1} if n < 9 else {})
    path.write_text(json.dumps(records))
    found = prepare.run(config, workers=1)
    assert found["eu"]["unread"] == {"source": 24, **{f"key{n}": 1 for n in range(9)}}
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| eu "))
    named = ", ".join(["source (24)", *(f"key{n} (1)" for n in range(7)), "2 more"])
    assert line.rstrip(" |").endswith(named)
