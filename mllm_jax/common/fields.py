"""Reads the fields of a JSON object by type and range; every refusal is one line."""

import math
from typing import Any, TypeVar

from mllm_jax.common.errors import ConfigError, quoted, require

REQUIRED: Any = object()  # as a default: the field must be there
WHOLE = 2**31 - 1  # default upper bound of whole numbers

D = TypeVar("D")


class Fields:
    """One object of a file that another tool wrote. null counts as absent, as in transformers.

    Every reader takes the field's name and the value of an absent one; REQUIRED refuses that.
    """

    def __init__(self, location: str, tree: Any):
        """`location` names the file, and the section in it, for messages."""
        require(isinstance(tree, dict), f"{location}: expected an object, found {_kind(tree)}")
        self.location, self.tree = location, tree

    def __contains__(self, name: str) -> bool:
        return self.tree.get(name) is not None

    def whole(self, name: str, default: D, low: int = 0, high: int = WHOLE) -> int | D:
        """A whole number in [low, high]; 2.0 and true are not."""
        value = self._value(name, default)
        if value is default:
            return default
        if type(value) is not int or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def number(
        self, name: str, default: D, low: float = -math.inf, high: float = math.inf
    ) -> float | D:
        """A finite number in [low, high], as float."""
        value = self._value(name, default)
        if value is default:
            return default
        numeric = type(value) in (int, float) and abs(value) <= 1e300  # not NaN, not infinite
        if not numeric or not low <= value <= high:
            bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
            self.refuse(name, value, f"a number{bounds}")
        return float(value)

    def flag(self, name: str, default: D) -> bool | D:
        """true or false."""
        value = self._value(name, default)
        if value is not default and type(value) is not bool:
            self.refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: D, limit: int = 2**20) -> str | D:
        """Text of at most `limit` characters that UTF-8 can hold, without NUL."""
        value = self._value(name, default)
        if value is not default and not (is_text(value) and len(value) <= limit):
            self.refuse(name, value, "text")
        return value

    def choice(self, name: str, default: D, *allowed: Any) -> Any:
        """One of the `allowed` values, of the same type."""
        value = self._value(name, default)
        if value is default:
            return default
        if not any(type(value) is type(one) and value == one for one in allowed):
            self.refuse(name, value, " or ".join(map(repr, allowed)))
        return value

    def section(self, name: str, default: Any = REQUIRED) -> "Fields":
        """An object inside this one."""
        value = self._value(name, default)
        if not isinstance(value, dict):
            self.refuse(name, value, "an object")
        return Fields(f"{self.location} {name}", value)

    def items(self, name: str, default: D) -> list[Any] | D:
        """A list, its items unchecked."""
        value = self._value(name, default)
        if value is not default and not isinstance(value, list):
            self.refuse(name, value, "a list")
        return value

    def expect(self, name: str, allowed: Any) -> None:
        """Refuses any value but `allowed`; absent counts as `allowed`."""
        value = self._value(name, allowed)
        if type(value) is not type(allowed) or value != allowed:
            raise ConfigError(
                f"{self.location}: {name}={quoted(value)} is not supported; only {allowed!r} is"
            )

    def refuse(self, name: str, value: Any, allowed: str) -> None:
        """Raises ConfigError: the field, its value, what is allowed."""
        raise ConfigError(f"{self.location}: {name}={quoted(value)}; expected {allowed}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.tree.get(name)
        if value is None:
            require(default is not REQUIRED, f"{self.location}: {name} is missing")
            return default
        return value


def is_text(value: Any) -> bool:
    """Whether this is text that UTF-8 can hold, without NUL: JSON may bring half surrogates."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
