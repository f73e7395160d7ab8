"""Converts nested dicts to flat dicts by path and back, for parameters and settings.

{"language": {"norm": {"scale": x}}}  <->  {"language/norm/scale": x}
"""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Nested dicts -> {path: leaf}, in their order. What is not a dict is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{path}": leaf for path, leaf in inner.items()}
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dicts; the inverse of `flatten` with "/"."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
