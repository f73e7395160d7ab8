"""Which files of a Hugging Face folder hold its weights: one file, or shards by their index.

Two sets of weights in one folder are refused: transformers would read one, another reader the
other. Pickle files beside safetensors are left unread, as in transformers.
"""

import re
from pathlib import Path

from mllm_jax.checkpoints.hf.tensor_files import INDEX, SINGLE, StoredTensor, read_header
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import Fields, is_text
from mllm_jax.common.json_file import read_json
from mllm_jax.common.links import is_inside, link_roots

SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder, one file or shards by the index.

    Raises:
        ConfigError: no safetensors file, two sets of them, an adapter beside them, a shard that is
            missing, truncated or outside of the folder, an index that disagrees with its shards.
    """
    single, index = folder / SINGLE, folder / INDEX
    adapter = next((name for name in ADAPTERS if (folder / name).exists()), None)
    require(
        adapter is None,
        f"{folder}: {adapter} is an adapter, which transformers would apply; merge it into the "
        "weights (peft: merge_and_unload), or move it elsewhere",
    )
    shards = sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name))
    if single.exists():
        other = INDEX if index.exists() else next(iter(shards), None)
        require(
            other is None,
            f"{folder}: holds {SINGLE} and {other}, two sets of weights; "
            "move the one that is not meant elsewhere",
        )
        return read_header(regular_file(folder, SINGLE))
    if index.exists():
        return _by_index(folder, shards)
    require(
        not shards,
        f"{folder}: holds {''.join(shards[:1])} without {INDEX}, which lists the shards",
    )
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    require(
        not pickles,
        f"{folder}: only {pickles[0].name if pickles else ''}, a pickle file, which is not opened; "
        "save it as safetensors with transformers: "
        "AutoModel.from_pretrained(...).save_pretrained(...)",
    )
    raise ConfigError(f"{folder}: no {SINGLE} and no {INDEX}")


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


def _by_index(folder: Path, shards: list[str]) -> dict[str, StoredTensor]:
    weight_map = _weight_map(folder)
    listed = set(weight_map.values())
    stray = [name for name in shards if name not in listed]
    require(
        not stray,
        f"{folder / INDEX}: does not list {quoted(stray)}, shards of other weights or of an "
        "interrupted copy; move them elsewhere",
    )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(listed):
        for name, tensor in read_header(regular_file(folder, shard)).items():
            named = weight_map.get(name)
            require(
                named == shard,
                f"{folder / INDEX}: disagrees with its shards: {shard} holds {quoted(name)}, "
                + ("which is not listed" if named is None else f"listed as in {named}"),
            )
            tensors[name] = tensor
    missing = [name for name in weight_map if name not in tensors]
    require(
        not missing,
        f"{folder / INDEX}: disagrees with its shards: they lack {quoted(missing)}",
    )
    return tensors


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard of the index: plain names of files in the folder."""
    path = folder / INDEX
    weight_map = Fields(str(path), read_json(regular_file(folder, INDEX))).section("weight_map")
    for name, shard in weight_map.tree.items():
        if not is_text(shard) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            weight_map.refuse(quoted(name), shard, "the name of a .safetensors file in the folder")
    require(len(weight_map.tree) > 0, f"{path}: weight_map is empty")
    return weight_map.tree
