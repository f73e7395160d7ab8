"""Rotary positions in Hugging Face's `config.json`, in the words of every version.

transformers 5 writes `rope_parameters`; before, it was `rope_theta` and `rope_scaling` (with `type`
or `rope_type`). Version 4 ignores the first, version 5 lets `rope_scaling` replace it whole: where
both are there, they must say the same.
"""

from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.common.fields import REQUIRED, Fields
from mllm_jax.config.model import RopeConfig

DEFAULT_THETA = 10000.0  # LlamaConfig
STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
KNOWN = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *STRETCH}
THETA = (1.0, 1e12)  # bounds


def read_rope(get: Fields) -> RopeConfig:
    """The rotary settings of a LlamaConfig.

    Raises:
        ConfigError: other scalings, or two places that say different things.
    """
    theta = get.number("rope_theta", None, *THETA)
    _whole_heads(get)
    read = {
        name: _read(get.section(name), theta)
        for name in ("rope_parameters", "rope_scaling")
        if get.tree.get(name) not in (None, {})
    }
    if not read:
        return RopeConfig(theta=DEFAULT_THETA if theta is None else theta)
    first, *rest = read.values()
    require(
        all(other == first for other in rest),
        f"{get.location}: rope_scaling and rope_parameters contradict each other "
        f"({_words(read['rope_scaling']) if rest else ''}, {_words(first)}); remove the wrong one",
    )
    require(
        theta is None or theta == first.theta,
        f"{get.location}: rope_theta={theta!r} and {next(iter(read))}.rope_theta={first.theta!r} "
        "contradict each other; remove the wrong one",
    )
    return first


def _read(get: Fields, theta: float | None) -> RopeConfig:
    """One section; `theta` is the value beside it."""
    kind = _kind(get)
    unknown = sorted(set(get.tree) - KNOWN)
    require(
        not unknown,
        f"{get.location}: {', '.join(unknown)[:200]} not supported; allowed are "
        f"{', '.join(sorted(KNOWN))}",
    )
    beside = DEFAULT_THETA if theta is None else theta
    base = get.number("rope_theta", beside, *THETA)
    _whole_heads(get)
    if kind == "default":
        return RopeConfig(theta=base)
    missing = [name for name in STRETCH if name not in get]
    require(not missing, f"{get.location}: rope_type=llama3 without {', '.join(missing)}")
    factor, low, high = (get.number(name, REQUIRED, 1e-3, 1e6) for name in STRETCH[:3])
    require(
        low < high,
        f"{get.location}: low_freq_factor={low!r} must be below high_freq_factor={high!r}",
    )
    return RopeConfig(base, "llama3", factor, low, high, get.whole(STRETCH[3], REQUIRED, 1))


def _kind(get: Fields) -> str:
    new, old = (get.text(name, None) for name in ("rope_type", "type"))
    require(
        new is None or old is None or new == old,
        f"{get.location}: rope_type={new!r} and type={old!r} contradict each other",
    )
    kind = new or old or "default"
    if kind not in ("default", "llama3"):
        get.refuse("rope_type", kind, "default or llama3")
    return kind


def _whole_heads(get: Fields) -> None:
    factor = get.number("partial_rotary_factor", 1.0)
    if factor != 1.0:
        get.refuse("partial_rotary_factor", factor, "1: only whole heads are rotated here")


def _words(rope: RopeConfig) -> str:
    scaled = "" if rope.kind == "default" else f" x {rope.factor:g}"
    return f"{rope.kind}{scaled} with theta {rope.theta:g}"


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The fields of a LlamaConfig, for transformers 5 and 4."""
    scaling = None
    if rope.kind == "llama3":
        numbers = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_length)
        scaling = {"rope_type": "llama3", **dict(zip(STRETCH, numbers, strict=True))}
    return {
        "rope_parameters": {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})},
        "rope_theta": rope.theta,  # this and the next: for transformers 4
        "rope_scaling": scaling,
    }
