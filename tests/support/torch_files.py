"""Assembles files as `torch.save` writes them, and wrong ones, without torch.

write_file(path, PROTO + state_dict(a=tensor(shape=(2, 3))) + STOP, {"0": bytes(24)})
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROTO, STOP = b"\x80\x02", b"."
NAME = "archive"


def write_file(
    path: Path, pickle: bytes, storages: Mapping[str, bytes] | None = None, **entries: bytes
) -> Path:
    """A zip file of stored entries: the pickle, its storages, and `entries` such as byteorder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{NAME}/data.pkl", pickle)
        for name, data in entries.items():
            file.writestr(f"{NAME}/{name}", data)
        for key, data in (storages or {}).items():
            file.writestr(f"{NAME}/data/{key}", data)
    return path


def value(x: Any) -> bytes:
    """Instructions that push a value; bytes are instructions already."""
    if isinstance(x, bytes):
        return x
    if x is None or isinstance(x, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[x]
    if isinstance(x, int):
        size = x.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + x.to_bytes(size, "little", signed=True)
    if isinstance(x, float):
        return b"G" + struct.pack(">d", x)
    if isinstance(x, str):
        return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
    if isinstance(x, tuple):
        return b"(" + b"".join(map(value, x)) + b"t"
    if isinstance(x, list):
        return b"](" + b"".join(map(value, x)) + b"e"
    assert isinstance(x, dict), x
    return b"}(" + b"".join(value(k) + value(v) for k, v in x.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    """Instructions that push what a module calls so."""
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: Any) -> bytes:
    """Instructions that call a function."""
    return function + value(arguments) + b"R"


ORDERED = call(name("collections", "OrderedDict"))


def storage(
    kind: str = "FloatStorage", key: Any = "0", count: Any = 6, device: Any = "cpu"
) -> bytes:
    """Instructions that push the storage `data/KEY`."""
    return value(("storage", name("torch", kind), key, device, count)) + b"Q"


def tensor(
    store: bytes | None = None, offset: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1)
) -> bytes:
    """Instructions that push a tensor; default: all of storage 0, six float32 numbers."""
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, store or storage(), offset, shape, strides, False, ORDERED)


def state_dict(**tensors: Any) -> bytes:
    """Instructions that push an OrderedDict with `_metadata`, as a module's state_dict() is."""
    items = b"(" + b"".join(value(k) + value(v) for k, v in tensors.items()) + b"u"
    metadata = {"_metadata": ORDERED + b"(" + value("") + value({"version": 1}) + b"u"}
    return ORDERED + items + value(metadata) + b"b"
