"""Image processors: what a folder's does with an image, and one that does what we do.

`LlavaProcessor` puts one image token into the prompt for each image vector, which the folder's
files must make it do.
"""

from functools import partial
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.hf.config import STRATEGIES, TowerKind, check_strategy
from mllm_jax.checkpoints.hf.grids import PINPOINTS, check_pinpoints, write_pinpoints
from mllm_jax.checkpoints.hf.tokenizer import tokens
from mllm_jax.checkpoints.hf.weight_files import regular_file
from mllm_jax.common.errors import require
from mllm_jax.common.fields import REQUIRED, Fields
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ModelConfig

NEW_PROCESSOR, PROCESSOR = "processor_config.json", "preprocessor_config.json"
FILTERS = {3: "bicubic", 2: "bilinear"}  # of PIL.Image.Resampling
NUMBERS = {name: number for number, name in FILTERS.items()}
# these keep the sides in proportion: the shorter side, then the central square
CROPPING = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")
STRETCHING = "SiglipImageProcessor"
NEXT_PROCESSOR = "LlavaNextImageProcessor"
# tokens that LlavaProcessor adds: CLIP's class token, which the strategy "default" takes off again
ADDITIONAL: dict[TowerKind, int] = {"clip": 1, "siglip": 0}
SIGLIP_STATS = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}  # IMAGENET_STANDARD_MEAN, _STD


def read_processor(
    folder: Path,
    image_size: int,
    grids: GridsConfig | None = None,
    kind: TowerKind = "clip",
) -> tuple[dict[str, Any], str]:
    """What the image processor does, if it is what we do.

    Args:
        folder: with processor_config.json (transformers 5) or preprocessor_config.json, or both, or
            neither: then that of the tower's kind.
        image_size: side of the vision tower's input, in pixels.
        grids: LLaVA-NeXT's canvases; its processor must cut the same.
        kind: of the vision tower.

    Returns:
        ({"image_mean", "image_std", "resample"}, those that are given; "crop", "pad" or "stretch").

    Raises:
        ConfigError: the processor does something that this project does not, named with its field,
            or the two files describe different processors.
    """
    default = STRETCHING if kind == "siglip" else CROPPING[0]
    read = partial(_image_processor, image_size=image_size, grids=grids, default=default)
    processors = [read(get) for get in _processor_settings(folder)]
    require(
        all(other == processors[0] for other in processors),
        f"{folder}: {NEW_PROCESSOR} and {PROCESSOR} describe different image processors; "
        "remove the wrong one",
    )
    if processors:
        return processors[0]
    return (dict(SIGLIP_STATS), "stretch") if default == STRETCHING else ({}, "crop")


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
    get: Fields, image_size: int, grids: GridsConfig | None, default: str
) -> tuple[dict[str, Any], str]:
    allowed = (*CROPPING, STRETCHING) if grids is None else (NEXT_PROCESSOR,)
    kind, base = _kind(get, default if grids is None else NEXT_PROCESSOR)
    if base not in allowed:
        get.refuse("image_processor_type", kind, " or ".join(allowed))
    if grids is not None:
        check_pinpoints(get, grids)
    stretches = base == STRETCHING
    for name in ("do_resize", "do_rescale", "do_normalize", "do_center_crop")[: 4 - stretches]:
        if get.tree.get(name, True) is not True:  # null is false there, not absent
            get.refuse(name, get.tree[name], "true")
    get.expect("do_convert_rgb", True)
    get.expect("use_square_size", False)
    stats: dict[str, Any] = dict(SIGLIP_STATS) if stretches else {}
    if "resample" in get:
        stats["resample"] = FILTERS[get.choice("resample", 3, *FILTERS)]
    factor = get.number("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) >= 1e-6:
        get.refuse("rescale_factor", factor, "1/255")
    _check_sizes(get, image_size, stretches)
    stats |= {name: _three(get, name) for name in ("image_mean", "image_std") if name in get}
    if stretches:
        get.expect("do_center_crop", False)
        get.expect("do_pad", False)
        return stats, "stretch"
    # CLIP's processor knows no do_pad
    pads = base == "LlavaImageProcessor" and get.flag("do_pad", False)
    return stats, "pad" if pads else "crop"


def _check_sizes(get: Fields, image_size: int, stretches: bool) -> None:
    """Refuses a processor whose images are not squares of the tower's size."""
    square = ("height", "width")
    sizes = {"size": square} if stretches else {"size": ("shortest_edge",), "crop_size": square}
    for name, keys in sizes.items():
        # of one number SigLIP's processor makes the shorter side
        number = stretches and name in get and not isinstance(get.tree[name], dict)
        if number or _sides(get, name, keys, image_size) != {image_size}:
            expected = " and ".join(keys)
            get.refuse(name, get.tree[name], f"{expected} {image_size}, the vision tower's size")


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
    decided |= {"use_square_size", "do_pad", "do_center_crop", "crop_size", PINPOINTS}
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
    check_strategy(get, model.vision.kind, STRATEGIES[model.vision.kind])
    get.expect("num_additional_image_tokens", ADDITIONAL[model.vision.kind])
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
        fit: "crop", "pad" (to a square before resizing) or "stretch"; tiles have one of their own.
    """
    vision = model.vision
    assert vision is not None
    image = [text for text, i in tokens(folder).items() if i == model.image_token]
    require(len(image) == 1, f"{folder}: image token {model.image_token} is not in tokenizer.json")
    plain = {"crop": CROPPING[0], "pad": "LlavaImageProcessor", "stretch": STRETCHING}[fit]
    kind = plain if model.grids is None else NEXT_PROCESSOR
    square = {"height": vision.image_size, "width": vision.image_size}
    cropping = {
        "size": {"shortest_edge": vision.image_size},
        "do_center_crop": True,
        "crop_size": square,
    }
    settings = {
        "image_processor_type": kind,
        "do_resize": True,
        **({"size": square} if kind == STRETCHING else cropping),
        "resample": NUMBERS[vision.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "do_convert_rgb": True,
        **({"do_pad": True} if kind not in (CROPPING[0], STRETCHING) else {}),
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
        "num_additional_image_tokens": ADDITIONAL[vision.kind],
        "vision_feature_select_strategy": STRATEGIES[vision.kind],
        "image_processor": settings,
    }
    write_json(folder / NEW_PROCESSOR, processor | shared)
