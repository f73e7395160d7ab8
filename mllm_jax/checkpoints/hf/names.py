"""THE table: our path <-> Hugging Face name <-> how to turn the array, for both directions.

A turn is read like an einsum: "(NH)D->DNH" says that Hugging Face stores a matrix [N x H, D] which
is [D, N, H] here. Names with {layer} are stacked: our array has the layers as its first
axis.

Names in the table are those of LLaVA checkpoints on the Hub (llava-hf/llava-1.5-7b-hf), which
transformers 4 and 5 open alike; today's `save_pretrained` leaves out "vision_model.", and
transformers 4 would reinitialise such a tower. `PREFIXES` lists every other layout.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mllm_jax.checkpoints.leaves import Index
from mllm_jax.common.errors import ConfigError

V = "vision_tower.vision_model."
C, L = "multi_modal_projector.", "language_model.model."
HEAD = "language_model.lm_head."
NEWLINE = "image_newline"  # LLaVA-NeXT's vector after each line of patches


class Row(NamedTuple):
    """One line of the table."""

    path: str
    name: str
    turn: str


def _norm(path: str, name: str) -> tuple[Row, Row]:
    scale = Row(f"{path}/scale", f"{name}.weight", "D->D")
    return scale, Row(f"{path}/bias", f"{name}.bias", "D->D")


_VISION, _LANGUAGE = "vision/layers", "language/layers"
_VL, _LL = f"{V}encoder.layers.{{layer}}", f"{L}layers.{{layer}}"
ROWS: tuple[Row, ...] = (
    Row("vision/class_embedding", f"{V}embeddings.class_embedding", "D->D"),
    Row("vision/patch_embedding/kernel", f"{V}embeddings.patch_embedding.weight", "DCpq->pqCD"),
    Row("vision/patch_embedding/bias", f"{V}embeddings.patch_embedding.bias", "D->D"),
    Row("vision/position_embedding", f"{V}embeddings.position_embedding.weight", "PD->PD"),
    *_norm("vision/pre_norm", f"{V}pre_layrnorm"),
    *_norm(f"{_VISION}/norm1", f"{_VL}.layer_norm1"),
    Row(f"{_VISION}/attention/q/kernel", f"{_VL}.self_attn.q_proj.weight", "(NH)D->DNH"),
    Row(f"{_VISION}/attention/q/bias", f"{_VL}.self_attn.q_proj.bias", "(NH)->NH"),
    Row(f"{_VISION}/attention/k/kernel", f"{_VL}.self_attn.k_proj.weight", "(NH)D->DNH"),
    Row(f"{_VISION}/attention/k/bias", f"{_VL}.self_attn.k_proj.bias", "(NH)->NH"),
    Row(f"{_VISION}/attention/v/kernel", f"{_VL}.self_attn.v_proj.weight", "(NH)D->DNH"),
    Row(f"{_VISION}/attention/v/bias", f"{_VL}.self_attn.v_proj.bias", "(NH)->NH"),
    Row(f"{_VISION}/attention/out/kernel", f"{_VL}.self_attn.out_proj.weight", "D(NH)->NHD"),
    Row(f"{_VISION}/attention/out/bias", f"{_VL}.self_attn.out_proj.bias", "D->D"),
    *_norm(f"{_VISION}/norm2", f"{_VL}.layer_norm2"),
    Row(f"{_VISION}/mlp/in/kernel", f"{_VL}.mlp.fc1.weight", "FD->DF"),
    Row(f"{_VISION}/mlp/in/bias", f"{_VL}.mlp.fc1.bias", "F->F"),
    Row(f"{_VISION}/mlp/out/kernel", f"{_VL}.mlp.fc2.weight", "DF->FD"),
    Row(f"{_VISION}/mlp/out/bias", f"{_VL}.mlp.fc2.bias", "D->D"),
    *_norm("vision/post_norm", f"{V}post_layernorm"),
    # SigLIP's attention pooling, with queries, keys and values in one matrix
    Row("vision/head/probe", f"{V}head.probe", "IPD->IPD"),
    Row("vision/head/attention/in/kernel", f"{V}head.attention.in_proj_weight", "ED->DE"),
    Row("vision/head/attention/in/bias", f"{V}head.attention.in_proj_bias", "E->E"),
    Row("vision/head/attention/out/kernel", f"{V}head.attention.out_proj.weight", "D(NH)->NHD"),
    Row("vision/head/attention/out/bias", f"{V}head.attention.out_proj.bias", "D->D"),
    *_norm("vision/head/norm", f"{V}head.layernorm"),
    Row("vision/head/mlp/in/kernel", f"{V}head.mlp.fc1.weight", "FD->DF"),
    Row("vision/head/mlp/in/bias", f"{V}head.mlp.fc1.bias", "F->F"),
    Row("vision/head/mlp/out/kernel", f"{V}head.mlp.fc2.weight", "DF->FD"),
    Row("vision/head/mlp/out/bias", f"{V}head.mlp.fc2.bias", "D->D"),
    Row("connector/linear_1/kernel", f"{C}linear_1.weight", "DC->CD"),
    Row("connector/linear_1/bias", f"{C}linear_1.bias", "D->D"),
    Row("connector/linear_2/kernel", f"{C}linear_2.weight", "DC->CD"),
    Row("connector/linear_2/bias", f"{C}linear_2.bias", "D->D"),
    Row("connector/newline", NEWLINE, "D->D"),
    Row("language/embedding", f"{L}embed_tokens.weight", "VD->VD"),
    Row(f"{_LANGUAGE}/attention_norm/scale", f"{_LL}.input_layernorm.weight", "D->D"),
    Row(f"{_LANGUAGE}/attention/q/kernel", f"{_LL}.self_attn.q_proj.weight", "(NH)D->DNH"),
    Row(f"{_LANGUAGE}/attention/k/kernel", f"{_LL}.self_attn.k_proj.weight", "(KH)D->DKH"),
    Row(f"{_LANGUAGE}/attention/v/kernel", f"{_LL}.self_attn.v_proj.weight", "(KH)D->DKH"),
    Row(f"{_LANGUAGE}/attention/out/kernel", f"{_LL}.self_attn.o_proj.weight", "D(NH)->NHD"),
    Row(f"{_LANGUAGE}/mlp_norm/scale", f"{_LL}.post_attention_layernorm.weight", "D->D"),
    Row(f"{_LANGUAGE}/mlp/gate/kernel", f"{_LL}.mlp.gate_proj.weight", "FD->DF"),
    Row(f"{_LANGUAGE}/mlp/up/kernel", f"{_LL}.mlp.up_proj.weight", "FD->DF"),
    Row(f"{_LANGUAGE}/mlp/down/kernel", f"{_LL}.mlp.down_proj.weight", "DF->FD"),
    Row("language/norm/scale", f"{L}norm.weight", "D->D"),
    Row("language/head/kernel", f"{HEAD}weight", "VD->VD"),
)
BY_PATH = {row.path: row for row in ROWS}
BY_NAME = {row.name: row for row in ROWS}

# every other layout -> the table's prefix
PREFIXES: dict[str, str] = {
    "vision_tower.": V,  # written by transformers 5
    "model.vision_tower.": V,  # in memory, transformers 5
    "model.vision_tower.vision_model.": V,  # in memory, transformers 4.52 to 4.57
    "model.vision_tower.vision_tower.vision_model.": V,  # original LLaVA
    "model.vision_tower.vision_tower.": V,
    "vision_model.": V,  # CLIPModel, SiglipModel; their VisionModels on the Hub
    "": V,  # CLIPVisionModel, SiglipVisionModel, written by transformers 5
    "model.multi_modal_projector.": C,
    "model.mm_projector.0.": f"{C}linear_1.",  # original LLaVA, mlp2x_gelu
    "model.mm_projector.2.": f"{C}linear_2.",
    "model.mm_projector.": f"{C}linear_1.",  # original LLaVA, linear
    "mm_projector.0.": f"{C}linear_1.",
    "mm_projector.2.": f"{C}linear_2.",
    "mm_projector.": f"{C}linear_1.",
    "model.language_model.": L,  # in memory, transformers 4.52 and later
    "model.": L,  # LlamaForCausalLM, original LLaVA
    "lm_head.": HEAD,
    f"model.{NEWLINE}": NEWLINE,  # in memory, transformers 4.52 and later; original LLaVA-NeXT
}

# what checkpoints hold beside our parameters: computed buffers, and parts that no MLLM uses
BUFFERS = r"(.*\.)?(position_ids|rotary_emb\.inv_freq)"
TEXT_HALF = r"text_model\..*|(text|visual)_projection\.weight|logit_(scale|bias)"


def canonical(name: str) -> str | None:
    """The table's name for a name of any layout, e.g. "model.layers.3.mlp.up_proj.weight".

    None if no layout has it.
    """
    candidates = [name] + [
        new + name[len(old) :] for old, new in PREFIXES.items() if name.startswith(old)
    ]
    known = [c for c in candidates if pattern(c) in BY_NAME]
    return known[0] if known else None


def pattern(name: str) -> str:
    """A name with {layer} in place of its layer's number."""
    return re.sub(r"layers\.\d+\.", "layers.{layer}.", name, count=1)


