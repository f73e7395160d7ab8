"""Image processors: what a folder's does with an image, and one that does what we do.

`LlavaProcessor` puts one image token into the prompt for each image vector, which the folder's
files must make it do.
"""

from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.hf.grids import PINPOINTS, check_pinpoints, write_pinpoints
from mllm_jax.checkpoints.hf.tokenizer import tokens
from mllm_jax.checkpoints.hf.weight_files import regular_file
from mllm_jax.common.errors import require
from mllm_jax.common.fields import REQUIRED, Fields
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ModelConfig

NEW_PROCESSOR, PROCESSOR = "processor_config.json", "preprocessor_config.json"
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")
NEXT_PROCESSOR = "LlavaNextImageProcessor"


def read_processor(
    folder: Path, image_size: int, grids: GridsConfig | None = None
) -> tuple[dict[str, Any], str]:
    """What the image processor does, if it is what we do.

    Args:
        folder: with processor_config.json (transformers 5) or preprocessor_config.json, or both, or
            neither: then CLIP's.
        image_size: side of the vision tower's input, in pixels.
        grids: LLaVA-NeXT's canvases; its processor must cut the same.

    Returns:
        ({"image_mean", "image_std"}, "crop" or "pad").

    Raises:
        ConfigError: the processor does something that this project does not, named with its field,
            or the two files describe different processors.
    """
    processors = [_image_processor(get, image_size, grids) for get in _processor_settings(folder)]
    require(
        all(other == processors[0] for other in processors),
        f"{folder}: {NEW_PROCESSOR} and {PROCESSOR} describe different image processors; "
        "remove the wrong one",
    )
    return processors[0] if processors else ({}, "crop")


def _processor_settings(folder: Path) -> list[Fields]:
    """The image processor's fields, by each file that has them."""
    found = []
    if (folder / NEW_PROCESSOR).exists():
        path = regular_file(folder, NEW_PROCESSOR)
        get = Fields(str(path), read_json(path))
        if "image_processor" in get:
            found.append(get.section("image_processor"))
    if (folder / PROCESSOR).exists():
        path = regular_file(folder, PROCESSOR)
        found.append(Fields(str(path), read_json(path)))
    return found


def _kind(get: Fields, default: str) -> tuple[str, str]:
    """The class of an image processor, as it is written and without its backend."""
    kind = get.text("image_processor_type", get.text("feature_extractor_type", default))
    return kind, kind.removesuffix("Fast").removesuffix("Pil")


def cuts_tiles(folder: Path) -> bool:
    """Whether one of the folder's files describes LLaVA-NeXT's image processor."""
    return any(_kind(get, "")[1] == NEXT_PROCESSOR for get in _processor_settings(folder))


def _image_processor(
    get: Fields, image_size: int, grids: GridsConfig | None
) -> tuple[dict[str, Any], str]:
    allowed = PROCESSORS if grids is None else (NEXT_PROCESSOR,)
    kind, base = _kind(get, allowed[0])
    if base not in allowed:
        get.refuse("image_processor_type", kind, " or ".join(allowed))
    if grids is not None:
        check_pinpoints(get, grids)
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if get.tree.get(name, True) is not True:  # null is false there, not absent
            get.refuse(name, get.tree[name], "true")
    get.expect("do_convert_rgb", True)
    get.expect("use_square_size", False)
    get.expect("resample", BICUBIC)
    factor = get.number("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) >= 1e-6:
        get.refuse("rescale_factor", factor, "1/255")
    for name, keys in (("size", ("shortest_edge",)), ("crop_size", ("height", "width"))):
        if _sides(get, name, keys, image_size) != {image_size}:
            expected = " and ".join(keys)
            get.refuse(name, get.tree[name], f"{expected} {image_size}, the vision tower's size")
    stats = {name: _three(get, name) for name in ("image_mean", "image_std") if name in get}
    # CLIP's processor knows no do_pad
    pads = base == "LlavaImageProcessor" and get.flag("do_pad", False)
    return stats, "pad" if pads else "crop"


def _sides(get: Fields, name: str, keys: tuple[str, ...], default: int) -> set[int]:
    """The sides of an image that a processor's field gives: one number, or an object of `keys`."""
    if not isinstance(get.tree.get(name), dict):
        return {get.whole(name, default)}
    section = get.section(name)
    if {key for key in section.tree if key in section} != set(keys):
        return set()
    return {section.whole(key, REQUIRED) for key in keys}


def _unread(get: Fields) -> dict[str, Any]:
    """The fields of an image processor that `write_processor` does not decide."""
    decided = {"image_processor_type", "feature_extractor_type", "processor_class"}
    decided |= {"use_square_size", "do_pad", PINPOINTS}
    return {name: value for name, value in get.tree.items() if name not in decided}


def _three(get: Fields, name: str) -> tuple[float, ...]:
    """Mean or deviation of red, green and blue."""
    values = get.items(name, REQUIRED)
    if len(values) != 3:
        get.refuse(name, values, "three numbers")
    low = 1e-6 if name == "image_std" else -1e3
    colours = Fields(get.location, {f"{name}[{i}]": value for i, value in enumerate(values)})
    return tuple(colours.number(key, REQUIRED, low, 1e3) for key in colours.tree)


def check_placeholders(folder: Path, model: ModelConfig) -> None:
    """Compares what `LlavaProcessor` puts into a prompt with what the model has for it.

    Raises:
        ConfigError: transformers would make another number of placeholders than there are image
            vectors, or of another token.
    """
    if not (folder / NEW_PROCESSOR).exists() or model.vision is None:
        return
    path = regular_file(folder, NEW_PROCESSOR)
    get = Fields(str(path), read_json(path))
    get.expect("vision_feature_select_strategy", "default")
    get.expect("num_additional_image_tokens", 1)  # the class token, taken off again by "default"
    patch = get.whole("patch_size", model.vision.patch_size)
    if patch != model.vision.patch_size:
        get.refuse("patch_size", patch, f"{model.vision.patch_size}, as in vision_config")
    text = get.text("image_token", None)
    if text is not None and (folder / "tokenizer.json").is_file():
        known = tokens(folder).get(text)
        if known != model.image_token:
            get.refuse("image_token", text, f"the text of token {model.image_token} ({known=})")


def write_processor(folder: Path, model: ModelConfig, fit: str) -> None:
    """Writes a processor with which `LlavaProcessor` makes exactly P placeholders per image.

    A model with tiles has `LlavaNextProcessor`, whose counts are those of `rounding: hf`.

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
    plain = "LlavaImageProcessor" if fit == "pad" else "CLIPImageProcessor"
    kind = plain if model.grids is None else NEXT_PROCESSOR
    settings = {
        "image_processor_type": kind,
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
        **({"do_pad": True} if kind != "CLIPImageProcessor" else {}),
        **({PINPOINTS: write_pinpoints(model.grids)} if model.grids is not None else {}),
    }
    shared = {"processor_class": "LlavaProcessor" if model.grids is None else "LlavaNextProcessor"}
    carried = [_unread(get) for get in _processor_settings(folder)]
    settings = {**(carried[0] if carried else {}), **settings}
    write_json(folder / PROCESSOR, settings | shared)
    path = folder / NEW_PROCESSOR
    processor = {
        **(read_json(path) if path.is_file() else {}),
        "image_token": image[0],
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": 1,  # the class token, which "default" then takes off again
        "vision_feature_select_strategy": "default",
        "image_processor": settings,
    }
    write_json(folder / NEW_PROCESSOR, processor | shared)
