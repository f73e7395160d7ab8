"""Our parameters as a folder that stock transformers opens, by the table.

our leaves --turn--> table --export names--> safetensors + config.json + tokenizer + processor
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.hf.connector_form import Form, as_two_layers, choose_form
from mllm_jax.checkpoints.hf.names import export_name, hf_shape, is_stacked, names_of, to_hf
from mllm_jax.checkpoints.hf.tensor_files import DTYPES, SHARD_BYTES, write_tensors
from mllm_jax.checkpoints.hf.transpose import copy_into
from mllm_jax.checkpoints.hf.write_config import write_config
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common import interrupts
from mllm_jax.common.errors import require
from mllm_jax.common.json_file import write_json
from mllm_jax.config.stage import FolderConfig

AHEAD = 2  # tensors that are read and turned while one is written


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
    unread: Mapping[str, Mapping[str, Any]] | None = None,
    form: Form | None = None,
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
        unread: fields of the source's config that nothing here reads, by section.
        form: of a linear connector; None where there is none, or for `choose_form`'s default.
    """
    form = choose_form(config.model, form)
    parts = frozenset(path.split("/")[0] for path in leaves)
    if form is not None:
        assert config.model.language is not None
        leaves = {**leaves, **as_two_layers(leaves, config.model.language.width, form)}
    target = {path: DTYPES[dtype] if dtype else leaf.dtype for path, leaf in leaves.items()}
    tensors = {
        export_name(name, parts): Leaf(hf_shape(path, leaf.shape), target[path], leaf.read)
        for path, leaf in leaves.items()
        for name in names_of(path, leaf.shape)
    }

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        with ThreadPoolExecutor(AHEAD) as pool:
            todo = deque(_tasks(leaves, target))
            running: deque[tuple[str, str, bool, Future[np.ndarray]]] = deque()
            while todo or running:
                while todo and len(running) < AHEAD:
                    path, name, last, make = todo.popleft()
                    running.append((path, name, last, pool.submit(make)))
                interrupts.check()
                path, name, last, made = running.popleft()
                yield export_name(name, parts), made.result()
                del made  # a tensor that is written is held no longer
                if last:
                    seen(path)

    write_tensors(folder, tensors, arrays(), shard_bytes)
    hf_files.write_model_files(files, folder, config.model, ids, fit)
    written = write_config(config.model, dtype or config.dtype, ids, unread, form)
    write_json(folder / "config.json", written)


def _tasks(
    leaves: Mapping[str, Leaf], target: Mapping[str, np.dtype]
) -> Iterator[tuple[str, str, bool, Callable[[], np.ndarray]]]:
    """(path, table name, whether it is the path's last, what reads and turns it), tensor by tensor.

    A layer of a stacked parameter is a tensor.
    """
    for path, leaf in leaves.items():
        names = names_of(path, leaf.shape)
        for number, name in enumerate(names):
            layer = number if is_stacked(path) else None
            make = partial(_tensor, path, leaf, layer, target[path])
            yield path, name, number + 1 == len(names), make


def _tensor(path: str, leaf: Leaf, layer: int | None, dtype: np.dtype) -> np.ndarray:
    """One tensor as Hugging Face has it, read and turned."""
    if layer is None:
        array = leaf.read()
    else:
        rest = (slice(None) for _ in leaf.shape[1:])
        array = leaf.at((slice(layer, layer + 1), *rest))[0]
    view = to_hf(path, _cast(path, array, dtype))
    if view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, dtype)
    copy_into(out, view)
    return out


def _cast(path: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in another number format; float16 must hold its values."""
    if dtype != np.float16 or array.dtype == dtype:
        return array.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        half = array.astype(dtype)
    require(
        np.array_equal(np.isfinite(half), np.isfinite(array)),
        f"--dtype float16: {path} has values above {np.finfo(dtype).max:g}, which float16 cannot "
        "hold; export bfloat16 or float32",
    )
    return half


def check_dtype(dtype: str | None) -> None:
    """Refuses a number format that an export cannot have."""
    require(dtype is None or dtype in DTYPES, f"dtype={dtype!r}: allowed are {', '.join(DTYPES)}")
