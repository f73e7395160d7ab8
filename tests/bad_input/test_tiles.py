"""Bad LLaVA-NeXT folders: canvases, their order, the newline vector, processors of another cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Case, Change

FROM = ["convert", "from-hf", "hf", "out"]
ASK = ["generate", "hf", "--prompt", "gorria?", "--image", "data/images/0.png"]
NEXT = {"model_type": "llava_next", "image_grid_pinpoints": [[16, 32], [32, 16]]}
ORIGINAL = {
    "model_type": "llava_llama",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
}
FILES = "processor_config.json", "preprocessor_config.json"


def tiles(fields: dict[str, Any], *files: str, **settings: Any) -> Change:
    """Sets fields of the LLaVA folder's config, and of its image processor in the named files."""

    def change(place: Path) -> None:
        edit(place / "hf/config.json", lambda tree: tree.update(fields))
        cut = {"image_processor_type": "LlavaNextImageProcessor"}
        cut |= {"image_grid_pinpoints": NEXT["image_grid_pinpoints"]} | settings
        for name in files:
            path = place / "hf" / name
            edit(path, lambda tree: tree.get("image_processor", tree).update(cut))

    return change


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def pinpoints(value: Any) -> dict[str, Any]:
    return NEXT | {"image_grid_pinpoints": value}


CASES = [
    Case("no newline vector", FROM, tiles(NEXT, *FILES), "missing 1 (image_newline)"),
    Case("no newline vector to answer with", ASK, tiles(NEXT, *FILES), "missing 1 (image_newline)"),
    Case("no canvas", FROM, tiles(pinpoints([])), "image_grid_pinpoints=[]; expected 1 to 100"),
    Case(
        "a canvas that cannot be cut",
        FROM,
        tiles(pinpoints([[16, 24]])),
        "image_grid_pinpoints[0]=[16, 24]; expected multiples of 16",
    ),
    Case("a canvas twice", FROM, tiles(pinpoints([[16, 32]] * 2)), "[1]=[16, 32]; expected every"),
    Case("canvases of two orders", FROM, tiles(NEXT | ORIGINAL | NEXT), "may be [height, width]"),
    Case("an original without canvases", FROM, tiles(ORIGINAL), "write the canvases"),
    Case(
        "an original with transformers' processor",
        FROM,
        tiles(NEXT | ORIGINAL, FILES[0]),
        "remove the processor file",
    ),
    Case(
        "a processor of other canvases",
        FROM,
        tiles(NEXT, *FILES, image_grid_pinpoints=[[32, 16], [16, 32]]),
        "image_grid_pinpoints=[[32, 16], [16, 32]]; expected [[16, 32], [32, 16]]",
    ),
    Case("a processor that does not cut", FROM, tiles(NEXT), "expected LlavaNextImageProcessor"),
    Case(
        "choices that nobody has",
        FROM,
        tiles(NEXT | {"mllm_jax_grids": {"rounding": "up"}}, *FILES),
        "rounding='up'; expected 'hf' or 'original'",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refused(case: Case, refuse: Callable[[Case], None]):
    refuse(case)
