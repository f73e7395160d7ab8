"""LLaVA-NeXT's canvases in a folder's config.json <-> `model.grids`.

    config.json of             image_grid_pinpoints   rounding   several images
    transformers, llava_next   [height, width]        hf         tiles
    the original code          [width, height]        original   pad

Weights of the original code's choices may be in a folder of transformers'. It keeps them under
`SWITCHES`, which stock transformers does not read: it opens the folder and does as the first line.
"""

from typing import Any

from mllm_jax.checkpoints.hf.config import PIXELS
from mllm_jax.common.errors import quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.common.json_file import parse_json
from mllm_jax.config.grids import NEXT_SIZES, GridsConfig, Size

PINPOINTS, SWITCHES = "image_grid_pinpoints", "mllm_jax_grids"
ORDERS = {"hw": "[height, width]", "wh": "[width, height]"}
ORIGINAL_FIELDS = ("mm_patch_merge_type", "mm_projector_type", "mm_vision_tower")
COUNT = 100  # canvases; as `model.grids.sizes`
TEXT = 10_000  # characters of pinpoints that are written as text


def read_grids(get: Fields, side: int) -> GridsConfig:
    """The canvases of a LlavaNextConfig.

    Args:
        get: its fields.
        side: of the square that the vision tower reads, in pixels.

    Raises:
        ConfigError: canvases that the tower's side does not divide, or fields of the original code,
            which writes them the other way round.
    """
    get.expect("use_image_newline_parameter", True)
    default = [list(size) for size in NEXT_SIZES]
    canvases = _sizes(get, get.items(PINPOINTS, default), side, "hw")
    original = next((name for name in ORIGINAL_FIELDS if name in get), None)
    require(
        original is None or canvases == _turned(canvases),
        f"{get.location}: {PINPOINTS} may be {ORDERS['hw']} (model_type 'llava_next') or "
        f"{ORDERS['wh']} ({original}); write them as {ORDERS['hw']} and remove {original}",
    )
    switches = get.section(SWITCHES, {})
    unknown = [
        name for name in switches.tree if name not in ("order", "rounding", "several_images")
    ]
    require(
        not unknown,
        f"{switches.location}: unknown {quoted(unknown[:1])[1:-1]}; allowed are order, rounding "
        "and several_images",
    )
    order = switches.choice("order", "hw", *ORDERS)
    return GridsConfig(
        order=order,
        sizes=canvases if order == "hw" else _turned(canvases),
        rounding=switches.choice("rounding", "hf", "hf", "original"),
        several_images=switches.choice("several_images", "tiles", "tiles", "pad"),
    )


def read_original_grids(get: Fields, side: int) -> GridsConfig | None:
    """The canvases of a config of the original code; None where it reads every image as a square.

    Raises:
        ConfigError: as in `read_grids`; and without canvases, which the original code has no
            default for.
    """
    merge = get.choice("mm_patch_merge_type", "flat", "flat", "spatial", "spatial_unpad")
    if get.text("image_aspect_ratio", "square") != "anyres":
        if merge == "spatial_unpad":
            get.refuse("mm_patch_merge_type", merge, "flat, as image_aspect_ratio is not 'anyres'")
        return None
    if merge != "spatial_unpad":
        get.refuse("mm_patch_merge_type", merge, "'spatial_unpad' for image_aspect_ratio='anyres'")
    require(
        PINPOINTS in get,
        f"{get.location}: {PINPOINTS} is missing; write the canvases of the training as "
        f"{ORDERS['wh']}, for example {PINPOINTS}: [[672, 336], [336, 672]]",
    )
    listed = get.tree[PINPOINTS]
    if isinstance(listed, str):  # "[(336, 672), (672, 336)]", as the training's option gives it
        text = get.text(PINPOINTS, "", TEXT).translate(str.maketrans("()", "[]"))
        listed = parse_json(text, f"{get.location}: {PINPOINTS}")
    if not isinstance(listed, list):
        get.refuse(PINPOINTS, listed, f"a list of {ORDERS['wh']}")
    sizes = _sizes(get, listed, side, "wh")
    return GridsConfig(order="wh", sizes=sizes, rounding="original", several_images="pad")


def write_grids(grids: GridsConfig) -> dict[str, Any]:
    """The fields of a LlavaNextConfig that say how images are cut."""
    switches = {
        "order": grids.order,
        "rounding": grids.rounding,
        "several_images": grids.several_images,
    }
    stock = {"order": "hw", "rounding": "hf", "several_images": "tiles"}
    return {
        PINPOINTS: write_pinpoints(grids),
        "use_image_newline_parameter": True,
        **({SWITCHES: switches} if switches != stock else {}),
    }


def write_pinpoints(grids: GridsConfig) -> list[list[int]]:
    """The canvases as transformers reads them, in the order in which they are tried."""
    return [list(canvas) for canvas in grids.canvases]


def check_pinpoints(get: Fields, grids: GridsConfig) -> None:
    """Compares an image processor's canvases with the model's.

    Raises:
        ConfigError: pixels would be cut for other canvases than the model joins.
    """
    default = [list(size) for size in NEXT_SIZES]  # LlavaNextImageProcessor's own
    listed = get.items(PINPOINTS, default)
    if listed != write_pinpoints(grids):
        expected = quoted(write_pinpoints(grids))
        get.refuse(PINPOINTS, listed, f"{expected}, as in config.json and in that order")


def _sizes(get: Fields, listed: list[Any], side: int, order: str) -> tuple[Size, ...]:
    """Canvases as they are written. `order` is for messages."""
    if not 1 <= len(listed) <= COUNT:
        get.refuse(PINPOINTS, listed, f"1 to {COUNT} canvases as {ORDERS[order]}")
    sizes: list[Size] = []
    for number, pair in enumerate(listed):
        name = f"{PINPOINTS}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_side(x) for x in pair):
            get.refuse(name, pair, f"{ORDERS[order]}, two whole numbers from 1 to {PIXELS}")
        if pair[0] % side or pair[1] % side:
            get.refuse(name, pair, f"multiples of {side}, the vision tower's image_size")
        if tuple(pair) in sizes:
            get.refuse(name, pair, "every canvas once")
        sizes.append((pair[0], pair[1]))
    return tuple(sizes)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= PIXELS


def _turned(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
    return tuple((second, first) for first, second in sizes)
