"""Tokenizer files of a model folder, opened offline.

`tokenizer.json` is taken as it is: nothing rebuilds it from parts, no code of the folder runs.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mllm_jax.errors import ConfigError, require
from mllm_jax.json_file import read_json


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, run or Hugging Face folder, with its chat template if it has one.

    Raises:
        ConfigError: the folder or its tokenizer.json is missing, or it cannot be read.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"{folder}: no such folder; a tokenizer folder holds tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        require(
            (folder / name).is_file(),
            f"{folder}: {name} is missing; it is part of every tokenizer folder",
        )
        read_json(folder / name)
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: the tokenizer cannot be read: {' '.join(str(error).split())}"
        ) from error


def load_template(folder: str | Path, tokenizer: Any) -> str:
    """The folder's own chat template: chat_template.jinja, chat_template.json, or the tokenizer's.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(folder)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
        require(
            isinstance(template, str), f"{folder}/chat_template.json: no text under chat_template"
        )
        return str(template)
    require(
        isinstance(tokenizer.chat_template, str),
        f"{folder}: no chat template; expected chat_template.jinja",
    )
    return tokenizer.chat_template


def end_ids(tokenizer: Any, folder: str | Path | None = None) -> tuple[int, ...]:
    """Ids that end an answer: of the generation config, else the config, else the tokenizer's eos.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        folder: a model folder; generation_config.json and config.json are read, as transformers
            does.

    Raises:
        ConfigError: no id is found anywhere.
    """
    for name in ("generation_config.json", "config.json"):
        path = Path(folder or ".") / name
        if folder is None or not path.is_file():
            continue
        tree = read_json(path)
        for section in (tree, tree.get("text_config") or {}):
            ids = section.get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
    require(
        tokenizer.eos_token_id is not None,
        "the tokenizer has no end token and no generation_config.json names one",
    )
    return (tokenizer.eos_token_id,)
