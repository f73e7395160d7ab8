"""Reads a harness's generation arguments: how long, how random, and where an answer is cut.

    {"until": ["\\n\\n"], "max_gen_toks": 64, "do_sample": False, "temperature": 0.0}   lm-eval
    {"until": "\\n", "max_new_tokens": 16, "temperature": 0, "num_beams": 1}            lmms-eval

What would change the answers and is not supported is refused by its name.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, closest, quoted, require

LIMIT = 256  # tokens of an answer where a task states none, as lm-eval
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
READ = (*LENGTHS, "until", "do_sample", "temperature")
# values that say what is done anyway
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "use_cache": (None, True),
}
OF_DRAWS = ("top_p", "top_k", "min_p")  # say nothing about the likeliest token
# LLaVA's programs alone read it; how ours lays images out is part of the model
UNREAD = ("image_aspect_ratio",)


class Decoding(NamedTuple):
    """How an answer is made."""

    max_new_tokens: int
    temperature: float  # 0: the likeliest token every time
    until: tuple[str, ...]  # an answer ends before the first of these


def decoding(arguments: Mapping[str, Any], name: str, limit: int = LIMIT) -> Decoding:
    """The generation arguments of a request.

    Draws need `do_sample`, or a temperature above 0 where that is not stated.

    Args:
        arguments: of the harness.
        name: what messages call the task.
        limit: tokens of an answer where the arguments state none.

    Raises:
        ConfigError: an unknown argument, or a value that is not supported.
    """
    draws, temperature = _draws(arguments, name)
    for key, value in arguments.items():
        if key in READ or key in UNREAD or (key in OF_DRAWS and not draws):
            continue
        if key not in NEUTRAL:
            near = closest(key, (*READ, *NEUTRAL))
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(
                f"{name}: generation argument {quoted(key, 40)}={quoted(value, 40)} is not known; "
                f"{hint}known are {', '.join(READ)}"
            )
        require(
            value in NEUTRAL[key],
            f"{name}: generation argument {key}={quoted(value, 40)} is not supported; leave it "
            f"out, or give {NEUTRAL[key][-1]}",
        )
    return Decoding(_length(arguments, name, limit), temperature, _until(arguments, name))


def cut(text: str, until: tuple[str, ...]) -> str:
    """The text before the first of some strings."""
    return text[: min((at for one in until if (at := text.find(one)) >= 0), default=None)]


def _draws(arguments: Mapping[str, Any], name: str) -> tuple[bool, float]:
    stated, temperature = arguments.get("do_sample"), arguments.get("temperature")
    require(
        stated is None or isinstance(stated, bool),
        f"{name}: generation argument do_sample={quoted(stated, 40)} is not true or false",
    )
    number = 1.0 if temperature is None else temperature
    require(
        isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < math.inf,
        f"{name}: generation argument temperature={quoted(temperature, 40)} is not a number of 0 "
        "or more",
    )
    draws = bool(stated) if stated is not None or temperature is None else number > 0
    return draws and number > 0, float(number) if draws else 0.0


def _length(arguments: Mapping[str, Any], name: str, limit: int) -> int:
    key = next((key for key in LENGTHS if arguments.get(key) is not None), None)
    length = limit if key is None else arguments[key]
    require(
        isinstance(length, int) and not isinstance(length, bool) and length > 0,
        f"{name}: generation argument {key}={quoted(length, 40)} is not a number of 1 or more",
    )
    return length


def _until(arguments: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = arguments.get("until")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    require(
        isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts),
        f"{name}: generation argument until={quoted(value, 60)} is not a text or a list of texts",
    )
    return tuple(one for one in texts if one)
