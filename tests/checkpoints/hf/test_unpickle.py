"""The reader of pickles: values as pickle's own, every other name and instruction refused."""

import builtins
import contextlib
import functools
import operator
import os
import pickle
import pickletools
import time
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_jax.checkpoints.hf.unpickle import (
    PICKLE_BYTES,
    STEPS,
    Function,
    Ordered,
    Unpickler,
)
from mllm_jax.common.errors import ConfigError
from tests.support.torch_files import ORDERED, PROTO, STOP, call, name, value

NAMES = {"collections OrderedDict": Function(lambda arguments: Ordered()), "torch uint16": "U16"}


def load(data: bytes) -> Any:
    def persistent(identity: Any) -> Any:
        raise ConfigError(f"persistent {type(identity)}")

    return Unpickler("weights: data.pkl", NAMES, persistent).load(data)


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(data)
    message = str(caught.value)
    assert message.startswith("weights: data.pkl: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


class Reduced:
    """Pickles as a call: what a hostile file holds."""

    def __init__(self, *call: Any):
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text()
keys = st.text() | st.integers(-(2**62), 2**62)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from([2, 3, 4, 5]))
def test_values_are_those_of_pickle(x: Any, protocol: int) -> None:
    data = pickle.dumps(x, protocol)
    assert repr(load(data)) == repr(pickle.loads(data))  # repr: NaN is equal, 1 and True are not


def test_an_ordered_dict_is_a_dict_without_its_attributes() -> None:
    x: Any = OrderedDict(b=1, a=2)
    x._metadata = {"": {"version": 1}}
    for protocol in (2, 4):
        found = load(pickle.dumps(x, protocol))
        assert list(found.items()) == [("b", 1), ("a", 2)]
        assert not hasattr(found, "_metadata")


