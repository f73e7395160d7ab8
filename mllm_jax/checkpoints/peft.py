"""PEFT's adapter folders, read and written: adapter_config.json and adapter_model.safetensors.

    language/layers/attention/q/lora_a [L, D, rank]     ours; PEFT's, a tensor for each layer:
    base_model.model.model.language_model.layers.{layer}.self_attn.q_proj.lora_A.weight [rank, D]

What is trained beside the adapters (LLaVA's connector) is in `modules_to_save`; a linear connector
as the two layers that it is in the base's folder (`hf/connector_form.py`).
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mllm_jax.checkpoints.hf import names
from mllm_jax.checkpoints.hf.connector_form import (
    Columns,
    Form,
    as_two_layers,
    form_beside,
    single_layer,
)
from mllm_jax.checkpoints.hf.tensor_files import FORMATS, StoredTensor, read_header
from mllm_jax.checkpoints.hf.weight_files import regular_file
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.adapter import (
    KERNEL,
    MAGNITUDE,
    NAMES,
    A,
    AdapterConfig,
    B,
    is_adapter,
    kernel_of,
    shapes,
)
from mllm_jax.config.model import ModelConfig

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SUFFIXES = {A: "lora_A.weight", B: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
FINGERPRINT = "base_fingerprint"  # in the metadata of the weights
# our first values by PEFT's init_lora_weights; its others change the base, or are never read again
INIT = {"uniform": True, "normal": "gaussian"}
# fields that say nothing of what the adapter computes
UNUSED = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# what a transformers 5 model calls the modules that the table of names calls otherwise
IN_MEMORY = {
    names.V: "model.vision_tower.",
    names.C: "model.multi_modal_projector.",
    names.L: "model.language_model.",
}
CONNECTOR = "connector/linear_"
# modules that PEFT can save whole: our parameters -> their names in a model
WHOLE = {
    CONNECTOR: "multi_modal_projector",
    "language/embedding": "embed_tokens",
    "language/head/": "lm_head",
}


class PeftFolder(NamedTuple):
    """An opened adapter folder; tensors are read when they are asked for."""

    where: Path
    adapter: AdapterConfig  # `match` names the matrices that have one
    tensors: dict[str, dict[int | None, StoredTensor]]  # path -> layer -> tensor
    base: str | None  # name or path of the base model
    fingerprint: str | None  # of the base's matrices; None in a folder by another tool


# ------------------------------------------------------------------------------------------ reading


def read_peft(folder: Path) -> PeftFolder:
    """Opens an adapter folder.

    Raises:
        ConfigError: a field with an effect that nothing here has, by name; a tensor that belongs to
            no parameter.
    """
    fields = Fields(str(folder / CONFIG), read_json(regular_file(folder, CONFIG)))
    require(
        (folder / WEIGHTS).is_file() or not (folder / PICKLE).is_file(),
        f"{folder / PICKLE}: a pickle file, which is not opened; save it as {WEIGHTS} with peft: "
        "save_pretrained(...)",
    )
    path = regular_file(folder, WEIGHTS)
    saved = fields.items("modules_to_save", None) or []
    tensors: dict[str, dict[int | None, StoredTensor]] = {}
    for name, tensor in read_header(path).items():
        ours, layer = _our_path(path, name, saved)
        tensors.setdefault(ours, {})[layer] = tensor
    with safe_open(path, "np") as opened:
        metadata = opened.metadata() or {}
    adapter = _adapter(fields, [kernel_of(p) for p in tensors if is_adapter(p)])
    _check_whole(path, tensors, adapter)
    base = fields.text("base_model_name_or_path", None)
    return PeftFolder(folder, adapter, tensors, base, metadata.get(FINGERPRINT))


def _adapter(fields: Fields, kernels: list[str]) -> AdapterConfig:
    fields.choice("peft_type", "LORA", "LORA")
    fields.choice("bias", "none", "none")
    fields.choice("init_lora_weights", True, True, False, "gaussian", "eva", "orthogonal")
    rank = fields.whole("r", 8, 1)
    alpha = fields.number("lora_alpha", 8.0, 0.0)
    rslora, dora = fields.flag("use_rslora", False), fields.flag("use_dora", False)
    read = {"peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "use_rslora", "use_dora"}
    for name, value in fields.tree.items():
        if name not in read | UNUSED and value not in (None, False, {}, []):
            raise ConfigError(
                f"{fields.location}: {name}={quoted(value)} is not supported; only LoRA, rsLoRA "
                "and DoRA with one rank and alpha are; merge it with peft: merge_and_unload"
            )
    match = "|".join(map(re.escape, sorted(set(kernels))))
    return AdapterConfig(match, rank=rank, alpha=float(alpha), rslora=rslora, dora=dora)


def _check_whole(file: Path, tensors: Collection[str], adapter: AdapterConfig) -> None:
    """Raises ConfigError for an adapter that lacks a kind of tensors, or has one too many."""
    expected = set(NAMES if adapter.dora else (A, B))
    for kernel in sorted({kernel_of(path) for path in tensors if is_adapter(path)}):
        beside = kernel.removesuffix(KERNEL)
        present = {name for name in NAMES if beside + name in tensors}
        for name in sorted(present ^ expected):
            verb = "has no" if name in expected else "has"
            raise ConfigError(
                f"{file}: the adapter of {kernel} {verb} {SUFFIXES[name]}, but {CONFIG} says "
                f"use_dora={adapter.dora}; save it again with peft: save_pretrained"
            )


def _our_path(file: Path, name: str, saved: list[Any]) -> tuple[str, int | None]:
    """Our parameter and its layer, of a tensor's name."""
    module = name.removeprefix(PREFIX)
    kind = next((ours for ours, end in SUFFIXES.items() if module.endswith(f".{end}")), None)
    if kind is not None:
        module = module.removesuffix(SUFFIXES[kind]) + "weight"
    known = names.canonical(module)
    row = None if known is None else names.BY_NAME[names.pattern(known)]
    whole = kind is None and any(f".{part}." in f".{module}" for part in saved)
    if row is None or (kind is None and not whole):
        raise ConfigError(f"{file}: {quoted(name)} belongs to no matrix that can have an adapter")
    layer = re.search(r"layers\.(\d+)\.", known or "")
    ours = row.path if kind is None else f"{row.path.rpartition('/')[0]}/{kind}"
    return ours, int(layer[1]) if layer else None


