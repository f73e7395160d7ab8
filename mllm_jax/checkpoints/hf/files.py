"""Files beside the weights: tokenizer, chat template, generation config.

A model folder is complete in itself: it carries these files in the names that stock transformers
reads.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.hf.config import TOWERS
from mllm_jax.checkpoints.hf.processor import NEW_PROCESSOR, PROCESSOR, write_processor
from mllm_jax.checkpoints.hf.tokenizer import portable, special_ids, tokens
from mllm_jax.checkpoints.hf.weight_files import regular_file
from mllm_jax.common import tokenizer_model
from mllm_jax.common.fields import REQUIRED, Fields
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.model import ModelConfig

TEMPLATE = "chat_template.jinja"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "generation_config.json",
    NEW_PROCESSOR,
    PROCESSOR,
)


def copy_files(source: Path, out: Path) -> None:
    """Copies tokenizer, template, generation and processor files; transformers 4 and 5 open them.

    An old-style template becomes `chat_template.jinja`; ids that only the config of a Hugging Face
    folder has (Llama 3.1's three end tokens) go into `generation_config.json`.

    Where there is only `tokenizer.model`, it is converted to `tokenizer.json`.

    Raises:
        ConfigError: a file that links out of its folder, or a field of another type; a
            `tokenizer.model` that cannot be converted.
    """
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(regular_file(source, name), out / name)
    if tokenizer_model.needs_conversion(source):
        tokenizer_model.convert(source, out)
    if (out / "tokenizer_config.json").is_file():
        portable(out / "tokenizer_config.json")
    template = _old_template(source)
    if template is not None and not (out / TEMPLATE).is_file():
        (out / TEMPLATE).write_text(template, encoding="utf-8")
    if (source / "config.json").is_file():
        config = read_json(source / "config.json")
        if config.get("model_type") not in TOWERS:
            write_generation_config(out, special_ids(source, config))


def write_model_files(
    source: Path, out: Path, model: ModelConfig, ids: Mapping[str, Any], fit: str
) -> None:
    """Copies or writes everything beside the parameters of `model`.

    Args:
        source: the folder with the tokenizer, template and processor files.
        out: an existing folder.
        model: what the network in `out` is; its processor makes exactly P placeholders per image.
        ids: bos_token_id, eos_token_id, pad_token_id, where no generation config says them.
        fit: "crop" or "pad", how images are fitted.

    Raises:
        ConfigError: a model that reads images without its image token in `tokenizer.json`.
    """
    copy_files(source, out)
    if model.language is not None:
        write_generation_config(out, ids)
    if model.patches:
        write_processor(out, model, fit)


def _old_template(source: Path) -> str | None:
    """The template where it was before transformers 4.50: in one of two JSON files."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            continue
        get = Fields(str(source / name), read_json(source / name))
        if isinstance(get.tree.get("chat_template"), list):  # several named templates
            entries = [
                Fields(f"{get.location} chat_template", x) for x in get.items("chat_template", [])
            ]
            texts = {x.text("name", REQUIRED): x.text("template", REQUIRED) for x in entries}
            text = texts.get("default")
        else:
            text = get.text("chat_template", None)
        if text is not None:
            return text
    return None


def write_generation_config(folder: Path, ids: Mapping[str, Any]) -> None:
    """Writes `generation_config.json` with the special ids, unless the folder has one."""
    if not (folder / "generation_config.json").is_file():
        known = {name: value for name, value in ids.items() if value is not None}
        write_json(folder / "generation_config.json", known)


def add_end_tokens(folder: Path, texts: Iterable[str]) -> None:
    """Lets generation stop at these tokens too, where the tokenizer has them."""
    known, ids = tokens(folder), special_ids(folder)
    ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
    ends = list(dict.fromkeys([*ends, *(known[text] for text in texts if text in known)]))
    ids["eos_token_id"] = [end for end in ends if end is not None]
    path = folder / "generation_config.json"
    before = read_json(path) if path.is_file() else {}
    write_json(path, before | {key: value for key, value in ids.items() if value is not None})
