"""Files of conversations -> records, checked as a whole before anything is trained.

First stop on the way of the data. Two shapes of a record are read, as LLaVA writes them, from .json
(one list) or .jsonl (a record a line):

    {"id": "7", "image": "a.png", "language": "eu",
     "conversations": [{"from": "human", "value": "<image>\\nZer da?"},
                       {"from": "gpt", "value": "Katu bat."}]}
    {"id": "8", "image": ["a.png", "b.png"], "language": "eu",
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                               {"type": "text", "text": "Zer da?"}]},
                  {"role": "assistant", "content": "Bi katu."}]}

In a user's *string*, every `<image>` stands for the next image. Everywhere else (answers, system
texts, typed text parts) text is text, whatever it looks like.
"""

import difflib
import enum
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mllm_jax.config import StreamConfig
from mllm_jax.data import images as image_files
from mllm_jax.data.json_files import read_objects
from mllm_jax.errors import ConfigError, require

MARK = "<image>"  # in a user's string: here stands an image
NAMED = 5  # refused records that a message names


class Mark(enum.Enum):
    """The place of an image among the parts of a turn."""

    IMAGE = "image"


IMAGE = Mark.IMAGE


class Turn(NamedTuple):
    """What one side says. Strings are literal text; images stand in user turns only."""

    role: str  # "system", "user" or "assistant"
    parts: tuple[str | Mark, ...]


