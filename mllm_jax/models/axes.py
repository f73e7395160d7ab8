"""Names for every parameter's dimensions: the table from which `sharding` lays the whole model out.

One row per kind of parameter. A parameter that no row claims, or two, is an error: nothing is
replicated by accident.
"""

import re
from collections.abc import Mapping
from typing import Any

from mllm_jax.config.adapter import A, B, inputs_of, is_adapter, is_scale, kernel_of

# (path pattern, logical names); parameters under "layers" have the extra first axis "layers"
TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"vision/class_embedding", ("none",)),
    (r"vision/position_embedding", ("none", "embed")),
    (r"vision/patch_embedding/kernel", ("none", "none", "none", "embed")),
    (r"vision/patch_embedding/bias", ("none",)),
    (r"vision/head/probe", ("none", "none", "embed")),
    (r"vision/head/attention/in/kernel", ("embed", "none")),
    (r"vision/head/attention/in/bias", ("none",)),
    (r"connector/linear_[12]/kernel", ("none", "embed")),
    (r"connector/linear_[12]/bias", ("none",)),
    (r"connector/newline", ("none",)),
    (r"language/embedding", ("vocab", "embed")),
    (r"language/head/kernel", ("vocab", "embed")),
    (r".*norm\d?/(scale|bias)", ("none",)),
    (r".*/attention/q/kernel", ("embed", "heads", "head_dim")),
    (r"vision/.*/attention/[kv]/kernel", ("embed", "heads", "head_dim")),
    (r"language/.*/attention/[kv]/kernel", ("embed", "kv_heads", "head_dim")),
    (r".*/attention/out/kernel", ("heads", "head_dim", "embed")),
    (r".*/attention/[qkv]/bias", ("heads", "head_dim")),
    (r".*/attention/out/bias", ("none",)),
    (r".*/mlp/(in|gate|up)/kernel", ("embed", "mlp")),
    (r".*/mlp/(out|down)/kernel", ("mlp", "embed")),
    (r".*/mlp/in/bias", ("mlp",)),
    (r".*/mlp/out/bias", ("none",)),
)


def logical_axes(params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """{path: array or shape} -> {path: the logical name of each dimension}."""
    return {path: _names(path, leaf) for path, leaf in params.items()}


def _names(path: str, leaf: Any) -> tuple[str, ...]:
    names = (
        _adapter(path) if is_adapter(path) else _row(kernel_of(path) if is_scale(path) else path)
    )
    names = (("layers",) if "/layers/" in path else ()) + names
    assert len(names) == len(leaf.shape), f"{path}: {names} for shape {leaf.shape}"
    return names


def _adapter(path: str) -> tuple[str, ...]:
    """Those of the matrix that the adapter changes; its rank is on every device whole."""
    kernel = kernel_of(path)
    names, inputs = _row(kernel), inputs_of(kernel)
    if path.endswith(f"/{A}"):
        return (*names[:inputs], "none")
    return ("none", *names[inputs:]) if path.endswith(f"/{B}") else names[inputs:]


def _row(path: str) -> tuple[str, ...]:
    rows = [names for pattern, names in TABLE if re.fullmatch(pattern, path)]
    assert len(rows) == 1, f"{path}: claimed by {len(rows)} rows of the axes table"
    return rows[0]
