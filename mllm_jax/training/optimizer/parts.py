"""Decides which parameters are trained: parts claim parameters by regex over whole paths.

Frozen means free: parameters are split into trainable and frozen ones before anything is
differentiated, so gradients, moments and master copies exist for the trainable ones alone. (AdamW
followed by a freeze mask keeps moments for all: 64 GB for 8 billion frozen parameters.)
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.patterns import matches
from mllm_jax.config.adapter import NAMES, PART, AdapterConfig, is_adapter
from mllm_jax.config.stage import PartConfig

SHOWN = 5  # paths named in a message
Params = Mapping[str, Any]  # path -> array


def assign(paths: Iterable[str], parts: Mapping[str, PartConfig]) -> dict[str, str]:
    """{path: name of the part that claims it}. A part's regex must match the whole path.

    Raises:
        ConfigError: paths that no part claims, paths that several claim, parts that claim nothing.
    """
    claims = {path: _claimants(path, parts) for path in paths}
    faults = []
    if unclaimed := [path for path, names in claims.items() if not names]:
        faults.append(f"no part claims {shorten(unclaimed)}")
    if doubly := [
        f"{path} ({' and '.join(names)})" for path, names in claims.items() if len(names) > 1
    ]:
        faults.append(f"more than one part claims {shorten(doubly)}")
    claimed = {name for names in claims.values() for name in names}
    if idle := [
        f"{name} (match: {part.match!r})" for name, part in parts.items() if name not in claimed
    ]:
        faults.append(f"claims nothing: {shorten(idle)}")
    if faults:
        raise ConfigError(
            f"optimizer.parts: {'; '.join(faults)}; "
            "every parameter must be claimed by exactly one part"
        )
    return {path: names[0] for path, names in claims.items()}


def with_adapter(
    parts: Mapping[str, PartConfig], adapter: AdapterConfig | None
) -> dict[str, PartConfig]:
    """The parts, and one more that claims the parameters of adapters; no other part does."""
    if adapter is None:
        return dict(parts)
    pattern = f".*/({'|'.join(NAMES)})"
    return {**parts, PART: PartConfig(pattern, learning_rate=adapter.learning_rate)}


def check_adapter(
    paths: Iterable[str], parts: Mapping[str, PartConfig], adapter: AdapterConfig
) -> None:
    """Raises ConfigError for a matrix that is trained itself and has an adapter, or is in int8.

    Args:
        paths: of the parameters that have no adapter yet, of the whole model.
        parts, adapter: of the stage.
    """
    owner = assign(paths, parts)
    trained = [path for path in adapter.targets(owner) if parts[owner[path]].train]
    require(
        not trained,
        f"adapter.match={quoted(adapter.match)} matches {shorten(trained)}, which optimizer.parts"
        f".{owner[trained[0]] if trained else ''} trains; freeze it by train: false, or do not "
        "match it",
    )
    trained = [path for path in adapter.int8_kernels(owner) if parts[owner[path]].train]
    require(
        not trained,
        f"adapter.base=int8 is for frozen matrices, but optimizer.parts"
        f".{owner[trained[0]] if trained else ''} trains {shorten(trained)}; freeze it by train: "
        "false, or set adapter.base to compute",
    )


def split(params: Params, parts: Mapping[str, PartConfig]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters by path -> (trainable, frozen); together they hold every path once."""
    owner = assign(params, parts)
    trainable = {path: leaf for path, leaf in params.items() if parts[owner[path]].train}
    frozen = {path: leaf for path, leaf in params.items() if path not in trainable}
    return trainable, frozen


def merge(trainable: Params, frozen: Params) -> dict[str, Any]:
    """(trainable, frozen) -> all parameters. Raises ValueError if a path is in both."""
    if both := sorted(trainable.keys() & frozen.keys()):
        raise ValueError(f"trainable and frozen both hold {shorten(both)}")
    return {**trainable, **frozen}


def shorten(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more ({len(items)} in all)" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def owner_of(path: str, parts: Mapping[str, PartConfig]) -> str:
    """The trained part that claims a trainable parameter.

    Raises:
        ValueError: none does, or more than one.
    """
    # not `assign`: only the trainable parameters are known here; frozen parts claim none of them
    names = _claimants(path, parts)
    if len(names) != 1 or not parts[names[0]].train:
        raise ValueError(
            f"{path}: claimed by {names}, expected exactly one trained part; "
            "split the parameters first"
        )
    return names[0]


def _claimants(path: str, parts: Mapping[str, PartConfig]) -> list[str]:
    if is_adapter(path):
        return [PART] if PART in parts else []
    return [
        name
        for name, part in parts.items()
        if matches(part.match, path, f"optimizer.parts.{name}.match")
    ]