class Record(NamedTuple):
    """One conversation: an optional system turn, then user and assistant in alternation."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]  # resolved paths, in the order of the IMAGE parts
    language: str


class _Refused(Exception):
    """A record cannot be used; the message says why."""


def user_turn(text: str, images: int = 0) -> Turn:
    """A user's turn, images first, each on a line of its own, as LLaVA's templates write them."""
    return Turn("user", (*(IMAGE, "\n") * images, text))


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8. JSON and command lines may bring half surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def load_records(name: str, stream: StreamConfig, languages: tuple[str, ...]) -> Sequence[Record]:
    """All records of a stream; one bad record ends the load.

    Args:
        name: the stream's name in the mixture, for messages.
        stream: file, image folder and default language.
        languages: every language a record may have.

    Raises:
        ConfigError: the file cannot be read, it holds no record, or some records are refused; the
            first few are named with their reasons.
    """
    records, refused = scan_records(name, stream, languages)
    if refused:
        shown = "; ".join(f"record {key!r}: {reason}" for key, reason in refused[:NAMED])
        more = f"; and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        total = len(records) + len(refused)
        raise ConfigError(
            f"{stream.path}: {len(refused)} of {total} records refused: {shown}{more}"
        )
    require(len(records) > 0, f"{stream.path}: no records (data.streams.{name}.path)")
    return records


def scan_records(
    name: str, stream: StreamConfig, languages: tuple[str, ...]
) -> tuple[list[Record], list[tuple[str, str]]]:
    """Good records, and (id, reason) for every bad one.

    Image files are opened far enough to see that they are images.

    Raises:
        ConfigError: the file is missing or is not JSON (file and line).
    """
    path = Path(stream.path)
    require(path.is_file(), f"data.streams.{name}.path: {path}: no such file")
    folder = Path(stream.images) if stream.images is not None else path.parent
    require(folder.is_dir(), f"data.streams.{name}.images: {folder}: no such folder")
    records: list[Record] = []
    refused: list[tuple[str, str]] = []
    for index, (line, raw) in enumerate(read_objects(path)):
        key = _key(raw, index)
        try:
            records.append(_record(raw, key, folder, stream.language, languages))
        except _Refused as reason:
            refused.append((key, f"{reason} (line {line})" if line else str(reason)))
    return _check_images(records, refused)


def languages_in(path: str | Path) -> tuple[str, ...]:
    """Languages that the records of a file name, in order of appearance.

    Raises:
        ConfigError: the file is missing or is not JSON (file and line).
    """
    require(Path(path).is_file(), f"{path}: no such file")
    named = (raw.get("language") for _, raw in read_objects(Path(path)) if isinstance(raw, dict))
    return tuple(dict.fromkeys(language for language in named if isinstance(language, str)))


def _check_images(
    records: list[Record], refused: list[tuple[str, str]]
) -> tuple[list[Record], list[tuple[str, str]]]:
    """Moves records whose image files are missing or no images to the refused ones."""
    paths = sorted({image for record in records for image in record.images})
    with ThreadPoolExecutor(16) as pool:
        bad = {
            p: reason
            for p, reason in zip(paths, pool.map(_image_fault, paths), strict=True)
            if reason
        }
    good = []
    for record in records:
        faults = [bad[image] for image in record.images if image in bad]
        if faults:
            refused.append((record.id, faults[0]))
        else:
            good.append(record)
    return good, refused


def _image_fault(path: str) -> str | None:
    try:
        image_files.check(path)
    except ConfigError as error:
        return str(error)
    return None


# -------------------------------------------------------------------------------- object -> record


def _key(raw: Any, index: int) -> str:
    value = raw.get("id") if isinstance(raw, dict) else None
    return str(index) if value is None else str(value)


def _expect(condition: bool, reason: str) -> None:
    if not condition:
        raise _Refused(reason)


def _record(
    raw: Any, key: str, folder: Path, language: str | None, languages: tuple[str, ...]
) -> Record:
    _expect(isinstance(raw, dict), f"expected an object, found {type(raw).__name__}")
    _expect(
        type(raw.get("id")) in (str, int, float, type(None)),
        f"id {raw.get('id')!r} is neither text nor a number",
    )
    images = _images(raw.get("image"), folder)
    turns = _turns(raw)
    _check_order(turns)
    marks = sum(part is IMAGE for turn in turns for part in turn.parts)
    hint = ""
    if marks and not images:
        hint = "; to keep it as text, write typed parts: [{'type': 'text', 'text': ...}]"
    _expect(marks == len(images), f"{marks} {MARK} in user turns, but {len(images)} images{hint}")
    return Record(key, turns, images, _language(raw.get("language"), language, languages))


def _language(own: Any, default: str | None, languages: tuple[str, ...]) -> str:
    value = own if own is not None else default
    _expect(value is not None, "no language: give the record one, or the stream")
    _expect(isinstance(value, str), f"language {value!r} is not text")
    near = difflib.get_close_matches(str(value), languages, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(languages)}"
    _expect(value in languages, f"language {value!r} is not in data.languages; {hint}")
    return str(value)


def _images(value: Any, folder: Path) -> tuple[str, ...]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    _expect(
        isinstance(names, list) and all(isinstance(n, str) for n in names),
        f"image {value!r} is neither a path nor a list of paths",
    )
    for name in names:
        path = PurePosixPath(name)
        _expect(
            name.strip() != "" and "\0" not in name,
            f"image {name!r} is no path; leave image out where there is none",
        )
        _expect(
            not path.is_absolute() and ".." not in path.parts,
            f"image {name!r} leaves the image folder",
        )
    return tuple(str(folder / name) for name in names)


def _turns(raw: dict[str, Any]) -> tuple[Turn, ...]:
    given = [field for field in ("conversations", "messages") if field in raw]
    _expect(
        len(given) == 1, "give either conversations or messages" + (", not both" if given else "")
    )
    items = raw[given[0]]
    _expect(isinstance(items, list) and len(items) > 0, f"{given[0]} is not a list of turns")
    if given[0] == "conversations":
        roles = {"human": "user", "gpt": "assistant", "system": "system"}
        return tuple(
            _turn(item, "from", "value", roles, n) for n, item in enumerate(items, start=1)
        )
    roles = {"user": "user", "assistant": "assistant", "system": "system"}
    return tuple(_turn(item, "role", "content", roles, n) for n, item in enumerate(items, start=1))


def _turn(item: Any, who: str, what: str, roles: dict[str, str], number: int) -> Turn:
    where = f"turn {number}"
    _expect(isinstance(item, dict), f"{where}: expected an object, found {type(item).__name__}")
    name = item.get(who)
    _expect(
        isinstance(name, str) and name in roles,
        f"{where}: {who} {name!r}; allowed are {', '.join(roles)}",
    )
    role, content = roles[name], item.get(what)
    if isinstance(content, str):
        parts = _split(content) if role == "user" else (content,)
    else:
        _expect(
            what == "content" and isinstance(content, list),
            f"{where}: {what} {content!r:.60} is not text",
        )
        parts = _typed(content, role, where)
    for part in parts:
        _expect(
            part is IMAGE or is_text(part),
            f"{where}: holds half of a surrogate pair, which is no text",
        )
    return Turn(role, parts)


def _split(text: str) -> tuple[str | Mark, ...]:
    """ "<image>\\nZer da?" -> (IMAGE, "\\nZer da?")."""
    parts: list[str | Mark] = []
    for n, piece in enumerate(text.split(MARK)):
        parts += [IMAGE] if n else []
        parts += [piece] if piece else []
    return tuple(parts)


def _typed(content: list[Any], role: str, where: str) -> tuple[str | Mark, ...]:
    """Typed parts; an image takes a line of its own, as in LLaVA's templates on Hugging Face."""
    parts: list[str | Mark] = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "image":
            _expect(
                role == "user",
                f"{where}: an image in a turn of role {role}; images stand in user turns",
            )
            parts += [IMAGE, "\n"]
        else:
            text = item.get("text") if kind == "text" else None
            _expect(
                isinstance(text, str), f"{where}: part {item!r:.60} is neither an image nor text"
            )
            parts.append(str(text))
    return tuple(parts)


def _check_order(turns: tuple[Turn, ...]) -> None:
    """system? (user assistant)+, with something in every answer."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    _expect(len(spoken) > 0, "only a system turn")
    skipped = len(turns) - len(spoken)
    for n, turn in enumerate(spoken):
        wanted = ("user", "assistant")[n % 2]
        _expect(
            turn.role == wanted, f"turn {n + 1 + skipped}: found {turn.role}, expected {wanted}"
        )
        if turn.role == "assistant":
            text = "".join(part for part in turn.parts if isinstance(part, str))
            _expect(text.strip() != "", f"turn {n + 1 + skipped}: the answer is empty")
    _expect(spoken[-1].role == "assistant", "the last turn is not an answer")
