"""Counts the placeholders that an image takes in a row.

LLaVA-1.5 gives every image the patches of one square. LLaVA-NeXT cuts large images into tiles:

    whole image, one square        base = rows x columns of its patches
    tiles of the best grid         what is left of their patches when padding is cut off,
                                   and a newline after each line of patches
"""

from collections.abc import Sequence

Size = tuple[int, int]  # height, width

# llava-hf/llava-v1.6-*: image_grid_pinpoints, (height, width) in pixels
NEXT_GRIDS: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def image_tokens(size: Size, side: int, patch: int, grids: Sequence[Size] = ()) -> int:
    """Placeholders of one image, as Hugging Face's processors count them.

    Args:
        size: of the image as it is stored and turned upright, in pixels.
        side: of the square that the image tower reads, in pixels.
        patch: side of a patch, in pixels.
        grids: sizes in pixels that LLaVA-NeXT may lay an image out on; none for LLaVA-1.5.

    Source: transformers, `LlavaProcessor` and `LlavaNextProcessor._get_number_of_features`, with
    the class token neither counted nor read (`vision_feature_select_strategy: default`).
    """
    line = side // patch
    if not grids:
        return line * line
    grid = best_grid(size, grids)
    height, width = unpadded(size, (grid[0] // side * line, grid[1] // side * line))
    return line * line + height * width + height


def best_grid(size: Size, grids: Sequence[Size]) -> Size:
    """The grid that keeps most of the image's pixels, then wastes least; of equals the first.

    Source: haotian-liu/LLaVA, llava/mm_utils.py, select_best_resolution.
    """

    def keeps(grid: Size) -> tuple[int, int]:
        scale = min(grid[1] / size[1], grid[0] / size[0])
        pixels = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return pixels, pixels - grid[0] * grid[1]

    return max(grids, key=keeps)


def unpadded(size: Size, patches: Size) -> Size:
    """Height and width in patches that an image of `size` covers on a canvas of `patches`.

    The image is fitted into the canvas and centred; an odd line of padding stays. The rounding to
    seven digits is transformers' (`LlavaNextProcessor._get_unpadded_features`); the original cuts.
    """
    (height, width), (rows, columns) = size, patches
    if width / height > columns / rows:
        used = int(round(height * (columns / width), 7))
        return rows - (rows - used) // 2 * 2, columns
    used = int(round(width * (rows / height), 7))
    return rows, columns - (columns - used) // 2 * 2
