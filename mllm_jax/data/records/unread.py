"""Finds keys of rows, turns and typed parts that nothing reads; refuses them if content is lost.

Other tools write the same conversations under other names; read as text alone,
their pictures, system texts or loss masks would be gone without a word. So a key that is known to
carry such a thing ends the record, with the way to write it here, and every other one is counted:

    {"id": "1", "source": "wiki", "text": "Kaixo."}    ->  ("source",)
    {"id": "1", "images": ["a.png"], "messages": ...}  ->  RecordError "unread_key"

`data.streams.*.ignore` lists keys that are knowingly left aside: `weight` at all levels, or
`turn.weight` and `part.detail` at one.
"""

import re
from collections.abc import Iterable
from typing import Any

from mllm_jax.common.errors import quoted
from mllm_jax.data.record_errors import RecordError

_NAMES: dict[str, tuple[str, ...]] = {
    # LLaMA-Factory, ms-swift and Qwen: images, videos, audios; ShareGPT-4V and others: the rest
    "pictures": (
        *("image", "images", "image_path", "image_paths", "image_file", "image_files"),
        *("image_list", "img", "imgs", "img_path", "picture", "pictures"),
    ),
    "addresses": ("image_url", "image_urls", "img_url"),
    "media": ("video", "videos", "video_path", "audio", "audios", "audio_path", "speech"),
    # LLaMA-Factory, Alpaca-like sets, OpenOrca
    "system": ("system", "system_prompt", "system_message"),
    # OpenAI's chat format, LLaMA-Factory
    "tools": ("tools", "functions", "tool_calls", "function_call"),
    # ms-swift: loss, loss_scale; OpenAI: weight; Axolotl: train, training, train_detail, ...
    "loss": (
        *("loss", "loss_mask", "loss_scale", "loss_weight", "weight", "mask"),
        *("train", "training", "train_detail", "train_on_turn", "trainable"),
    ),
    # DeepSeek, Qwen, gpt-oss
    "thought": ("reasoning_content", "reasoning", "thinking"),
    # ms-swift, LLaMA-Factory
    "history": ("history",),
}
_OF_ALL = ("pictures", "addresses", "media")
_HINTS = {
    "pictures": "pictures are read from `image` alone; write them there, or name the column by "
    "columns: {image: KEY}",
    "addresses": "pictures are read from files or bytes; fetch it, and write its path under image",
    "media": "films and sounds cannot be trained on",
    "system": "write it as the first turn, of role system",
    "tools": "calls of tools are not trained; write them into the turns' texts",
    "loss": "every answer is trained in full; end the record before an answer that must not be",
    "thought": "write it into the answer's own text",
    "history": "write the earlier rounds as turns",
    "bytes": "it holds a picture or a sound; pictures are read by columns: {image: KEY}",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names}
_KINDS_OF_ALL = {name: kind for name, kind in _KINDS.items() if kind in _OF_ALL}
_PART = ("path", "url", "base64", "bytes", "data", "file")  # of a typed image, beside the above
_IN_TURN = "a record's pictures belong under its own `image`, in their order"
# how JPEG, PNG, GIF, RIFF (WebP, WAV), TIFF, Ogg, FLAC and MP3 begin
_MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"OggS",
    b"fLaC",
    b"ID3",
)
_BEGIN = "key "
_KEY = re.compile(rf"(turn \d+: )?(part [\w ]+: )?{_BEGIN}'([\w.-]+)'")


