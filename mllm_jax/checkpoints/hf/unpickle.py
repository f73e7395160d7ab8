"""Reads a pickle of weights without pickle's machinery: nothing in it is imported or run.

A pickle is a program for a small stack machine. This one executes the instructions that torch
writes for tensors, dicts, lists, tuples, texts and numbers, and refuses every other instruction and
every name that the caller does not list. Names are looked up in the caller's table, never imported,
so a hostile file can cause a refusal and nothing else.

Instructions and their arguments: the standard library's `pickletools`.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mllm_jax.common.errors import ConfigError, quoted

PICKLE_BYTES = 2**21  # about 14,000 tensors; any such pickle ends within seconds and 200 MB
INTEGER_BITS = 64  # with the sign, as torch counts
NAMES = "stringnl_noescape_pair"  # argument of an instruction: a module and a name, a line each
INSTRUCTIONS = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


@dataclass(frozen=True)
class Function:
    """A listed name that a pickle may call. `call` takes the arguments, and checks them."""

    call: Callable[[tuple[Any, ...]], Any]


class Ordered(dict):
    """What `collections.OrderedDict()` in a pickle becomes."""


class Unpickler:
    """Executes one pickle.

    Args:
        where: names the pickle, for messages.
        names: "module name" -> what the name stands for: a `Function`, or any other value.
        persistent: turns what the pickle says about an object outside of it into the object.
    """

    def __init__(self, where: str, names: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self._where, self._names, self._persistent = where, names, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # one stack for every mark that is open
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """The value that the pickle describes.

        Raises:
            ConfigError: an instruction or a name that is not listed, a pickle that is truncated,
                malformed or larger than PICKLE_BYTES.
        """
        if len(data) > PICKLE_BYTES:
            self._refuse(f"a pickle of {len(data):,} bytes; {PICKLE_BYTES:,} are allowed")
        file = io.BytesIO(data)
        while code := file.read(1):
            instruction = INSTRUCTIONS.get(code)
            if instruction is None:
                self._refuse(f"byte {quoted(code)} is not an instruction of pickle")
            step = STEPS.get(instruction.name)
            if step is None:
                self._refuse(f"instruction {instruction.name}, which weights do not need")
            try:
                argument = _argument(instruction, file)
            except ValueError as error:  # includes text that is not UTF-8
                raise ConfigError(
                    f"{self._where}: truncated or malformed at byte {file.tell()}"
                ) from error
            if instruction.name == "STOP":
                return self._end()
            step(self, argument)
        self._refuse("truncated: the pickle does not end")

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self._where}: {reason}")

    def _end(self) -> Any:
        value = self._pop()
        if self._stack or self._below:
            self._refuse("malformed: values are left over at its end")
        return value

    # ------------------------------------------------------------------------- stack and memo

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            self._refuse("malformed: an instruction without its value")
        return self._stack.pop()

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._below:
            self._refuse("malformed: an instruction without its mark")
        values, self._stack = self._stack, self._below.pop()
        return values

    def _put(self, number: int) -> None:
        self._push(value := self._pop())
        self._memo[number] = value

    def _memoize(self, _: None) -> None:
        self._put(len(self._memo))

    def _get(self, number: int) -> None:
        if number not in self._memo:
            self._refuse(f"malformed: value {number} is used before it is there")
        self._push(self._memo[number])

    # --------------------------------------------------------------------------------- values

    def _integer(self, value: int) -> None:
        if value.bit_length() >= INTEGER_BITS:
            self._refuse(f"{quoted(value)} does not fit into {INTEGER_BITS} bits")
        self._push(value)

    def _tuple(self, values: list[Any]) -> None:
        self._push(tuple(values))

    def _last(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _append(self, values: list[Any]) -> None:
        target = self._pop()
        if type(target) is not list:
            self._refuse(f"appends to {kind(target)}, which is not a list")
        target += values
        self._push(target)

    def _set_items(self, values: list[Any]) -> None:
        target = self._pop()
        if not isinstance(target, dict) or len(values) % 2:
            self._refuse(f"puts {len(values)} keys and values into {kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):  # others may be slow to hash, or too deep
                self._refuse(f"a key that is {kind(key)}; texts and integers are allowed")
            if key in target:
                self._refuse(f"key {quoted(key)} is there twice")
            target[key] = value
        self._push(target)

    # ---------------------------------------------------------------------------------- names

    def _global(self, pair: str) -> None:
        """`pair` is "module name", as the instruction's argument comes."""
        if pair not in self._names:
            self._refuse(
                f"asks for {quoted(pair.replace(' ', '.'))}, which weights do not need; "
                "nothing was run; save model.state_dict() alone, where the file was made"
            )
        self._push(self._names[pair])

    def _stack_global(self, _: None) -> None:
        pair = self._last(2)
        if any(type(text) is not str for text in pair):
            self._refuse("malformed: a name that is not text")
        self._global(" ".join(pair))

    def _instance(self, pair: str) -> None:
        """A way to call a name that only the oldest pickles have."""
        self._global(pair)
        self._refuse("instruction INST, which weights do not need")

    def _reduce(self, _: None) -> None:
        function, arguments = self._last(2)
        if not isinstance(function, Function) or type(arguments) is not tuple:
            self._refuse(f"calls {kind(function)}, which is not a function")
        self._push(function.call(arguments))

    def _build(self, _: None) -> None:
        """Attributes: a state dict's `_metadata`, versions of modules, is all there is."""
        target, attributes = self._last(2)
        if not isinstance(target, Ordered) or type(attributes) is not dict:
            self._refuse(f"sets attributes of {kind(target)}; weights need those of dicts only")
        self._push(target)

    def _persist(self, _: None) -> None:
        self._push(self._persistent(self._pop()))


