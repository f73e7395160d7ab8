"""Every function of the package is type-checked in tests, its shapes too."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import jaxtyping
import pytest
from beartype import beartype
from jaxtyping import Array, Float

from mllm_jax.config.model import VisionConfig
from mllm_jax.models import layers
from tests.support.type_checks import typed

A, B = jnp.ones((2, 3)), jnp.ones(2)
Rows = Float[Array, "T D"]
checked = typed(typechecker=beartype)


@checked
def plain(x: int, *names: str) -> float | None:
    return None if names else x  # an int is not a float


@checked
def shaped(x: Rows, y: Float[Array, "D"] | None = None) -> Float[Array, "D"]:
    return x[0] if y is None else x[:, 0]


@checked
def nested(of: dict[str, Float[Array, "D"]], make: Callable[[], int]) -> None:
    """Shapes inside of other types."""


@checked
@dataclasses.dataclass(frozen=True)
class Plain:
    x: int


@checked
@dataclasses.dataclass(frozen=True)
class Shaped:
    x: Float[Array, "D"]
    y: Float[Array, "D"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: plain("1"),  # pyright: ignore
        lambda: plain(1, 2),  # pyright: ignore
        lambda: plain(1),
        lambda: shaped(B),
        lambda: shaped(A, B),  # D is 3 and 2
        lambda: shaped(A, jnp.ones(3)),  # the result has T
        lambda: nested({"a": A}, int),
        lambda: nested({"a": B}, 1),  # pyright: ignore
        lambda: Plain("1"),  # pyright: ignore
        lambda: Shaped(B, jnp.ones(3)),
    ],
)
def test_a_wrong_type_or_shape_never_passes(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_right_ones_pass():
    assert plain(1, "name") is None and Plain(1).x == 1
    assert shaped(A).shape == (3,) and Shaped(B, B).y is B
    nested({"a": B}, int)


def test_the_package_is_checked_so():
    with pytest.raises(jaxtyping.TypeCheckError):
        VisionConfig(width="8")  # pyright: ignore
    with pytest.raises(jaxtyping.TypeCheckError):
        layers.along_last(A, A)
