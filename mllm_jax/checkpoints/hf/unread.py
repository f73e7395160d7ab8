"""Fields of a `config.json` that nothing here reads: carried through training to the export.

transformers keeps fields that it does not know and writes them again; so do we. A model folder has
them in `hf_config.json`, by section:

    {"outer": {...}, "text_config": {"attention_dropout": 0.1}, "vision_config": {...}}
"""

import json
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.hf.config import model_type, tower_section
from mllm_jax.checkpoints.hf.grids import PINPOINTS, write_grids
from mllm_jax.checkpoints.hf.write_config import (
    INERT_CLIP,
    INERT_TEXT,
    outer_fields,
    text_fields,
    vision_fields,
)
from mllm_jax.common.errors import ConfigError, quoted
from mllm_jax.common.fields import Fields
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

UNREAD = "hf_config.json"
OUTER, TEXT, VISION = SECTIONS = ("outer", "text_config", "vision_config")
_FULL = ModelConfig(VisionConfig(), ConnectorConfig(), LanguageConfig(), 0)
_NEXT = {*write_grids(GridsConfig(order="wh"))}
# of the original code alone, beside its mm_*
_ORIGINAL = {PINPOINTS, "image_aspect_ratio", "image_crop_resolution", "image_split_resolution"}
# what the export writes, other names of the same facts, and sections with a place of their own
_KNOWN = {
    OUTER: {*outer_fields(_FULL), "image_token_id", "vocab_size", "text_config", "vision_config"},
    TEXT: {*text_fields(LanguageConfig(), {}), "partial_rotary_factor", "vision_config"},
    VISION: {*vision_fields(VisionConfig()), *vision_fields(VisionConfig(kind="siglip"))},
}
# about the files it came with, and code beside them
_BOOKKEEPING = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
_INERT = {*INERT_TEXT, *INERT_CLIP, "pretraining_tp"} - {"attention_dropout"}


def read_unread(folder: Path) -> dict[str, dict[str, Any]]:
    """Section -> fields, of a model folder or a Hugging Face folder."""
    if (folder / UNREAD).is_file():
        get = Fields(str(folder / UNREAD), read_json(folder / UNREAD))
        return {name: get.section(name, {}).tree for name in SECTIONS}
    if not (folder / "config.json").is_file():
        return {name: {} for name in SECTIONS}
    path, raw = folder / "config.json", read_json(folder / "config.json")
    sections = _sections(folder, raw)
    for name, tree in sections.items():
        flat = name == OUTER or tree is raw
        _check_types(Fields(str(path) if flat else f"{path} {name}", tree))
    found = {name: _unread(name, tree) for name, tree in sections.items()}
    try:
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        raise ConfigError(f"{path}: holds NaN or an infinite number") from error
    return found


def _sections(folder: Path, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    where, kind = str(folder / "config.json"), model_type(folder, raw)
    if kind == "llama":
        return {OUTER: {}, TEXT: raw, VISION: {}}
    if kind == "tower":
        return {OUTER: {}, TEXT: {}, VISION: tower_section(where, raw)}
    get = Fields(where, raw)
    vision = get.section("vision_config", {}).tree
    if kind == "original":  # one flat config
        text = {
            name: value
            for name, value in raw.items()
            if not name.startswith("mm_") and name not in _ORIGINAL
        }
        return {OUTER: {}, TEXT: text, VISION: vision}
    outer = {name: x for name, x in raw.items() if kind != "llava_next" or name not in _NEXT}
    return {OUTER: outer, TEXT: get.section("text_config", {}).tree, VISION: vision}


def _check_types(get: Fields) -> None:
    """Refuses other types in the fields that are known although nothing here uses them."""
    get.number("attention_dropout", 0.0, 0.0, 1.0)
    for name in ("initializer_range", "initializer_factor"):
        get.number(name, 0.0, 0.0)
    get.flag("use_cache", True)
    for name in ("image_seq_length", "pretraining_tp"):
        get.whole(name, 1)
    for name in ("dtype", "torch_dtype", "transformers_version"):
        get.text(name, "")
    get.items("architectures", [])


def _unread(section: str, tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in tree.items()
        if name not in _KNOWN[section] and name not in _BOOKKEEPING and not name.startswith("_")
    }


def write_unread(folder: Path, fields: dict[str, dict[str, Any]]) -> None:
    """Puts the fields into a model folder, if there are any."""
    if any(fields.values()):
        write_json(folder / UNREAD, fields)


def listed(fields: dict[str, dict[str, Any]]) -> list[str]:
    """The fields as "text_config.attention_dropout=0.1", without those that change nothing."""
    return [
        f"{section}.{name}={quoted(value, 40)}"
        for section, tree in fields.items()
        for name, value in tree.items()
        if name not in _INERT and value not in (None, 0, False, "", [], {})
    ]
