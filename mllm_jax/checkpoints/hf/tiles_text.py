"""Says on a model card how images were cut in training, and what stock runtimes do differently."""

import dataclasses

from mllm_jax.config.image_tokens import Size
from mllm_jax.config.model import ModelConfig

EXAMPLE: Size = (704, 396)  # a photo of a telephone: rounded to other columns of patches
OTHERS = "Stock transformers and vLLM"


def tiles_text(model: ModelConfig) -> str:
    """Markdown lines about `model.grids`, which is not None."""
    grids, vision = model.grids, model.vision
    assert grids is not None and vision is not None
    canvases = ", ".join(f"{height}x{width}" for height, width in grids.canvases)
    lines = [
        f"- canvases (height x width): {canvases}; each is cut into tiles of {vision.image_size}",
        f"- trained with `order: {grids.order}`, `rounding: {grids.rounding}`, "
        f"`several_images: {grids.several_images}`",
    ]
    if grids.rounding == "original":
        lines.append(f"- {OTHERS} round{_example(model)}")
    if grids.several_images == "pad":
        square = vision.patches + 1
        lines.append(
            f"- {OTHERS} cut every image of a conversation with several into tiles; in training "
            f"each was padded to one square of {square} tokens"
        )
    if len(lines) > 2:
        lines.append("- `mllm_jax_grids` in config.json restores the training's way in mllm_jax")
    return "\n".join(lines) + "\n"


def _example(model: ModelConfig) -> str:
    """What rounding changes, with numbers where it changes the example's."""
    assert model.grids is not None
    stock = dataclasses.replace(model, grids=dataclasses.replace(model.grids, rounding="hf"))
    theirs, ours = (x.image_layout(EXAMPLE).placeholders for x in (stock, model))
    text = " the covered lines of patches to 7 digits, the training cut them off"
    height, width = EXAMPLE
    if theirs == ours:
        return text
    return f"{text}: an image of {width} x {height} pixels is {theirs} tokens there, {ours} here"
