"""Which files of a Hugging Face folder hold its weights: one file, or shards by their index.

safetensors are taken before the files of `torch.save`, which are left unread beside them, as in
transformers. Two sets of weights in one format are refused: transformers would read one, another
reader the other.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mllm_jax.checkpoints.hf.pickled import read_pickled
from mllm_jax.checkpoints.hf.tensor_files import INDEX, SINGLE, StoredTensor, read_header
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import Fields, is_text
from mllm_jax.common.json_file import read_json
from mllm_jax.common.links import is_inside, link_roots


class _Format(NamedTuple):
    """The files of one format, and what reads one of them."""

    single: str
    index: str
    shard: re.Pattern[str]
    suffix: str
    read: Callable[[Path], dict[str, StoredTensor]]


FORMATS = (  # in the order in which transformers looks for them
    _Format(
        SINGLE, INDEX, re.compile(r"model-\d+-of-\d+\.safetensors"), ".safetensors", read_header
    ),
    _Format(
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
        ".bin",
        read_pickled,
    ),
)
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder, one file or shards by the index.

    Raises:
        ConfigError: no file of weights, two sets of them in one format, an adapter beside them, a
            shard that is missing, truncated or outside of the folder, an index that disagrees with
            its shards.
    """
    adapter = next((name for name in ADAPTERS if (folder / name).exists()), None)
    require(
        adapter is None,
        f"{folder}: {adapter} is an adapter, which transformers would apply; merge it into the "
        "weights (peft: merge_and_unload), or move it elsewhere",
    )
    for form in FORMATS:
        shards = sorted(path.name for path in folder.iterdir() if form.shard.fullmatch(path.name))
        if (folder / form.single).exists():
            other = form.index if (folder / form.index).exists() else next(iter(shards), None)
            require(
                other is None,
                f"{folder}: holds {form.single} and {other}, two sets of weights; "
                "move the one that is not meant elsewhere",
            )
            return form.read(regular_file(folder, form.single))
        if (folder / form.index).exists():
            return _by_index(folder, form, shards)
        require(
            not shards,
            f"{folder}: holds {''.join(shards[:1])} without {form.index}, which lists the shards",
        )
    allowed = ", ".join(name for form in FORMATS for name in (form.single, form.index))
    raise ConfigError(f"{folder}: no weights: none of {allowed}")


def regular_file(folder: Path, name: str) -> Path:
    """The file `name` of a folder; its links stay in the folder, or in the Hub's cache of it.

    Raises:
        ConfigError: no such file, or a link that leads out of the folder.
    """
    path = folder / name
    require(
        is_inside(str(path), link_roots(folder)),
        f"{path}: links to a file outside of its folder; copy that file into the folder",
    )
    require(path.is_file(), f"{path}: no such file")
    return path


def _by_index(folder: Path, form: _Format, shards: list[str]) -> dict[str, StoredTensor]:
    index = folder / form.index
    weight_map = _weight_map(folder, form)
    listed = set(weight_map.values())
    stray = [name for name in shards if name not in listed]
    require(
        not stray,
        f"{index}: does not list {quoted(stray)}, shards of other weights or of an "
        "interrupted copy; move them elsewhere",
    )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(listed):
        for name, tensor in form.read(regular_file(folder, shard)).items():
            named = weight_map.get(name)
            require(
                named == shard,
                f"{index}: disagrees with its shards: {shard} holds {quoted(name)}, "
                + ("which is not listed" if named is None else f"listed as in {named}"),
            )
            tensors[name] = tensor
    missing = [name for name in weight_map if name not in tensors]
    require(
        not missing,
        f"{index}: disagrees with its shards: they lack {quoted(missing)}",
    )
    return tensors


def _weight_map(folder: Path, form: _Format) -> dict[str, str]:
    """Tensor -> shard of the index: plain names of files in the folder."""
    path = folder / form.index
    weight_map = Fields(str(path), read_json(regular_file(folder, path.name))).section("weight_map")
    for name, shard in weight_map.tree.items():
        if not is_text(shard) or Path(shard).name != shard or not shard.endswith(form.suffix):
            weight_map.refuse(
                quoted(name), shard, f"the name of a {form.suffix} file in the folder"
            )
    require(len(weight_map.tree) > 0, f"{path}: weight_map is empty")
    return weight_map.tree
