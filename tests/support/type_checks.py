"""Checks types without what only shapes need: jaxtyping's hook costs tests a quarter of their time.

pytest's `--jaxtyping-packages` decorates every function of the package with `jaxtyping.jaxtyped`,
which binds the arguments of each call by `inspect` and checks them twice, so that a letter of a
shape means the same in all of them. Most functions have no shapes: there beartype alone refuses
the same (tests of the training loop: 36 s of processor time instead of 48).
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

_check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def install() -> None:
    """Puts `typed` where the hook takes its decorator from; before the package is imported."""
    jaxtyping.jaxtyped = typed


def typed(*, typechecker: Any) -> Callable[[Any], Any]:
    """The decorator: beartype for functions and dataclasses without shapes, else jaxtyping's."""

    def decorate(target: Any) -> Any:
        if inspect.isfunction(target) and not _shaped(target):
            return _check(target)
        if _is_dataclass(target) and not _shaped(target.__init__):
            target.__init__ = _check(target.__init__)
            return target
        return jaxtyped(target, typechecker=typechecker)

    return decorate


def _is_dataclass(target: Any) -> bool:
    return inspect.isclass(target) and dataclasses.is_dataclass(target)


def _shaped(function: Any) -> bool:
    """Whether an annotation holds a shape."""
    return any(_has_shape(hint) for hint in function.__annotations__.values())


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, (str, typing.ForwardRef, typing.TypeVar)):
        return True  # it may
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    inner = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(_has_shape(part) for part in inner)