HOSTILE = {
    "posix.system": Reduced(os.system, ("touch pickled_ran",)),
    "builtins.eval": Reduced(eval, ("open('pickled_ran', 'w')",)),
    "builtins.exec": Reduced(exec, ("open('pickled_ran', 'w')",)),
    "builtins.getattr": Reduced(getattr, (os, "system")),
    "builtins.__import__": Reduced(builtins.__import__, ("os",)),
    "functools.partial": functools.partial(os.system, "touch pickled_ran"),
    "operator.attrgetter": operator.attrgetter("system"),
    "builtins.bytearray": bytearray(9),
    "builtins.set": {"a"},
    "tests.checkpoints.hf.test_unpickle.Reduced": Reduced,
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("asked", HOSTILE)
def test_other_names_are_refused_by_name(
    asked: str, protocol: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if asked in ("builtins.getattr",):
        data = PROTO + call(name("builtins", "getattr"), value("x"), "upper") + STOP
    else:
        data = pickle.dumps({"weight": HOSTILE[asked]}, protocol)
    message = refused(data)
    old = asked.replace("builtins", "__builtin__")
    assert (
        f"asks for {asked!r}" in message
        or f"asks for {old!r}" in message
        or (asked == "builtins.set" and "EMPTY_SET" in message)
    )
    assert not list(tmp_path.iterdir())


SYSTEM = name("os", "system")
ATTACKS = {
    "a name from two texts": (value("os") + value("system") + b"\x93", "'os.system'"),
    "from texts of the memo": (
        value("os") + b"q\x00" + value("system") + b"q\x01" + b"00h\x00h\x01\x93",
        "instruction POP",
    ),
    "from the memo alone": (
        value(("os", "system")) + b"q\x02" + b"h\x02" + b"\x93",
        "a name that is not text",
    ),
    "an attribute of a listed name": (
        value("collections") + value("OrderedDict.fromkeys") + b"\x93",
        "'collections.OrderedDict.fromkeys'",
    ),
    "a dotted module": (name("collections.OrderedDict", "fromkeys"), "OrderedDict.fromkeys'"),
    "a name that is not used": (SYSTEM + value(1), "'os.system'"),
    "a name put aside": (SYSTEM + b"q\x00", "'os.system'"),
    "INST": (b"(" + value("ls") + b"ios\nsystem\n", "'os.system'"),
    "INST of a listed name": (b"(icollections\nOrderedDict\n", "instruction INST"),
    "OBJ": (b"(" + name("collections", "OrderedDict") + b"o", "instruction OBJ"),
    "NEWOBJ": (name("collections", "OrderedDict") + b")\x81", "instruction NEWOBJ"),
    "NEWOBJ_EX": (name("collections", "OrderedDict") + b")}\x92", "instruction NEWOBJ_EX"),
    "EXT1": (b"\x82\x01", "instruction EXT1"),
    "EXT2": (b"\x83\x01\x00", "instruction EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00", "instruction EXT4"),
    "PERSID": (b"Pstorage\n", "instruction PERSID"),
    "STRING": (b"S'a\\x41'\n", "instruction STRING"),
    "LONG of many digits": (b"L" + b"9" * 5000 + b"L\n", "instruction LONG"),
    "LONG4": (b"\x8b\x04\x00\x00\x00\x01\x00\x00\x00", "instruction LONG4"),
    "DUP": (value(1) + b"2", "instruction DUP"),
    "BYTEARRAY8": (b"\x96" + b"\xff" * 8, "instruction BYTEARRAY8"),
    "NEXT_BUFFER": (b"\x97", "instruction NEXT_BUFFER"),
    "an integer of 65 bits": (value(2**63), "does not fit into 64 bits"),
    "a number that is called": (value(1) + b")R", "calls an int"),
    "a format that is called": (name("torch", "uint16") + b")R", "calls a str"),
    "a call without a tuple": (name("collections", "OrderedDict") + b"NR", "calls a function"),
    "__setstate__ of a dict": (value({}) + value({"__setstate__": 1}) + b"b", "attributes of a d"),
    "attributes of a number": (value(1) + value({}) + b"b", "attributes of an int"),
    "attributes that are a tuple": (ORDERED + value(({}, {"__class__": 1})) + b"b", "attributes"),
    "a key that is a tuple": (b"}" + value((1,)) + b"Ns", "a key that is a tuple"),
    "a key that is a list": (b"}]Ns", "a key that is a list"),
    "a key twice": (b"}(" + value("a") + b"N" + value("a") + b"Nu", "'a' is there twice"),
    "a key without a value": (b"}(" + value("a") + b"u", "puts 1 keys and values into a dict"),
    "items of a list": (b"](" + value("a") + b"Nu", "into a list"),
    "items of a number": (value(1) + b"NNs", "into an int"),
    "appends to a tuple": (b")Na", "appends to a tuple"),
    "appends to None": (b"N(Ne", "appends to None"),
    "no value": (b"\x85", "an instruction without its value"),
    "a value behind the mark": (value(1) + b"(\x85", "an instruction without its value"),
    "no mark": (value(1) + b"t", "an instruction without its mark"),
    "an empty memo": (b"h\x07", "value 7 is used before it is there"),
    "two results": (b"NN", "values are left over"),
    "an open mark": (b"(N", "values are left over"),
    "nothing": (b"", "an instruction without its value"),
    "a byte of no instruction": (b"\xff", "is not an instruction"),
    "a text that is cut": (b"X\xff\xff\xff\x7fabc", "truncated or malformed"),
    "a text that is not UTF-8": (b"X\x01\x00\x00\x00\xff", "truncated or malformed"),
    "a text of -1 bytes": (b"X\xff\xff\xff\xff", "truncated or malformed"),
    "a name that is cut": (b"cos\nsys", "truncated or malformed"),
    "a name in Latin-1": (b"cos\n\xe9\n", "truncated or malformed"),
    "an integer that is cut": (b"\x8a\x08\x01", "truncated or malformed"),
    "a persistent number": (value(7) + b"Q", "persistent <class 'int'>"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(attack: str) -> None:
    instructions, message = ATTACKS[attack]
    if attack == "a persistent number":
        with pytest.raises(ConfigError, match=message):
            load(PROTO + instructions + STOP)
    else:
        assert message in refused(PROTO + instructions + STOP)


@pytest.mark.parametrize("count", range(0, 60, 7))
def test_truncated(count: int) -> None:
    whole = pickle.dumps({"a": (1, 2.0, [None, "text of a state dict"])}, 2)
    assert count < len(whole)
    assert "truncated" in refused(whole[:count])


BOMBS = {
    "tuples in tuples": PROTO + b"N" + b"\x85" * 30_000 + STOP,
    "tuples of themselves": PROTO + b"N" + b"".join(
        b"r" + n.to_bytes(4, "little") + b"j" + n.to_bytes(4, "little") + b"\x86"
        for n in range(30_000)
    ) + STOP,
    "lists of one another": PROTO + b"]q\x00" + b"(" + b"h\x00" * 30_000 + b"e" + STOP,
    "dicts": PROTO + b"(" + b"}" * 30_000 + b"t" + STOP,
    "marks": PROTO + b"(" * 30_000 + STOP,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end_in_time(bomb: str) -> None:
    data = BOMBS[bomb]
    assert len(data) <= PICKLE_BYTES
    start = time.process_time()  # of a small part of what a pickle may hold, with types checked
    if bomb == "marks":
        assert "without its value" in refused(data)
    else:
        load(data)
    assert time.process_time() - start < 20


def test_larger_pickles_are_not_begun() -> None:
    assert f"{PICKLE_BYTES:,} are allowed" in refused(b"N" * (PICKLE_BYTES + 1))


def test_an_instruction_is_executed_or_refused() -> None:
    """Whatever this Python's pickle can do: what is not in the list of steps is refused."""
    known = {op.name for op in pickletools.opcodes}
    assert STEPS.keys() <= known
    for op in pickletools.opcodes:
        if op.name not in STEPS:
            assert f"instruction {op.name}, which" in refused(PROTO + op.code.encode("latin-1"))


BYTES = b"N]})(teusaRbQ\x85\x86\x93\x94"
small = st.sampled_from(
    [
        *(bytes([code]) for code in BYTES),
        *(b"q\x00", b"h\x00", b"K\x07"),
        *(value("a"), ORDERED, name("torch", "uint16")),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(small, max_size=40), st.binary(max_size=20))
def test_any_program_ends_with_a_value_or_a_refusal(program: list[bytes], rest: bytes) -> None:
    for data in (PROTO + b"".join(program) + STOP, b"".join(program) + rest, rest):
        with contextlib.suppress(ConfigError):
            load(data)
