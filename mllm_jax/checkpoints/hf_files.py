"""Files beside the weights: tokenizer, chat template, generation config, image processor.

A model folder is complete in itself: it carries these files in the names that stock transformers
reads.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.errors import ConfigError, require
from mllm_jax.json_file import read_json, write_json
from mllm_jax.model_config import ModelConfig

TEMPLATE = "chat_template.jinja"
IMAGE = "<image>"  # the image token's text
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")


def copy_files(source: Path, out: Path) -> None:
    """Copies tokenizer, template, generation and processor files.

    An old-style template becomes `chat_template.jinja`.
    """
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    template = _old_template(source)
    if template is not None and not (out / TEMPLATE).is_file():
        (out / TEMPLATE).write_text(template, encoding="utf-8")


def write_model_files(
    source: Path, out: Path, model: ModelConfig, ids: Mapping[str, Any], fit: str
) -> None:
    """Copies or writes everything that lies beside the parameters of `model`.

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
    """The template where it stood before transformers 4.50: in one of two JSON files."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            continue
        found = read_json(source / name).get("chat_template")
        if isinstance(found, list):  # several named templates
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if found is not None:
            return found
    return None


def check_tokenizer(folder: Path) -> None:
    """Refuses a language model without `tokenizer.json`."""
    hint = "save it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    require((folder / "tokenizer.json").is_file(), f"{folder}: no tokenizer.json; {hint}")


def tokens(folder: Path) -> dict[str, int]:
    """Content -> id of every token of `tokenizer.json`, added ones included."""
    tree = read_json(folder / "tokenizer.json")
    vocab = tree.get("model", {}).get("vocab", {})
    if isinstance(vocab, list):  # unigram models store (piece, score) pairs
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    return {**vocab, **{entry["content"]: entry["id"] for entry in tree.get("added_tokens", [])}}


def special_ids(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """bos_token_id, eos_token_id (may be a list), pad_token_id.

    From the generation config, else `config`, else the tokenizer; None where none says it.
    """
    names = ("bos_token", "eos_token", "pad_token")
    sources = [config or {}]
    if (folder / "generation_config.json").is_file():
        sources.insert(0, read_json(folder / "generation_config.json"))
    if (folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
        words, known = read_json(folder / "tokenizer_config.json"), tokens(folder)
        texts = {name: words.get(name) for name in names}
        texts = {
            name: text["content"] if isinstance(text, dict) else text
            for name, text in texts.items()
        }
        sources.append(
            {f"{name}_id": known.get(text) for name, text in texts.items() if text is not None}
        )
    keys = [f"{name}_id" for name in names]
    return {key: next((s[key] for s in sources if s.get(key) is not None), None) for key in keys}


def write_generation_config(folder: Path, ids: Mapping[str, Any]) -> None:
    """Writes `generation_config.json` with the special ids, unless the folder has one."""
    if not (folder / "generation_config.json").is_file():
        known = {name: value for name, value in ids.items() if value is not None}
        write_json(folder / "generation_config.json", known)


def read_processor(folder: Path, image_size: int) -> tuple[dict[str, Any], str]:
    """What the image processor does, if it is what we do.

    Args:
        folder: with processor_config.json (transformers 5) or preprocessor_config.json, or neither:
            then CLIP's.
        image_size: side of the vision tower's input, in pixels.

    Returns:
        ({"image_mean", "image_std"}, "crop" or "pad").

    Raises:
        ConfigError: the processor does something that this project does not, named with its field.
    """
    path, settings = _image_processor(folder)
    kind = settings.get(
        "image_processor_type", settings.get("feature_extractor_type", PROCESSORS[0])
    )
    base = kind.removesuffix("Fast").removesuffix("Pil")
    require(
        base in PROCESSORS,
        f"{path}: image_processor_type={kind!r} is not supported; "
        f"allowed are {', '.join(PROCESSORS)}",
    )
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        require(
            settings.get(name, True) is True,
            f"{path}: {name}={settings.get(name)!r}; only true is supported",
        )
    resample = settings.get("resample", BICUBIC)
    require(resample == BICUBIC, f"{path}: resample={resample!r}; only 3 (bicubic) is supported")
    factor = settings.get("rescale_factor", 1 / 255)
    require(
        abs(factor * 255 - 1) < 1e-6, f"{path}: rescale_factor={factor!r}; only 1/255 is supported"
    )
    for name, keys in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        value = settings.get(name, image_size)
        sides = [value] if isinstance(value, int) else [value.get(key) for key in keys]
        require(
            all(side == image_size for side in sides),
            f"{path}: {name}={value!r} does not fit the vision tower's image_size={image_size}",
        )
    stats = {
        name: tuple(float(x) for x in settings[name])
        for name in ("image_mean", "image_std")
        if settings.get(name)
    }
    return stats, "pad" if settings.get("do_pad") else "crop"


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "processor_config.json"
    if path.is_file():
        nested = read_json(path).get("image_processor")
        if isinstance(nested, dict):
            return path, nested
    path = folder / "preprocessor_config.json"
    return path, read_json(path) if path.is_file() else {}


def write_processor(folder: Path, model: ModelConfig, fit: str) -> None:
    """Writes a processor with which `LlavaProcessor` makes exactly P placeholders per image.

    Both files are written: processor_config.json with the image processor inside (transformers 5)
    and preprocessor_config.json (transformers 4).

    Args:
        folder: holds `tokenizer.json`.
        model: a model with all three parts.
        fit: "crop" or "pad" (pad to a square before resizing).
    """
    vision = model.vision
    assert vision is not None
    image = [text for text, i in tokens(folder).items() if i == model.image_token]
    require(len(image) == 1, f"{folder}: image token {model.image_token} is not in tokenizer.json")
    settings = {
        "image_processor_type": "LlavaImageProcessor" if fit == "pad" else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": vision.image_size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": vision.image_size, "width": vision.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "do_convert_rgb": True,
        **({"do_pad": True} if fit == "pad" else {}),
    }
    shared = {"processor_class": "LlavaProcessor"}
    write_json(folder / "preprocessor_config.json", settings | shared)
    processor = {
        "image_token": image[0],
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": 1,  # the class token, which "default" then takes off again
        "vision_feature_select_strategy": "default",
        "image_processor": settings,
    }
    write_json(folder / "processor_config.json", processor | shared)


def add_image_token(folder: Path) -> tuple[int, int, bool]:
    """Makes sure that the tokenizer in `folder` knows `<image>` as a special token.

    Returns:
        (its id, number of ids the tokenizer had before, whether it was added).

    Raises:
        ConfigError: the text is an ordinary token.
    """
    path = folder / "tokenizer.json"
    tree, known = read_json(path), tokens(folder)
    count = max(known.values()) + 1
    if IMAGE in known:
        special = any(
            entry["content"] == IMAGE and entry.get("special")
            for entry in tree.get("added_tokens", [])
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
    tree.setdefault("added_tokens", []).append(entry)
    write_json(path, tree)
    _declare_token(folder / "tokenizer_config.json", entry)
    return count, count, True


def _declare_token(path: Path, entry: dict[str, Any]) -> None:
    """Repeats a new special token where tokenizer_config.json lists them.

    Each version of transformers has its own list.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if path.is_file():
        config = read_json(path)
    if isinstance(config.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"][str(entry["id"])] = {
            k: v for k, v in entry.items() if k != "id"
        }
    old, new = "additional_special_tokens", "extra_special_tokens"
    name = old if old in config else new
    listed = config.get(name) or []
    if not isinstance(listed, list):
        raise ConfigError(f"{path}: {name} is no list; save the tokenizer anew with transformers")
    config[name] = [*listed, entry["content"]]
    write_json(path, config)
