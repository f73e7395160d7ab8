"""The small tokenizer: Llama 3's control tokens, every byte, one token per known word; and the
chat formats over it.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_jax.checkpoints.hf.tokenizer import end_ids, special_ids
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.records.parse import Turn, user_turn
from mllm_jax.digits.records import Counts, make_data
from mllm_jax.digits.tokenizer import CONTROL, make_tokenizer

VOCAB = 704


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    texts = make_data(out / "data", Counts(pictures=600, text=600, heldout=1))
    make_tokenizer(texts, out / "files", TEMPLATES["llama3"], VOCAB)
    return out / "files"


def test_control_tokens_are_the_last_rows(folder: Path):
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == VOCAB
    assert tokenizer.convert_tokens_to_ids(list(CONTROL)) == list(
        range(VOCAB - len(CONTROL), VOCAB)
    )
    assert CONTROL[-1] == "<image>", "the configs give <image> the last row"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert tokenizer.convert_ids_to_tokens(list(end_ids(folder, special_ids(folder)))) == [
        "<|eot_id|>",
        "<|end_of_text|>",
    ]
    assert load_template(folder, tokenizer) == TEMPLATES["llama3"]


def test_words_of_the_task_are_one_token(folder: Path):
    tokenizer = load_tokenizer(folder)

    def split(text: str) -> list[str]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return list(tokenizer.convert_ids_to_tokens(ids))

    assert split("hirurogeita hamazazpi") == ["hirurogeita", "Ġhamazazpi"]
    assert split("seventy-seven") == ["seventy", "-seven"]
    assert split("\n\n") == ["ĊĊ"]
    assert split("57") == ["5", "7"], "figures are read one by one"


def test_there_is_one_beginning(folder: Path):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("bat").count(VOCAB - len(CONTROL)) == 1


@given(st.text(max_size=40))
def test_every_text_comes_back(folder: Path, text: str):
    tokenizer = load_tokenizer_once(folder)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids) == text


def load_tokenizer_once(folder: Path, kept: dict = {}):  # noqa: B006
    return kept.setdefault(folder, load_tokenizer(folder))


def test_a_conversation_is_short(folder: Path):
    chat = Chat(load_tokenizer(folder), TEMPLATES["llama3"], VOCAB - 1, 16)
    turns = [user_turn("Zein zenbaki da hau?", 1), Turn("assistant", ("hirurogeita hamazazpi",))]
    encoded = chat.encode(turns)
    assert (encoded.placeholders >= 0).sum() == 16
    assert encoded.weights.sum() == 3  # two words and the end of the turn
    assert len(encoded.tokens) <= 38
    prompt = chat.prompt(turns[:1]).tokens
    assert encoded.tokens[: len(prompt)].tolist() == prompt.tolist()
    chat.check_prompts()


def test_too_many_tokens_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="vocab=704: the texts give only"):
        make_tokenizer(["bat bi hiru"], tmp_path / "x", "", 704)
    assert not (tmp_path / "x").exists()


def test_files_are_plain_json(folder: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["extra_special_tokens"] == {"image_token": "<image>"}