def peft_leaves(folder: PeftFolder, base: Mapping[str, Leaf], form: Form | None) -> dict[str, Leaf]:
    """The parameters of an adapter folder as a run stores them: path -> lazy leaf.

    Args:
        folder: from `read_peft`.
        base: the parameters of the base model.
        form: of its linear connector, from `form_beside`; None if it has two layers, or none.

    Raises:
        ConfigError: a layer's tensor is missing, or one has another shape than its matrix asks for.
    """
    leaves = {}
    _check_linear(str(folder.where / WEIGHTS), form, folder.tensors)
    for path, tensors in _one_layer(folder, form).items():
        target = kernel_of(path) if is_adapter(path) else path
        require(
            target in base,
            f"{folder.where}: holds an adapter of {target}, which the base model does not have",
        )
        leaves[path] = _leaf(folder, path, tensors, base[target])
    return leaves


def _check_linear(where: str, form: Form | None, paths: Collection[str]) -> None:
    """Raises ConfigError for an adapter of what is no single matrix in the base's folder."""
    adapters = [path for path in paths if path.startswith(CONNECTOR) and is_adapter(path)]
    require(
        form != "gelu" or not adapters,
        f"{where}: {''.join(adapters[:1])} changes a linear connector, which is two layers around "
        "a gelu in the base's folder; merge the adapters instead, by mllm-jax convert to-hf or "
        "peft's merge_and_unload",
    )


def _one_layer(
    folder: PeftFolder, form: Form | None
) -> Mapping[str, Mapping[int | None, StoredTensor | Columns]]:
    """The tensors, with a saved connector's two layers as one if it is linear in the base."""
    saved = [p for p in folder.tensors if p.startswith(CONNECTOR) and not is_adapter(p)]
    if form is None or not saved:
        return folder.tensors
    two = {names.BY_PATH[path].name: folder.tensors[path][None] for path in saved}
    one = single_layer(str(folder.where), form, two)
    require(
        one is not None,
        f"{folder.where / WEIGHTS}: the connector in modules_to_save is no longer the linear one "
        "of the base; merge it with peft: merge_and_unload",
    )
    rest: dict[str, Any] = {p: x for p, x in folder.tensors.items() if p not in saved}
    added: dict[str, Any] = {names.BY_NAME[name].path: {None: x} for name, x in (one or {}).items()}
    return {**rest, **added}


def _leaf(
    folder: PeftFolder,
    path: str,
    tensors: Mapping[int | None, StoredTensor | Columns],
    target: Leaf,
) -> Leaf:
    stacked = None not in tensors
    layers = range(target.shape[0]) if stacked else [None]
    missing = [layer for layer in layers if layer not in tensors]
    require(
        not missing and len(tensors) == len(layers),
        f"{folder.where / WEIGHTS}: {path} needs one tensor for each of {len(layers)} layers, but "
        f"there are {len(tensors)}, and none of layer {missing[:1]}",
    )
    shape = _shape(path, target, folder.adapter)
    ours = shape[int(stacked) :]
    wrong = next((t for t in tensors.values() if t.shape != _peft_shape(path, ours)), None)
    require(
        wrong is None,
        f"{folder.where / WEIGHTS}: {path} is {list(wrong.shape) if wrong else []}, expected "
        f"{list(_peft_shape(path, ours))}: an adapter of another model, or of another rank",
    )

    def read() -> np.ndarray:
        if not stacked:
            return _to_ours(path, tensors[None].read(), ours)
        return np.stack([_to_ours(path, tensors[layer].read(), ours) for layer in layers])

    return Leaf(shape, FORMATS[tensors[layers[0]].format], read)


