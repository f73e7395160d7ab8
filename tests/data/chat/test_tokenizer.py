"""Tokenizer folders: opened offline, refused with a reason, and Llama-3's own expected ids."""

import base64
import itertools
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.records.parse import Turn

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that byte-pair encoding joins last to make each token, by rank."""
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            best = min(range(len(found)), key=found.__getitem__)
            if found[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((rank, parts[0], parts[1]))
    return [(a, b) for _, a, b in sorted(merges)]


def convert_tiktoken(path: Path) -> PreTrainedTokenizerFast:
    """Llama-3's rank file as a tokenizers BPE, special tokens behind it as Meta numbers them."""
    lines = path.read_bytes().splitlines()
    ranks = {base64.b64decode(w): int(r) for w, r in (line.split() for line in lines)}
    shown = bytes_to_text()

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges = [(text(a), text(b)) for a, b in merges_of(ranks)]
    vocab = {text(token): rank for token, rank in ranks.items()}
    bpe = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    special += [f"<|reserved_special_token_{n}|>" for n in range(4)]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>"]
    special += ["<|eot_id|>", "<image>"]
    bpe.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def bytes_to_text() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@pytest.mark.realdata
def test_llama3_ids_through_our_path(shared, tmp_path):
    source = shared / "realdata/tokenizer"
    convert_tiktoken(source / "tokenizer_llama3.tiktoken").save_pretrained(tmp_path)
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
