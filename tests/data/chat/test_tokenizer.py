"""Tokenizer folders: opened offline, refused with a reason, and Llama-3's own expected ids."""

import json
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.records.parse import Turn


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(tokenizer, folder):
    opened = load_tokenizer(folder)
    text = "Zer ikusten da irudian? <|eot_id|><image>\n\n 🙂"
    assert opened(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (opened.bos_token, opened.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_files_missing_or_broken(name, folder):
    text = (folder / name).read_text()
    (folder / name).write_text(text[:-30])
    with pytest.raises(ConfigError, match=rf"{name}:\d+: not JSON"):
        load_tokenizer(folder)
    (folder / name).write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        load_tokenizer(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        load_tokenizer(folder)
    with pytest.raises(ConfigError, match="no such folder"):
        load_tokenizer(folder / "nowhere")


def test_a_tokenizer_file_that_holds_no_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: model is missing"):
        load_tokenizer(folder)


def test_template_of_a_folder(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ConfigError, match="no chat template"):
        load_template(folder, tokenizer)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    assert load_template(folder, tokenizer) == "old"
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama31"])
    assert load_template(folder, tokenizer) == TEMPLATES["llama31"]
    assert load_tokenizer(folder).chat_template == TEMPLATES["llama31"]


def changed(path: Path, *keys: str, value) -> None:
    """Sets the value in a JSON file."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(tree), encoding="utf-8")


BROKEN = [
    (("tokenizer.json", "model"), None, "model is missing"),
    (("tokenizer.json", "model", "merges"), [["a", "nowhere"]], "the tokenizer cannot be read: "),
    (("tokenizer.json", "model", "vocab"), {"a": -1}, "the tokenizer cannot be read: "),
    (("tokenizer.json", "model", "type"), "x", "the tokenizer cannot be read: "),
    (("tokenizer.json", "model", "continuing_subword_prefix"), "x", "lacks 'x'"),
    (("tokenizer.json", "added_tokens"), [7], "is not a token of tokenizer.json"),
    (("tokenizer.json", "pre_tokenizer"), 7, "the tokenizer cannot be read: "),
    (("tokenizer.json", "version"), None, "the tokenizer cannot be read: "),
    (("tokenizer.json", "padding"), {}, "the tokenizer cannot be read: "),
    (("tokenizer_config.json", "eos_token"), 7, "eos_token=7 is not a token"),
    (("tokenizer_config.json", "eos_token"), ["a"], r"eos_token=\['a'\] is not a token"),
    (("tokenizer_config.json", "bos_token"), {"content": 7}, "bos_token={'content': 7} is not a"),
    (
        ("tokenizer_config.json", "eos_token"),
        "nope",
        "eos_token='nope' is not a token of tokenizer",
    ),
    (("tokenizer_config.json", "added_tokens_decoder"), {"x": 7}, "the tokenizer cannot be read: "),
    (("tokenizer_config.json", "extra_special_tokens"), 7, "the tokenizer cannot be read: "),
]


@pytest.mark.parametrize(("keys", "value", "reason"), BROKEN)
def test_a_broken_tokenizer_is_one_line(keys, value, reason, folder):
    changed(folder / keys[0], *keys[1:], value=value)
    with pytest.raises(ConfigError, match=reason) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_template_that_is_not_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError):
        load_template(folder, load_tokenizer(folder))


def test_the_default_of_several_templates(folder):
    templates = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    changed(folder / "tokenizer_config.json", "chat_template", value=templates)
    assert load_template(folder, load_tokenizer(folder)) == "a"


# ------------------------------------------------------------------------------------- Llama 3


@pytest.mark.realdata
def test_llama3_ids_through_our_path(shared, llama3, tmp_path):
    source = shared / "realdata/tokenizer"
    llama3.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == 128009
    texts = (source / "ggml-vocab-llama-bpe.gguf.inp").read_text(encoding="utf-8")
    cases = texts.split("\n__ggml_vocab_test__\n")
    lines = (source / "ggml-vocab-llama-bpe.gguf.out").read_text().split("\n")
    assert len(cases) == len(lines[: len(cases)]) >= 40
    image = int(tokenizer.get_vocab()["<image>"])
    # contents alone, without the trimming of a format: one control token on either side
    bare = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    chat = Chat(tokenizer, bare, image, patches=1)
    tail = [128009, *tokenizer("a")["input_ids"], 128009]
    conversations = [(Turn("user", (case,)), Turn("assistant", ("a",))) for case in cases]
    for case, line, encoded in zip(cases, lines, chat.encode_batch(conversations), strict=False):
        assert encoded.tokens.tolist() == [128000, *map(int, line.split()), *tail], repr(case)
    # "\n\n" before an answer is one token, so a prompt is the beginning of what was trained
    llama31 = Chat(tokenizer, TEMPLATES["llama31"], image, patches=576)
    llama31.check_prompts()
    tokens = llama31.encode((Turn("user", ("Kaixo",)), Turn("assistant", ("Bai",)))).tokens
    assert tokens[:8].tolist() == [128000, 128006, 9125, 128007, 271, 38766, 1303, 33025]
    assert tokens[-6:-2].tolist() == [78191, 128007, 271, 33]
    assert tokens[-1] == 128009