def names_of(path: str, shape: tuple[int, ...]) -> list[str]:
    """The table's names of one parameter: one per layer if it is stacked.

    `shape` is ours, layers first.
    """
    row = BY_PATH[path]
    return [row.name.format(layer=i) for i in range(shape[0])] if is_stacked(path) else [row.name]


def is_stacked(path: str) -> bool:
    """Whether our array has the layers as its first axis."""
    return "{layer}" in BY_PATH[path].name


def hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the Hugging Face tensor (of one layer) that becomes our parameter of `shape`."""
    groups, ours = _parse(BY_PATH[path].turn)
    sizes = dict(zip(ours, shape[1:] if is_stacked(path) else shape, strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in groups)


def hf_index(
    path: str, shape: tuple[int, ...], index: Index
) -> tuple[Index, tuple[int, ...], Index]:
    """Where a part of our parameter (of one layer if stacked) is in the Hugging Face tensor.

    Axes that are folded into one there can be cut on the disk by the first of them only:

        "(NH)D->DNH", N=4 H=8 D=6, ours [0:3, 1:2, 0:4]  ->  theirs [8:16, 0:3], ours [3, 1, 8],
        of which [:, :, 0:4] is left to take

    Args:
        path: ours.
        shape: ours, without layers.
        index: ours, starts and stops written out, without layers.

    Returns:
        The index there; the shape for `to_ours` of what was read; the index to take of the result.
    """
    groups, ours = _parse(BY_PATH[path].turn)
    sizes, cuts = dict(zip(ours, shape, strict=True)), dict(zip(ours, index, strict=True))
    theirs = []
    for first, *rest in groups:
        inner = math.prod(sizes[letter] for letter in rest)
        theirs.append(slice(cuts[first].start * inner, cuts[first].stop * inner))
    firsts = {group[0] for group in groups}
    read = [cuts[x].stop - cuts[x].start if x in firsts else sizes[x] for x in ours]
    left = tuple(slice(None) if x in firsts else cuts[x] for x in ours)
    return tuple(theirs), tuple(read), left


def to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A Hugging Face tensor as our array, one layer of it if stacked.

    `shape` is ours, without layers.
    """
    groups, ours = _parse(BY_PATH[path].turn)
    sizes = dict(zip(ours, shape, strict=True))
    letters = "".join(groups)
    return tensor.reshape([sizes[x] for x in letters]).transpose([letters.index(x) for x in ours])


