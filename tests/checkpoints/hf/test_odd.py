"""Every field of every JSON file of a folder with values of other types: read, or one line."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf import (
    files as hf_files,
)
from mllm_jax.checkpoints.hf import (
    tokenizer as hf_tokenizer,
)
from mllm_jax.checkpoints.hf import (
    unread as hf_unread,
)
from mllm_jax.checkpoints.hf.config import read_llava
from mllm_jax.checkpoints.hf.grids import read_grids, read_original_grids
from mllm_jax.checkpoints.hf.processor import check_placeholders, read_processor, write_processor
from mllm_jax.checkpoints.hf.write_config import write_config
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.fields import Fields
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)

GONE = object()
ODD = [None, True, False, -1, 0, 10**30, 2**31, 1.5, math.nan, -math.inf, "x", "", "\ud800", "a\0"]
ODD += [[], [1], [None], ["x"], {}, {"a": 1}, {"content": 3}, GONE]
FEW = [None, True, -1, 10**30, math.nan, "x", "\ud800", [], [1], {}, {"content": 3}, GONE]
LANGUAGE = LanguageConfig(vocab=64, rope=RopeConfig(kind="llama3"))
VISION = VisionConfig(image_size=28, patch_size=7, width=48, mlp=96, layers=3, heads=4)
MODEL = ModelConfig(VISION, ConnectorConfig("mlp"), LANGUAGE, 3)


def changed(tree: Any, values: list[Any]) -> Iterator[Any]:
    """The tree with one odd value at every place in turn."""
    yield from (odd for odd in values[:-1] if not isinstance(odd, dict))
    for place in places(tree):
        for odd in values:
            other = copy.deepcopy(tree)
            within = other
            for step in place[:-1]:
                within = within[step]
            if odd is GONE:
                del within[place[-1]]
            else:
                within[place[-1]] = odd
            yield other


def places(tree: Any) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in places(value))


def check(read: Callable[[Any], Any], tree: Any, name: str, values: list[Any] = ODD) -> None:
    """Anything but a ConfigError of one line that names the file fails the test."""
    lines = []
    for other in changed(tree, values):
        try:
            read(other)
        except ConfigError as error:
            lines.append(str(error))
    assert len(lines) > 10, "the test could not fail"
    for line in lines:
        assert name in line and "\n" not in line and len(line) < 500


def test_config() -> None:
    """Its two sections are a LlamaConfig and a CLIPVisionConfig."""
    tree = write_config(MODEL, "float32", {"eos_token_id": [1, 2]})
    where = "config.json"
    check(lambda x: read_llava(where, Fields(where, x).tree, "mlp"), tree, where)


def test_canvases() -> None:
    """A LlavaNextConfig's, with the switches of the training."""
    grids = GridsConfig("wh", ((28, 56), (56, 56)), "original", "pad")
    tree = {"image_grid_pinpoints": [[56, 28], [56, 56]], "model_type": "llava_next"}
    tree |= {"mllm_jax_grids": dataclasses.asdict(grids)}
    tree["mllm_jax_grids"].pop("sizes")
    check(lambda x: read_grids(Fields("config.json", x), 28), tree, "config.json")
    tree = {"image_grid_pinpoints": [[56, 28], [56, 56]], "image_aspect_ratio": "anyres"}
    tree |= {"mm_patch_merge_type": "spatial_unpad"}
    check(lambda x: read_original_grids(Fields("config.json", x), 28), tree, "config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every JSON file but the config."""
    added = [{"content": text, "id": i} for i, text in enumerate(("<b>", "<e>", "<p>", "<image>"))]
    put(tmp_path / "tokenizer.json", {"model": {"vocab": {"a": 4}}, "added_tokens": added})
    words = {"bos_token": "<b>", "eos_token": {"content": "<e>"}, "pad_token": "<p>"}
    template = [{"name": "default", "template": "x"}]
    config = words | {"tokenizer_class": "TokenizersBackend", "chat_template": template}
    put(tmp_path / "tokenizer_config.json", config | {"extra_special_tokens": ["<image>"]})
    put(tmp_path / "special_tokens_map.json", words)
    put(tmp_path / "generation_config.json", {"eos_token_id": [1, 2], "bos_token_id": 0})
    put(tmp_path / "chat_template.json", {"chat_template": "x"})
    write_processor(tmp_path, MODEL, "pad")
    return tmp_path


def put(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree))


FILES = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.json", "processor_config.json", "preprocessor_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_beside_the_weights(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def read(tree: Any) -> None:
        put(folder / name, tree)
        hf_tokenizer.special_ids(folder)
        read_processor(folder, 28)
        check_placeholders(folder, MODEL)
        hf_files.copy_files(folder, out)
        write_processor(out, MODEL, "crop")

    check(read, json.loads((folder / name).read_text()), "json", FEW)


def test_kept_fields(tmp_path: Path) -> None:
    def read(tree: Any) -> None:
        put(tmp_path / hf_unread.UNREAD, tree)
        hf_unread.listed(hf_unread.read_unread(tmp_path))

    fields = {"outer": {"a": 1}, "text_config": {}, "vision_config": {"b": [1]}}
    check(read, fields, hf_unread.UNREAD)
