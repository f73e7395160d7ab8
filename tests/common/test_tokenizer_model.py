"""Folders with SentencePiece's `tokenizer.model` alone: converted, or refused in one line."""

import json

import pytest

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.common import tokenizer_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.tokenizer import load_tokenizer
from tests.support import vocabulary

TEXT = "Kaixo mundua 你</s>a"


@pytest.fixture
def folder(tmp_path):
    return vocabulary.write_slow(tmp_path / "vicuna")


def test_it_is_opened_like_any_other(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 32000)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])
    assert pieces[-2:] == ["</s>", "a"] and pieces[0] == "<s>"
    assert sorted(file.name for file in folder.iterdir()) == [
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    out = tmp_path / "out"
    out.mkdir()
    hf_files.copy_files(folder, out)
    assert load_tokenizer(out)(TEXT) == tokenizer(TEXT)
    assert hf_tokenizer.add_image_token(out) == (32000, 32000, True)
    assert load_tokenizer(out)("<image>")["input_ids"] == [1, 32000]


def test_a_legacy_one_puts_a_space_after_every_control_token(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(vocabulary.CONFIG | {"legacy": True}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])[-2:] == ["</s>", "▁a"]


def test_without_a_config(folder, tmp_path):
    (folder / "tokenizer_config.json").unlink()
    tokenizer_model.convert(folder, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        *("<s>", "</s>", "<unk>"),
    )


@pytest.mark.parametrize("content", [b"", b"\x00" * 99, b"{}", None])
def test_a_broken_file(content, folder):
    file = folder / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:100_000] if content is None else content)
    with pytest.raises(ConfigError, match=r"tokenizer\.model: not a SentencePiece model") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_another_class(folder):
    config = vocabulary.CONFIG | {"tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"tokenizer_class='T5Tokenizer'.*only LlamaTokenizer"):
        load_tokenizer(folder)


def test_what_has_to_be_installed(folder, monkeypatch):
    monkeypatch.setattr(tokenizer_model, "NEEDED", {"no.such.module": "one", "json": "other"})
    with pytest.raises(ConfigError, match=r"needs one: pip install one$"):
        load_tokenizer(folder)
