"""Hugging Face folders, opened as lazy leaves by the table.

    config.json + safetensors --canonical names--> table --turn--> our leaves

Every tensor is accounted for before a byte is read: missing, extra or misshapen ones are refused
with a list.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.checkpoints.hf.config import (
    LLAVA_VISION,
    ConnectorKind,
    model_type,
    read_image_size,
    read_language,
    read_llava,
    read_tower_kind,
    read_vision,
    tower_section,
)
from mllm_jax.checkpoints.hf.connector_form import FORMS, Columns, single_layer
from mllm_jax.checkpoints.hf.grids import read_grids
from mllm_jax.checkpoints.hf.names import (
    BY_NAME,
    BY_PATH,
    HEAD,
    NEWLINE,
    L,
    V,
    canonical_names,
    export_name,
    hf_index,
    hf_shape,
    is_stacked,
    names_of,
    pattern,
    to_ours,
)
from mllm_jax.checkpoints.hf.original_llava import read_original
from mllm_jax.checkpoints.hf.processor import check_placeholders, read_processor
from mllm_jax.checkpoints.hf.tensor_files import FORMATS, StoredTensor
from mllm_jax.checkpoints.hf.transpose import copy_into
from mllm_jax.checkpoints.hf.weight_files import regular_file, stored_tensors
from mllm_jax.checkpoints.leaves import Index, Leaf, compare, drop_unread, size_of
from mllm_jax.common.errors import require
from mllm_jax.common.fields import Fields
from mllm_jax.common.json_file import read_json
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import FolderConfig


class HFFolder:
    """An opened Hugging Face folder: its config as ours, its tensors by the table's names.

    No tensor is read yet.
    """

    def __init__(self, path: Path):
        self.path = path
        raw = read_json(regular_file(path, "config.json"))
        self._kind = model_type(path, raw)
        stored = stored_tensors(path)
        names, self.left_out = canonical_names(str(path), stored, tower=self._kind == "tower")
        self._tensors = {name: stored[key] for name, key in names.items()}
        model, self.image_fit = self._read_config(raw)
        self.ids = hf_tokenizer.special_ids(path, raw) if model.language else {}
        self._absorb(model)
        self.config = FolderConfig(
            model=model, dtype=self._main_dtype(), base_models=(_base_name(path, raw),)
        )

    def _read_config(self, raw: dict[str, Any]) -> tuple[ModelConfig, str]:
        where = str(self.path / "config.json")
        if self._kind == "llama":
            return ModelConfig(language=read_language(where, raw)), "crop"
        if self._kind == "original":
            return read_original(self.path, raw, self._tensors)
        if self._kind == "tower":
            vision = tower_section(where, raw)
        else:
            vision = Fields(where, raw).section("vision_config", LLAVA_VISION).tree
        tower = Fields(f"{where} vision_config", vision)
        size = read_image_size(tower, 224)
        is_next = self._kind == "llava_next"
        grids = read_grids(Fields(where, raw), size) if is_next else None
        processor, fit = read_processor(self.path, size, grids, read_tower_kind(tower))
        if self._kind == "tower":
            return ModelConfig(vision=read_vision(where, vision, **processor)), fit
        model = read_llava(where, raw, self._connector_kind(raw), grids, **processor)
        check_placeholders(self.path, model)
        return model, fit

    def _connector_kind(self, raw: dict[str, Any]) -> ConnectorKind:
        """One matrix or two: LLaVA in transformers always has two, which may be one in fact."""
        where = str(self.path / "config.json")
        activation = Fields(where, raw).choice("projector_hidden_act", "gelu", *FORMS)
        single = single_layer(where, activation, self._tensors)
        if single is None:
            return "mlp"
        self._tensors = single
        return "linear"

    def _absorb(self, model: ModelConfig) -> None:
        """Takes out a tied head, which the token table already says."""
        head = self._tensors.get(f"{HEAD}weight")
        if head is not None and model.language is not None and model.language.tied:
            table = self._tensors.get(f"{L}embed_tokens.weight")
            same = (
                table is not None
                and table.shape == head.shape
                and np.array_equal(table.read(), head.read())
            )
            require(
                same,
                f"{self.path}: tie_word_embeddings=true, but lm_head.weight differs from the "
                "embedding; set it to false",
            )
            del self._tensors[f"{HEAD}weight"]

    def _main_dtype(self) -> Any:
        """The number format of most of the parameters."""
        sizes: dict[str, int] = {}
        for tensor in self._tensors.values():
            tensor.check()
            sizes[tensor.format] = sizes.get(tensor.format, 0) + tensor.nbytes
        return FORMATS[max(sizes, key=lambda key: sizes[key])].name if sizes else "float32"

    def leaves(self, abstract: Mapping[str, Any], unread: str | None = None) -> dict[str, Leaf]:
        """Lazy leaves of the abstract parameters.

        Args:
            abstract: path -> shape.
            unread: regex over our paths: parameters that the folder holds and `abstract` does not
                need.

        Raises:
            ConfigError: missing, extra or misshapen tensors, or layers of one parameter in
                different number formats.
        """
        shapes = {path: tuple(leaf.shape) for path, leaf in abstract.items()}
        parts = frozenset(path.split("/")[0] for path in shapes)
        found = {
            name: tensor
            for name, tensor in self._tensors.items()
            if self._is_read(name, shapes, unread)
        }
        expected = {
            n: _Shape(hf_shape(p, shape)) for p, shape in shapes.items() for n in names_of(p, shape)
        }
        compare(
            str(self.path),
            {export_name(name, parts): x for name, x in expected.items()},
            {export_name(name, parts): x for name, x in found.items()},
            self._hint(expected),
        )
        return {path: self._leaf(path, shape) for path, shape in shapes.items()}

    def _hint(self, expected: Mapping[str, Any]) -> str:
        """What to do about tensors that are usually missing."""
        if self._kind == "original" and not any(name.startswith(V) for name in self._tensors):
            return "the vision weights are in another folder: bring both together with transformers"
        if NEWLINE in expected and NEWLINE not in self._tensors:
            return (
                f"{NEWLINE} ends each line of patches: save the folder again with what was trained"
            )
        return ""

    @staticmethod
    def _is_read(name: str, shapes: Mapping[str, Any], unread: str | None) -> bool:
        row = BY_NAME.get(pattern(name))
        return row is None or bool(drop_unread([row.path], shapes, unread))

    def _leaf(self, path: str, shape: tuple[int, ...]) -> Leaf:
        tensors = [self._tensors[name] for name in names_of(path, shape)]
        formats = sorted({tensor.format for tensor in tensors})
        require(
            len(formats) == 1,
            f"{self.path}: layers of {BY_PATH[path].name} have different number formats {formats}; "
            "save them in one",
        )
        part = partial(_read, path, shape, tensors)
        whole = tuple(slice(0, n) for n in shape)
        return Leaf(shape, FORMATS[formats[0]], partial(part, whole), part)


class _Shape:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


def _read(
    path: str, shape: tuple[int, ...], tensors: list[StoredTensor | Columns], index: Index
) -> np.ndarray:
    """The part at `index` of one parameter; of its tensors no other bytes are read."""
    out = np.empty(size_of(index), FORMATS[tensors[0].format])
    if not is_stacked(path):
        _read_layer(path, shape, tensors[0], index, out)
        return out
    for row, layer in enumerate(range(index[0].start, index[0].stop)):
        _read_layer(path, shape[1:], tensors[layer], index[1:], out[row])
    return out


def _read_layer(
    path: str, shape: tuple[int, ...], tensor: StoredTensor | Columns, index: Index, out: np.ndarray
) -> None:
    theirs, read, left = hf_index(path, shape, index)
    copy_into(out, to_ours(path, tensor.read(theirs), read)[left])


def _base_name(path: Path, raw: dict[str, Any]) -> str:
    """The hub's name of a checkpoint if its config says it, else the folder's."""
    name = Fields(str(path / "config.json"), raw).text("_name_or_path", "")
    return (
        name if name.count("/") == 1 and not name.startswith((".", "/")) else path.absolute().name
    )
