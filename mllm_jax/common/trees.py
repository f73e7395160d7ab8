"""Converts nested dicts to flat dicts by path and back, and compares flat ones, for parameters.

{"language": {"norm": {"scale": x}}}  <->  {"language/norm/scale": x}
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LISTED = 20  # names of each kind of difference in a message


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


def differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """What two flat dicts of arrays do not share, for a message; empty where nothing differs.

    ["missing 2 (a, b)", "extra 1 (c)", "misshapen 1 (d is [3], expected [4])"]

    Args:
        expected: path -> anything with `.shape`.
        actual: likewise.
    """
    shared = [path for path in expected if path in actual]
    misshapen = [
        f"{path} is {list(actual[path].shape)}, expected {list(expected[path].shape)}"
        for path in shared
        if tuple(actual[path].shape) != tuple(expected[path].shape)
    ]
    return [*path_differences(expected, actual), *_listed("misshapen", misshapen)]


def path_differences(expected: Iterable[str], actual: Iterable[str]) -> list[str]:
    """`differences` of the paths alone."""
    ours, theirs = dict.fromkeys(expected), dict.fromkeys(actual)
    missing = [path for path in ours if path not in theirs]
    extra = [path for path in theirs if path not in ours]
    return [*_listed("missing", missing), *_listed("extra", extra)]


def _listed(kind: str, names: Sequence[str]) -> list[str]:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"{kind} {len(names)} ({', '.join(names[:LISTED])}{more})"] if names else []
