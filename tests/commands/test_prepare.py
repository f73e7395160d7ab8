"""Preparing a stage's data: the report, the table, and a run that then reads nothing anew."""

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
    for cell in ("| stream |", "| eu ", "tokens per word, en", "| unread |"):
        assert cell in table


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