def _shape(path: str, target: Leaf, adapter: AdapterConfig) -> tuple[int, ...]:
    """The shape of a parameter of ours, layers first."""
    if not is_adapter(path):
        return target.shape
    return shapes(kernel_of(path), target.shape, adapter.rank, adapter.dora)[path]


def _peft_shape(path: str, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Of our parameter of one layer: the shape of PEFT's tensor."""
    if not is_adapter(path):
        return names.hf_shape(path, ours if not names.is_stacked(path) else (1, *ours))
    if path.endswith(f"/{A}"):
        return ours[-1], math.prod(ours[:-1])
    if path.endswith(f"/{MAGNITUDE}"):
        return (math.prod(ours),)
    return math.prod(ours[1:]), ours[0]


def _to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return tensor.T.reshape(shape) if is_adapter(path) else names.to_ours(path, tensor, shape)


# ------------------------------------------------------------------------------------------ writing


def write_peft(
    folder: Path,
    model: ModelConfig,
    adapter: AdapterConfig,
    trained: Mapping[str, Leaf],
    base: str,
    fingerprint: str,
) -> None:
    """Writes an adapter folder that PEFT opens beside the base model.

    Args:
        folder: an empty one.
        model: the base model's.
        adapter: the section of the run.
        trained: all parameters that the run trained: path -> lazy leaf. Of a linear connector all
            or none, since it is written as two layers.
        base: name or path of the base model, for whoever opens the folder.
        fingerprint: of the base's matrices.

    Raises:
        ConfigError: something was trained beside the adapters that PEFT has no place for.
    """
    form = form_beside(Path(base), model)
    _check_linear(WEIGHTS, form, trained)
    saved = [path for path in trained if path.startswith(CONNECTOR) and not is_adapter(path)]
    if form is not None and saved:
        assert model.language is not None
        rest = {path: x for path, x in trained.items() if path not in saved}
        trained = rest | as_two_layers(trained, model.language.width, form)
    whole = sorted({_whole_module(path) for path in trained if not is_adapter(path)})
    tensors: dict[str, np.ndarray] = {}
    modules = []
    for path, leaf in trained.items():
        target = kernel_of(path) if is_adapter(path) else path
        array = leaf.read().astype(np.float32)  # exact for bfloat16, which numpy does not know
        for number, name in enumerate(names.names_of(target, leaf.shape)):
            part = array[number] if names.is_stacked(target) else array
            tensors[PREFIX + _peft_name(model, path, name)] = _to_peft(path, part)
        if path.endswith(f"/{A}"):
            module = _in_memory(model, names.BY_PATH[target].name).removesuffix(".weight")
            modules.append(re.escape(module).replace(r"\{layer\}", r"\d+"))
    metadata = {"format": "pt", FINGERPRINT: fingerprint}
    save_file(tensors, folder / WEIGHTS, metadata=metadata)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "init_lora_weights": INIT[adapter.init],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": "|".join(modules),  # PEFT reads one text as a regex over whole names
        "modules_to_save": whole or None,
    }
    write_json(folder / CONFIG, config)


def _to_peft(path: str, part: np.ndarray) -> np.ndarray:
    """Our parameter of one layer as PEFT's tensor: undoes `_to_ours`."""
    if not is_adapter(path):
        return np.ascontiguousarray(names.to_hf(path, part))
    return np.ascontiguousarray(part.reshape(_peft_shape(path, part.shape)[::-1]).T)


def _peft_name(model: ModelConfig, path: str, name: str) -> str:
    """The tensor's name in the file, without PEFT's prefix; `name` is the table's."""
    ending = SUFFIXES.get(path.rpartition("/")[2])
    name = _in_memory(model, name)
    return name if ending is None else name.removesuffix("weight") + ending


def _in_memory(model: ModelConfig, name: str) -> str:
    """What a model of transformers calls the module or parameter that the table calls `name`."""
    if model.vision is None:
        return names.export_name(name, frozenset({"language"}))
    old = next((old for old in IN_MEMORY if name.startswith(old)), "")
    return IN_MEMORY.get(old, "") + name.removeprefix(old)


def _whole_module(path: str) -> str:
    """The module that PEFT saves whole, of a parameter that was trained itself."""
    module = next((WHOLE[start] for start in WHOLE if path.startswith(start)), None)
    if module is None:
        raise ConfigError(
            f"{path} was trained beside the adapters, and PEFT's modules_to_save has no place for "
            "it; export the merged model by mllm-jax convert to-hf"
        )
    return module
