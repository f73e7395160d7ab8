"""LLaVA-NeXT's "anyres" as one config group: on which canvases large images are cut into tiles."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import Range, Section
from mllm_jax.common.ranges import Size as Count

Size = tuple[int, int]
Side = Annotated[int, Range("[1, 16_384]")]

# llava-hf/llava-v1.6-*: image_grid_pinpoints; as a set the same in either order of the sides
NEXT_SIZES: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclass(frozen=True)
class GridsConfig(Section, at="model.grids"):
    """How LLaVA-NeXT cuts an image into tiles. Weights are trained with one choice of each option.

    The original code and Hugging Face's differ in the order of the sides and in rounding, so the
    same image may get another canvas and another number of tokens.
    """

    order: Literal["hw", "wh"]
    """How `sizes` are written: `hw` (height, width) by Hugging Face, `wh` by the original code.

    No default: a square image takes the first of the canvases that suit it equally.
    """
    sizes: Annotated[tuple[tuple[Side, Side], ...], Count("[1, 100]")] = NEXT_SIZES
    """Canvases in pixels, their sides multiples of `model.vision.image_size`."""
    rounding: Literal["hf", "original"] = "hf"
    """Rounding of the lines of patches that an image covers: the original cuts a fraction off.

    Hugging Face rounds to 7 digits before it cuts.
    """
    several_images: Literal["tiles", "pad"] = "tiles"
    """Images of a conversation with several: each in tiles, or each padded to one square.

    `pad` is what the original trains with: one square, and one newline after it.
    """

    def __post_init__(self):
        super().__post_init__()
        require(
            len(set(self.sizes)) == len(self.sizes),
            f"model.grids.sizes={[list(size) for size in self.sizes]}: a canvas is listed twice",
        )

    @property
    def canvases(self) -> tuple[Size, ...]:
        """(height, width) of every canvas in pixels, in the order in which they are tried."""
        return self.sizes if self.order == "hw" else tuple((h, w) for w, h in self.sizes)
