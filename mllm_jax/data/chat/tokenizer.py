"""Opens the tokenizer files of a model folder, offline.

`tokenizer.json` is taken as it is: nothing rebuilds it from parts, no code of the folder runs. A
folder that has only `tokenizer.model` is converted.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerFast

from mllm_jax.common import tokenizer_model
from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.common.json_file import read_json

# the fields of tokenizer_config.json that name one token
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_TOKENS += ("mask_token",)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, run or Hugging Face folder, with its chat template if it has one.

    Raises:
        ConfigError: the folder or its tokenizer.json is missing, or it cannot be read.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"{folder}: no such folder; a tokenizer folder holds tokenizer.json")
    if tokenizer_model.needs_conversion(folder):
        with TemporaryDirectory() as converted:
            tokenizer_model.convert(folder, Path(converted))
            return load_tokenizer(converted)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        require(
            (folder / name).is_file(),
            f"{folder}: {name} is missing; it is part of every tokenizer folder",
        )
    _check_model(folder / "tokenizer.json")
    _check_config(folder)
    with _Opening(folder):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        tokenizer("a 1\n")  # some parts are looked at no earlier
        tokenizer.decode(list(range(min(len(tokenizer), 16))))
    return tokenizer


class _Opening:
    """Around code that reads a tokenizer: whatever it meets in the files is one line."""

    # what transformers raises where a value is of another type than it takes for granted
    KNOWN = (
        *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
        *(ArithmeticError, RuntimeError, AssertionError),
    )

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """The library in Rust raises Exception itself, and panics in a class that it hides."""
        if kind is None or error is None:
            return
        if issubclass(kind, self.KNOWN) or kind is Exception or kind.__name__ == "PanicException":
            raise _unreadable(self._folder, error) from error


def _unreadable(folder: Path, error: BaseException) -> ConfigError:
    reason = one_line(str(error), 200) or type(error).__name__
    return ConfigError(f"{folder}: the tokenizer cannot be read: {reason}")


def _check_model(path: Path) -> None:
    """What ends the process in the library instead of raising."""
    model = read_json(path).get("model")
    if not isinstance(model, dict):
        raise ConfigError(f"{path}: model is missing, or not an object")
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return
    for merge in merges:  # it cuts as many bytes off the second piece as the prefix has
        pieces = merge.split(" ") if isinstance(merge, str) else merge
        whole = isinstance(pieces, list) and len(pieces) == 2 and isinstance(pieces[1], str)
        if not (whole and pieces[1].startswith(prefix)):
            raise ConfigError(
                f"{path}: the second piece of merge {quoted(merge)} lacks {quoted(prefix)}"
            )


def _check_config(folder: Path) -> None:
    """The tokens that tokenizer_config.json names.

    transformers gives one that is not there a new id, for which a model has no embedding.
    """
    path = folder / "tokenizer_config.json"
    tree = read_json(path)
    known: set[str] | None = None
    for name in _TOKENS:
        value = tree.get(name)
        if value is None:
            continue
        text = value.get("content") if isinstance(value, dict) else value
        is_text = isinstance(text, str) and text != ""
        require(is_text, f"{path}: {name}={quoted(value)} is not a token: expected its text")
        if name in ("bos_token", "eos_token"):
            known = (
                _known_tokens(read_json(folder / "tokenizer.json"), tree)
                if known is None
                else known
            )
            require(
                text in known, f"{path}: {name}={quoted(text)} is not a token of tokenizer.json"
            )


def _known_tokens(tree: dict[str, Any], config: dict[str, Any]) -> set[str]:
    """Texts of all tokens of a tokenizer.json and of a config that adds some."""
    vocab = tree["model"].get("vocab")
    known = set(vocab) if isinstance(vocab, dict) else set()
    if isinstance(vocab, list):  # Unigram: [piece, score]
        known = {p[0] for p in vocab if isinstance(p, list) and p and isinstance(p[0], str)}
    added, more = tree.get("added_tokens"), config.get("added_tokens_decoder")
    tokens = [*(added if isinstance(added, list) else [])]
    tokens += more.values() if isinstance(more, dict) else []
    texts = (token.get("content") for token in tokens if isinstance(token, dict))
    return known | {text for text in texts if isinstance(text, str)}


def load_template(folder: str | Path, tokenizer: Any) -> str:
    """The folder's own chat template: chat_template.jinja, chat_template.json, or the tokenizer's.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(folder)
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{jinja}: not UTF-8 text ({error.reason})") from error
    if (folder / "chat_template.json").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
        require(
            isinstance(template, str), f"{folder}/chat_template.json: no text under chat_template"
        )
        return str(template)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name; transformers takes this one too
        template = template.get("default")
    if not isinstance(template, str):
        raise ConfigError(f"{folder}: no chat template; expected chat_template.jinja")
    return template