def to_hf(path: str, array: np.ndarray) -> np.ndarray:
    """Our array, one layer of it if stacked, as the Hugging Face tensor: undoes `to_ours`."""
    groups, ours = _parse(BY_PATH[path].turn)
    sizes = dict(zip(ours, array.shape, strict=True))
    turned = array.transpose([ours.index(x) for x in "".join(groups)])
    return turned.reshape([math.prod(sizes[x] for x in group) for group in groups])


def _parse(turn: str) -> tuple[list[str], str]:
    theirs, ours = turn.split("->")
    return [group.strip("()") for group in re.findall(r"\(\w+\)|\w", theirs)], ours


def export_name(name: str, parts: frozenset[str]) -> str:
    """The table's name as the Hub's checkpoints of a model with these parts alone have it."""
    if parts == {"language"}:
        return name.replace(L, "model.").replace(HEAD, "lm_head.")
    return name.removeprefix("vision_tower.") if parts == {"vision"} else name


def canonical_names(
    where: str, names: Mapping[str, object], tower: bool
) -> tuple[dict[str, str], list[str]]:
    """Gives every stored name its place in the table.

    Args:
        where: the folder, for messages.
        names: the stored names.
        tower: whether this is a CLIP or SigLIP checkpoint, whose text half is left out.

    Returns:
        ({table name: stored name}, names left out). A name of no known layout keeps its own name in
        the first.

    Raises:
        ConfigError: two stored tensors stand for the same parameter.
    """
    left_out = BUFFERS + (f"|{TEXT_HALF}" if tower else "")
    found: dict[str, str] = {}
    skipped = []
    for stored in names:
        if re.fullmatch(left_out, stored):
            skipped.append(stored)
            continue
        name = canonical(stored) or stored
        if name in found:
            raise ConfigError(
                f"{where}: {found[name]} and {stored} are the same parameter; remove one"
            )
        found[name] = stored
    return found, skipped
