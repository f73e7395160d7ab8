"""Converts `tokenizer.model`, SentencePiece's file, for all that open a model's tokenizer.

Vicuna and the original LLaVA are published with this file and no `tokenizer.json`.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from mllm_jax.common.errors import ConfigError, one_line, quoted, require
from mllm_jax.common.json_file import read_json, write_json

MODEL, FAST, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
NEEDED = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # import -> package


def needs_conversion(folder: Path) -> bool:
    """Whether a folder has SentencePiece's file and no `tokenizer.json`."""
    return (folder / MODEL).is_file() and not (folder / FAST).is_file()


def convert(folder: Path, out: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` of a folder that has `tokenizer.model`.

    Args:
        folder: see `needs_conversion`; its `tokenizer_config.json` says whether it is `legacy`.
        out: an existing folder.

    Raises:
        ConfigError: the file is broken or of another kind of tokenizer, or what converts it is not
            installed.
    """
    path = folder / MODEL
    missing = [package for name, package in NEEDED.items() if not _is_there(name)]
    require(
        not missing,
        f"{path}: converting it to {FAST} needs {' and '.join(missing)}: "
        f"pip install {' '.join(missing)}",
    )
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = config.get("tokenizer_class", CLASSES[0])
    require(
        kind in CLASSES,
        f"{folder / CONFIG}: tokenizer_class={quoted(kind)}: of the classes with {MODEL} only "
        f"{CLASSES[0]} is converted; save the tokenizer with transformers, which writes {FAST}",
    )
    _check(path)
    from transformers import LlamaTokenizer

    try:
        tokenizer = LlamaTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be converted: {one_line(str(error), 200)}") from error
    tokenizer.backend_tokenizer.save(str(out / FAST))
    if config:
        if folder != out:
            shutil.copyfile(folder / CONFIG, out / CONFIG)
    else:
        names = ("bos_token", "eos_token", "unk_token")
        write_json(
            out / CONFIG,
            {"tokenizer_class": CLASSES[0]} | {name: getattr(tokenizer, name) for name in names},
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _check(path: Path) -> None:
    """transformers takes a file that SentencePiece does not read for one of another library."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a SentencePiece model, or a broken one") from error
