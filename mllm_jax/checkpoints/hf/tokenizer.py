"""Tokenizer files of a model: ids of tokens, the special ones, and `<image>` as a new one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import quoted, require
from mllm_jax.common.fields import REQUIRED, WHOLE, Fields, is_text
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.tokenizer_model import needs_conversion

IMAGE = "<image>"  # the image token's text
NAMES = ("bos_token", "eos_token", "pad_token")
# transformers 5 names its one class so; both versions open the other name
NEW_CLASS, CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"


def check_tokenizer(folder: Path) -> None:
    """Refuses a language model without `tokenizer.json`, or `tokenizer.model`."""
    hint = "save it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    there = (folder / "tokenizer.json").is_file() or needs_conversion(folder)
    require(there, f"{folder}: no tokenizer.json; {hint}")


def tokens(folder: Path) -> dict[str, int]:
    """Content -> id of every token of `tokenizer.json`, added ones included.

    Raises:
        ConfigError: a file that is not of this form.
    """
    get = Fields(str(folder / "tokenizer.json"), read_json(folder / "tokenizer.json"))
    added = {}
    for number, entry in enumerate(get.items("added_tokens", [])):
        token = Fields(f"{get.location} added_tokens[{number}]", entry)
        added[token.text("content", REQUIRED)] = token.whole("id", REQUIRED)
    return {**_vocab(get.section("model")), **added}


def _vocab(model: Fields) -> dict[str, int]:
    vocab = model.tree.get("vocab")
    if isinstance(vocab, list):  # unigram models store (piece, score) pairs
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in vocab):
            model.refuse("vocab", vocab, "pairs of piece and score")
        vocab = {pair[0]: i for i, pair in enumerate(vocab) if is_text(pair[0])}
    vocab = model.section("vocab").tree if not isinstance(vocab, dict) else vocab
    wrong = next(
        (x for x in vocab.items() if type(x[1]) is not int or not 0 <= x[1] <= WHOLE), None
    )
    if wrong is not None:
        model.refuse(f"vocab[{quoted(wrong[0], 40)}]", wrong[1], "the id of a token")
    return vocab


def special_ids(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """bos_token_id, eos_token_id (may be a list), pad_token_id, as transformers generates with.

    The first that says it: generation_config.json, `config`, its text_config, the tokenizer. None
    where none does.

    Args:
        folder: with tokenizer and perhaps generation_config.json.
        config: the config.json of a language model, or of one with images.

    Raises:
        ConfigError: an id that is not a whole number.
    """
    path = folder / "generation_config.json"
    sources = [_ids(Fields(str(path), read_json(path)))] if path.is_file() else []
    if config is not None:
        outer = Fields(str(folder / "config.json"), config)
        sources += [_ids(outer), _ids(outer.section("text_config", {}))]
    sources.append(_of_tokenizer(folder))
    keys = [f"{name}_id" for name in NAMES]
    return {key: next((s[key] for s in sources if s.get(key) is not None), None) for key in keys}


def end_ids(folder: Path, ids: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer.

    Args:
        folder: for the message.
        ids: of `special_ids`.

    Raises:
        ConfigError: there is none.
    """
    ends = ids["eos_token_id"]
    require(
        ends is not None,
        f"{folder}: no token ends an answer; name one in generation_config.json (eos_token_id)",
    )
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _ids(get: Fields) -> dict[str, Any]:
    ends = get.tree.get("eos_token_id")
    if isinstance(ends, list):
        if not ends or not all(type(end) is int and 0 <= end <= WHOLE for end in ends):
            get.refuse("eos_token_id", ends, "ids of tokens")
    else:
        ends = get.whole("eos_token_id", None)
    return {
        "bos_token_id": get.whole("bos_token_id", None),
        "eos_token_id": ends,
        "pad_token_id": get.whole("pad_token_id", None, -1),  # -1: none, in early Llama configs
    }


def _of_tokenizer(folder: Path) -> dict[str, int | None]:
    """Ids of the tokenizer's own special tokens, as transformers finds their texts.

    `special_tokens_map.json` counts, and first, where `tokenizer_config.json` lists no tokens.
    """
    path, old = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        return {}
    known, get = tokens(folder), Fields(str(path), read_json(path))
    texts = {name: token_text(get, name) for name in NAMES}
    if old.is_file():
        listed = Fields(str(old), read_json(old))
        first = {name: token_text(listed, name) for name in NAMES}
        if "added_tokens_decoder" not in get:
            texts |= {name: text for name, text in first.items() if text is not None}
    return {f"{name}_id": known.get(text) for name, text in texts.items() if text is not None}


def end_text(folder: Path) -> str | None:
    """The token that ends the texts of a tokenizer, where it names one."""
    token = _of_tokenizer(folder).get("eos_token_id")
    return next((text for text, id in tokens(folder).items() if id == token), None)


def token_text(get: Fields, name: str) -> str | None:
    """A special token's text: stored as text, or in an object with its content."""
    if isinstance(get.tree.get(name), dict):
        return get.section(name).text("content", REQUIRED)
    return get.text(name, None)


def portable(path: Path) -> None:
    """Makes a `tokenizer_config.json` one that transformers 4 and 5 both open.

    transformers 5 writes a class that 4 does not have, and a list where 4 expects an object.
    """
    config = read_json(path)
    get, changed = Fields(str(path), config), dict(config)
    if get.text("tokenizer_class", None) == NEW_CLASS:
        changed["tokenizer_class"] = CLASS
    if isinstance(config.get("extra_special_tokens"), list):
        extra = changed.pop("extra_special_tokens")
        listed = get.items("additional_special_tokens", [])
        changed["additional_special_tokens"] = [*listed, *(t for t in extra if t not in listed)]
    if changed != config:
        write_json(path, changed)


def add_image_token(folder: Path) -> tuple[int, int, bool]:
    """Makes sure that the tokenizer in `folder` knows `<image>` as a special token.

    Returns:
        (its id, number of ids the tokenizer had before, whether it was added).

    Raises:
        ConfigError: the text is an ordinary token.
    """
    path = folder / "tokenizer.json"
    tree, known = read_json(path), tokens(folder)
    require(len(known) > 0, f"{path}: has no tokens")
    count = max(known.values()) + 1
    if IMAGE in known:
        special = any(
            entry["content"] == IMAGE and entry.get("special") is True
            for entry in tree.get("added_tokens") or []
        )
        require(
            special,
            f"{path}: {IMAGE!r} is an ordinary token; make it special, or choose another tokenizer",
        )
        return known[IMAGE], count, False
    entry = {
        "id": count,
        "content": IMAGE,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tree["added_tokens"] = [*(tree.get("added_tokens") or []), entry]
    write_json(path, tree)
    _declare_token(folder / "tokenizer_config.json", entry)
    return count, count, True


def _declare_token(path: Path, entry: Mapping[str, Any]) -> None:
    """Repeats a new special token where `tokenizer_config.json` lists them.

    Both versions of transformers read `additional_special_tokens`.
    """
    config: dict[str, Any] = {"tokenizer_class": CLASS}
    if path.is_file():
        config = read_json(path)
    get = Fields(str(path), config)
    if "added_tokens_decoder" in get:
        token = {key: value for key, value in entry.items() if key != "id"}
        decoder = get.section("added_tokens_decoder").tree
        config["added_tokens_decoder"] = {**decoder, str(entry["id"]): token}
    name = "additional_special_tokens"
    config[name] = [*get.items(name, []), entry["content"]]
    write_json(path, config)
