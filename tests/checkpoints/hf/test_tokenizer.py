"""Tokenizer files: ids of special tokens, `<image>` as a new one, files for both transformers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.common.errors import ConfigError


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def test_special_ids_prefer_the_generation_config(tmp_path: Path) -> None:
    put(
        tmp_path,
        "tokenizer.json",
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<eos>", "id": 1}]},
    )
    put(tmp_path, "tokenizer_config.json", {"eos_token": {"content": "<eos>"}, "bos_token": "a"})
    assert hf_tokenizer.special_ids(tmp_path) == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    put(tmp_path, "generation_config.json", {"eos_token_id": [1, 7]})
    assert hf_tokenizer.special_ids(tmp_path, {"eos_token_id": 9, "pad_token_id": 3}) == {
        "bos_token_id": 0,
        "eos_token_id": [1, 7],
        "pad_token_id": 3,
    }


def test_end_ids_are_those_that_transformers_generates_with(tmp_path: Path) -> None:
    """Of generation_config.json, else config.json, else its text_config, else the tokenizer."""

    def ends(config: dict[str, Any] | None) -> tuple[int, ...]:
        return hf_tokenizer.end_ids(tmp_path, hf_tokenizer.special_ids(tmp_path, config))

    def of_transformers(config: dict[str, Any]) -> Any:
        """What it takes where there is no generation_config.json."""
        return GenerationConfig.from_model_config(copy.deepcopy(config)).eos_token_id

    put(tmp_path, "tokenizer.json", TOKENIZER)
    put(tmp_path, "tokenizer_config.json", {})
    with pytest.raises(ConfigError, match="no token ends an answer; name one in generation_conf"):
        ends({"text_config": {}})
    put(tmp_path, "tokenizer_config.json", {"eos_token": "<eos>"})
    assert ends(None) == ends({"eos_token_id": None}) == (1,)
    inner: dict[str, Any] = {"text_config": {"eos_token_id": [5, 6]}}
    assert ends(inner) == (5, 6) == tuple(of_transformers(inner))
    assert (
        ends(inner | {"eos_token_id": 7}) == (7,) == (of_transformers(inner | {"eos_token_id": 7}),)
    )
    put(tmp_path, "generation_config.json", {"bos_token_id": 3})
    assert ends(inner | {"eos_token_id": 7}) == (7,)
    put(tmp_path, "generation_config.json", {"eos_token_id": [8, 9]})
    assert ends(inner | {"eos_token_id": 7}) == (8, 9)


def test_early_llamas_have_no_padding_token(tmp_path: Path) -> None:
    assert hf_tokenizer.special_ids(tmp_path, {"pad_token_id": -1})["pad_token_id"] == -1


def test_a_new_token_comes_behind_the_last_id(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {"a": 0, "b": 5}}})
    assert hf_tokenizer.add_image_token(tmp_path) == (6, 6, True)


def test_a_token_of_both_lists_stands_once(tmp_path: Path) -> None:
    put(
        tmp_path,
        "tokenizer_config.json",
        {"extra_special_tokens": ["<a>", "<b>"], "additional_special_tokens": ["<a>"]},
    )
    hf_tokenizer.portable(tmp_path / "tokenizer_config.json")
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written == {"additional_special_tokens": ["<a>", "<b>"]}


def test_an_ordinary_image_token_is_refused(tmp_path: Path) -> None:
    added = [{"content": "<image>", "id": 1, "special": False}]
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": added})
    with pytest.raises(ConfigError, match="is an ordinary token"):
        hf_tokenizer.add_image_token(tmp_path)
    put(tmp_path, "tokenizer.json", {"model": {"vocab": {"a": 0, "<image>": 1}}})
    with pytest.raises(ConfigError, match="is an ordinary token"):
        hf_tokenizer.add_image_token(tmp_path)


TOKENIZER = {
    "model": {"vocab": {"a": 0, "<eos>": 1}},
    "added_tokens": [{"content": "<b>", "id": 2}],
}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"model": {"vocab": None}}, "model: vocab is missing"),
        ({"model": {"vocab": 3}}, "model: vocab=3; expected an object"),
        ({"model": {"vocab": {"a": "0"}}}, r"model: vocab\['a'\]='0'; expected the id of a token"),
        ({"model": {"vocab": {"a": -1}}}, r"model: vocab\['a'\]=-1"),
        ({"model": {"vocab": [["a"]]}}, "model: vocab=.*; expected pairs"),
        ({"added_tokens": {}}, "added_tokens={}; expected a list"),
        ({"added_tokens": [3]}, r"added_tokens\[0\]: expected an object"),
        ({"added_tokens": [{"id": 3}]}, r"added_tokens\[0\]: content is missing"),
        ({"added_tokens": [{"id": "3", "content": "x"}]}, r"added_tokens\[0\]: id='3'"),
    ],
)
def test_odd_tokenizers(tmp_path: Path, tree: dict[str, Any], message: str) -> None:
    put(tmp_path, "tokenizer.json", TOKENIZER | tree)
    with pytest.raises(ConfigError, match=rf"tokenizer\.json:? {message}"):
        hf_tokenizer.tokens(tmp_path)


def test_tokens_of_every_kind(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", TOKENIZER)
    assert hf_tokenizer.tokens(tmp_path) == {"a": 0, "<eos>": 1, "<b>": 2}
    put(tmp_path, "tokenizer.json", {"model": {"vocab": [["a", -1.5], ["b", 0]]}})
    assert hf_tokenizer.tokens(tmp_path) == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("generation_config.json", {"eos_token_id": "401"}, "eos_token_id='401'"),
        ("generation_config.json", {"eos_token_id": []}, r"eos_token_id=\[\]; expected ids"),
        ("generation_config.json", {"eos_token_id": [1, "2"]}, "eos_token_id=.*; expected ids"),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id=True"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id='x'"),
        ("generation_config.json", {"eos_token_id": 1.5}, r"eos_token_id=1\.5"),
        ("generation_config.json", {"eos_token_id": 2**31}, "eos_token_id=2147483648"),
        ("generation_config.json", {"eos_token_id": {"a": 1}}, "eos_token_id={'a': 1}"),
        ("generation_config.json", {"eos_token_id": [[1]]}, r"eos_token_id=\[\[1\]\]"),
        ("generation_config.json", {"bos_token_id": [1]}, r"bos_token_id=\[1\]"),
        ("generation_config.json", {"pad_token_id": -2}, "pad_token_id=-2"),
        ("tokenizer_config.json", {"pad_token": 5}, "pad_token=5; expected text"),
        ("tokenizer_config.json", {"pad_token": ["x"]}, "pad_token=.*; expected text"),
        ("tokenizer_config.json", {"eos_token": {"x": 1}}, "eos_token: content is missing"),
        ("special_tokens_map.json", {"eos_token": 3}, "eos_token=3; expected text"),
    ],
)
def test_odd_special_tokens(tmp_path: Path, name: str, value: Any, message: str) -> None:
    put(tmp_path, "tokenizer.json", TOKENIZER)
    put(tmp_path, "tokenizer_config.json", {})
    put(tmp_path, name, value)
    with pytest.raises(ConfigError, match=rf"{name}:? {message}"):
        hf_tokenizer.special_ids(tmp_path)


def test_special_tokens_map_counts_as_in_transformers(tmp_path: Path) -> None:
    """It comes first, unless the tokenizer's config lists its tokens itself."""
    put(tmp_path, "tokenizer.json", TOKENIZER)
    put(tmp_path, "tokenizer_config.json", {"eos_token": "a"})
    put(tmp_path, "special_tokens_map.json", {"eos_token": {"content": "<eos>"}})
    assert hf_tokenizer.special_ids(tmp_path)["eos_token_id"] == 1
    put(tmp_path, "tokenizer_config.json", {"eos_token": "a", "added_tokens_decoder": {"0": {}}})
    assert hf_tokenizer.special_ids(tmp_path)["eos_token_id"] == 0


def test_tokenizer_config_for_both_transformers(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    put(
        tmp_path, path.name, {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["a"]}
    )
    hf_tokenizer.portable(path)
    assert json.loads(path.read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["a"],
    }
    named = {"extra_special_tokens": {"image_token": "<image>"}}  # an object opens in both
    put(tmp_path, path.name, named)
    hf_tokenizer.portable(path)
    assert json.loads(path.read_text()) == named


def test_a_new_image_token_is_declared_for_both_transformers(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", TOKENIZER)
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<b>"}}})
    assert hf_tokenizer.add_image_token(tmp_path) == (3, 3, True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<image>"]
    assert config["added_tokens_decoder"]["3"]["special"] is True
    assert "extra_special_tokens" not in config
    assert hf_tokenizer.add_image_token(tmp_path) == (3, 4, False)
