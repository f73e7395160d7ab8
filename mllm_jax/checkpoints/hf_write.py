"""Our parameters as a folder that stock transformers opens, by the table.

our leaves --turn--> table --export names--> safetensors + config.json + tokenizer + processor
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.checkpoints import hf_files
from mllm_jax.checkpoints.hf_config import write_config
from mllm_jax.checkpoints.hf_names import export_name, hf_shape, is_stacked, names_of, to_hf
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.tensor_files import DTYPES, SHARD_BYTES, write_tensors
from mllm_jax.config import FolderConfig
from mllm_jax.errors import ConfigError
from mllm_jax.json_file import write_json
from mllm_jax.model_config import ModelConfig


def write_hf(
    folder: Path,
    config: FolderConfig,
    leaves: Mapping[str, Leaf],
    files: Path,
    ids: Mapping[str, Any],
    fit: str = "crop",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    seen: Callable[[str], Any] = lambda name: None,
) -> None:
    """Writes a folder that stock transformers opens.

    Safetensors, config, generation config, tokenizer and processor.

    Args:
        folder: an existing, empty folder.
        config: the model's.
        leaves: path -> lazy leaf, all of the model's parameters.
        files: the folder with the tokenizer and processor files.
        ids: bos_token_id, eos_token_id, pad_token_id.
        fit: "crop" or "pad", what the image processor does.
        dtype: number format of the written tensors; None keeps each parameter's own.
        shard_bytes: largest shard.
        seen: called with each parameter's path once it is written.
    """
    parts = frozenset(path.split("/")[0] for path in leaves)
    leaves = {**leaves, **_identity(config.model, leaves)}
    target = {path: DTYPES[dtype] if dtype else leaf.dtype for path, leaf in leaves.items()}
    tensors = {
        export_name(name, parts): Leaf(hf_shape(path, leaf.shape), target[path], leaf.read)
        for path, leaf in leaves.items()
        for name in names_of(path, leaf.shape)
    }

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for path, leaf in leaves.items():
            for name, tensor in _tensors_of(path, leaf.read()):
                yield export_name(name, parts), tensor.astype(target[path], copy=False)
                # it may be a view that keeps the whole parameter while the next one is read
                del tensor
            seen(path)

    write_tensors(folder, tensors, arrays(), shard_bytes)
    hf_files.write_model_files(files, folder, config.model, ids, fit)
    written = write_config(config.model, dtype or config.dtype, ids)
    write_json(folder / "config.json", written)


def _tensors_of(path: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one parameter, by the table's names. Ends holding nothing of `array`."""
    layers = array if is_stacked(path) else array[None]
    for name, layer in zip(names_of(path, array.shape), layers, strict=True):
        yield name, to_hf(path, layer)


def _identity(model: ModelConfig, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """A linear connector's second matrix for transformers, which always has one.

    It is the identity, with a zero bias.
    """
    if model.connector is None or model.connector.kind != "linear" or model.language is None:
        return {}
    width, dtype = model.language.width, leaves["connector/linear_1/kernel"].dtype
    extra = {
        "connector/linear_2/kernel": Leaf((width, width), dtype, lambda: np.eye(width, dtype=dtype))
    }
    if model.connector.bias:
        extra["connector/linear_2/bias"] = Leaf((width,), dtype, lambda: np.zeros((width,), dtype))
    return extra


def check_dtype(dtype: str | None) -> None:
    """Refuses a number format that an export cannot have."""
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"dtype={dtype!r}: allowed are float32 and bfloat16")