def kind(value: Any) -> str:
    """What a value is, for messages: "a tuple"."""
    name = type(value).__name__.lower()
    return "None" if value is None else f"a{'n' if name[0] in 'aeiou' else ''} {name}"


Step = Callable[[Unpickler, Any], None]


def _constant(value: Any) -> Step:
    return lambda machine, _: machine._push(value)


def _nothing(machine: Unpickler, _: Any) -> None:
    """The protocol's version, and the length of a frame, which is for buffering."""


def _argument(instruction: pickletools.OpcodeInfo, file: io.BytesIO) -> Any:
    """What follows an instruction. Raises ValueError where it is truncated or malformed."""
    if instruction.arg is None:
        return None
    if instruction.arg.name != NAMES:
        return instruction.arg.reader(file)
    # as they are: `pickletools` undoes escapes in them, which pickle itself does not
    lines = [file.readline() for _ in range(2)]
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError("a name without the end of its line")
    return " ".join(line[:-1].decode() for line in lines)


STEPS: dict[str, Step] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
    "MARK": Unpickler._mark,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), Unpickler._integer),
    **dict.fromkeys(("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), Unpickler._push),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "TUPLE": lambda machine, _: machine._tuple(machine._since_mark()),
    "TUPLE1": lambda machine, _: machine._tuple(machine._last(1)),
    "TUPLE2": lambda machine, _: machine._tuple(machine._last(2)),
    "TUPLE3": lambda machine, _: machine._tuple(machine._last(3)),
    "APPEND": lambda machine, _: machine._append(machine._last(1)),
    "APPENDS": lambda machine, _: machine._append(machine._since_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._last(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Unpickler._put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Unpickler._get),
    "MEMOIZE": Unpickler._memoize,
    "GLOBAL": Unpickler._global,
    "INST": Unpickler._instance,
    "STACK_GLOBAL": Unpickler._stack_global,
    "REDUCE": Unpickler._reduce,
    "BUILD": Unpickler._build,
    "BINPERSID": Unpickler._persist,
}