class Unread:
    """What finds the unread keys of one stream's rows."""

    def __init__(self, read: Iterable[str], ignore: Iterable[str], converses: bool):
        """Takes names.

        Args:
            read: columns that are read.
            ignore: keys that are knowingly left aside.
            converses: the layout has questions and answers of several turns, so that keys about
                turns matter; captions and documents have none.
        """
        self._ignored = frozenset(ignore)
        self._expected = frozenset(read) | self._ignored
        self._known = _KINDS if converses else _KINDS_OF_ALL
        self._converses = converses

    def of_row(self, row: dict[str, Any], has_image: bool) -> list[str]:
        """Names of unread columns that hold something. Raises RecordError "unread_key"."""
        if row.keys() <= self._expected:  # nearly always
            return []
        names = []
        for name, value in row.items():
            if name in self._expected or _is_empty(value) or _is_wrapping(name, value, row):
                continue
            kind = self._known.get(name)
            if has_image and self._is_origin(kind, value):
                kind = None
            if kind == "loss" and _says_yes(value):
                continue
            if kind is None and _is_media(value):
                kind = "bytes"
            if kind is not None:
                raise _unread(name, _HINTS[kind].replace("KEY", name))
            names.append(_short(name))
        return names

    def _is_origin(self, kind: str | None, value: Any) -> bool:
        """Where the picture that is read came from: an address, or a caption's file name."""
        is_name = kind == "pictures" and isinstance(value, str) and not self._converses
        return kind == "addresses" or is_name

    def of_turns(self, turns: Any, read: tuple[str, str]) -> list[str]:
        """Names of unread keys of turns and of their typed parts, once per occurrence.

        Args:
            turns: as stored; what is malformed is left to `records`.
            read: keys of a turn that are read: of who speaks, and of what is said.

        Raises:
            RecordError: "unread_key".
        """
        names: list[str] = []
        for number, turn in enumerate(turns if isinstance(turns, list) else [], start=1):
            if not isinstance(turn, dict):
                continue
            if len(turn) > 2 or turn.keys() != set(read):
                names += self._of_turn(turn, read, number)
            content = turn.get("content")
            if isinstance(content, list):
                for part in content:
                    names += self._of_part(part, number)
        return names

    def _of_turn(self, turn: dict[str, Any], read: tuple[str, str], number: int) -> list[str]:
        names = []
        for name, value in turn.items():
            if name in read or _is_empty(value) or self._ignored & {name, f"turn.{name}"}:
                continue
            kind = _KINDS.get(name)
            answers = turn.get(read[0]) in ("assistant", "gpt")
            if kind == "loss" and _says_yes(value) == answers:
                continue
            if kind is not None:
                hint = _IN_TURN if kind in ("pictures", "addresses") else _HINTS[kind]
                raise _unread(name, hint, f"turn {number}: ")
            names.append(f"turn.{_short(name)}")
        return names

    def _of_part(self, part: Any, number: int) -> list[str]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image") or part.keys() <= {"type", kind} - {"image"}:
            return []  # another type is refused by `records`
        names = []
        for name, value in part.items():
            if name in ("type", *(("text",) if kind == "text" else ())):
                continue
            if _is_empty(value) or self._ignored & {name, f"part.{name}"}:
                continue
            if name in _KINDS_OF_ALL or name in _PART or name == "text":
                raise _unread(name, _IN_TURN, f"turn {number}: part of type {kind}: ")
            names.append(f"part.{_short(name)}")
        return names


def keys_in(reasons: Iterable[str]) -> list[str]:
    """The keys that reasons of faults "unread_key" name, in order and once."""
    matches = (_KEY.match(reason) for reason in reasons)
    names = [
        ("part." if match[2] else "turn." if match[1] else "") + match[3]
        for match in matches
        if match
    ]
    return list(dict.fromkeys(names))


def _unread(name: str, hint: str, location: str = "") -> RecordError:
    return RecordError("unread_key", f"{location}{_BEGIN}{quoted(name, 60)} is not read: {hint}")


def _is_empty(value: Any) -> bool:
    """Nothing is lost: null, as tables have it for every column, "", [], {} or "[]"."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    size = getattr(value, "size", None)  # of a numpy array
    return size == 0 or (isinstance(value, list | tuple | dict | bytes) and not value)


def _says_yes(value: Any) -> bool:
    """Whether it says what holds here anyway: this is trained, with weight 1."""
    return isinstance(value, bool | int | float) and value == 1


def _is_wrapping(name: str, value: Any, row: dict[str, Any]) -> bool:
    """webdataset's and pandas' own columns, and a JSON member whose fields are columns too."""
    if name.startswith("__") and name.endswith("__"):
        return True
    return name == "json" and isinstance(value, dict) and value.keys() <= row.keys()


def _is_media(value: Any) -> bool:
    """Bytes of a picture or a sound, also as the `datasets` library stores them."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        return "bytes" in value and value.keys() <= {"bytes", "path"}
    return isinstance(value, bytes) and (value.startswith(_MAGIC) or value[4:8] == b"ftyp")


def _short(name: str) -> str:
    return name if len(name) <= 60 and name.isprintable() else quoted(name, 60)
