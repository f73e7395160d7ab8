"""Converts rows (columns as stored) to raw records, by the layout of the data set.

Ready layouts for published sets; `columns` of a stream's config renames single columns. Captions,
questions and The Cauldron give rounds of question and answer; a literal `<image>` in them stays
text.

    caption    {"id": "7", "image": "a.png", "caption": "Katu bat."}
    raw        {"id": "7", "image": "a.png", "rounds": [("", "Katu bat.")]}
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mllm_jax.common.errors import closest, cut, quoted, require
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import check_id
from mllm_jax.data.records.unread import Unread

Values = dict[str, Any]  # by our names
_ABSENT = object()

# layout -> our name -> name of the column
LAYOUTS: dict[str, dict[str, str]] = {
    # haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; `messages` as transformers' chat templates
    "llava": {
        "id": "id",
        "image": "image",
        "conversations": "conversations",
        "messages": "messages",
        "language": "language",
    },
    "caption": {"id": "id", "image": "image", "caption": "caption", "language": "language"},
    "text": {"id": "id", "text": "text", "language": "language"},
    # huggingface.co/datasets/pixparse/cc3m-wds: shards of img2dataset, {key}.jpg and {key}.txt;
    # google-research-datasets/conceptual_captions itself holds addresses, no images
    "conceptual_captions": {
        "id": "__key__",
        "image": "jpg",
        "caption": "txt",
        "language": "language",
    },
    # huggingface.co/datasets/allenai/pixmo-ask-model-anything: image_url, image_sha256, question,
    # answer; `image` is where copies with downloaded images keep them
    "pixmo_ama": {
        "id": "id",
        "image": "image",
        "question": "question",
        "answer": "answer",
        "language": "language",
    },
    # magpie-align/magpie, data_sft/data_concatenation.ipynb: conversations of {from, value}; its
    # column `language` is a classifier's tag, so the stream says the language
    "magpie": {"id": "uuid", "conversations": "conversations"},
    # huggingface.co/datasets/HuggingFaceM4/the_cauldron: texts of {user, assistant, source}
    "cauldron": {"id": "id", "image": "images", "texts": "texts", "language": "language"},
    # google-research-datasets/wit, DATA.md: a row an image on a page. In wikimedia/wit_base the
    # captions of all languages hang in one column wit_features: make a row of each first.
    "wit": {
        "id": "id",
        "image": "image",
        "caption": "caption_reference_description",
        "language": "language",
    },
}
_ALWAYS = ("id", "language")  # names that every layout has; a row may leave them out
_MAY_LACK = {"llava": ("image", "conversations", "messages")}  # records.py says what is missing
_ROLES = {"human": "user", "gpt": "assistant"}
# our name of a column that holds turns -> keys of a turn that are read: who speaks, what is said
_TURNS = {
    "conversations": ("from", "value"),
    "messages": ("role", "content"),
    "texts": ("user", "assistant"),
}
_ONE_TEXT = ("text", "caption", "conceptual_captions", "wit")  # nobody speaks in these layouts
_OTHER_LAYOUT = {"text": "text", "caption": "caption", "texts": "cauldron", "answer": "pixmo_ama"}


class Columns:
    """What makes raw records of a stream's rows."""

    def __init__(
        self,
        layout: str,
        renamed: dict[str, str],
        ignore: Iterable[str] = (),
        pairs: str | None = None,
    ):
        """Takes names.

        Args:
            layout: a key of LAYOUTS.
            renamed: gives our names other columns.
            ignore: keys that are knowingly left aside, see `unread`.
            pairs: column with the value by which records are paired.

        Raises:
            ConfigError: the layout has no such name, or reads what is to be ignored.
        """
        columns = LAYOUTS[layout]
        names = (*columns, *(name for name in _ALWAYS if name not in columns))
        for name, column in renamed.items():
            near = closest(name, names)
            hint = f"did you mean {near!r}? " if near else ""
            require(
                name in names,
                f"data.streams.*.columns.{name}={column!r}: layout {layout!r} has no such name; "
                f"{hint}it has {', '.join(names)}",
            )
        self._layout, self._columns = layout, columns | renamed
        # a column that the config names is there, or misspelt
        may_lack = {*_ALWAYS, *_MAY_LACK.get(layout, ())} - renamed.keys()
        self._needed = self._columns.keys() - may_lack
        self._pairs = {} if pairs is None else {"pair": pairs}
        read = self._columns | self._pairs
        for name, column in read.items():
            require(
                column not in ignore,
                f"data.streams.*.ignore: layout {layout!r} reads {column!r} as its {name}",
            )
        self._turns = [name for name in self._columns if name in _TURNS]
        self._unread = Unread(read.values(), ignore, layout not in _ONE_TEXT)

    def __call__(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """The raw record of a row.

        Args:
            row: columns as stored. Texts may be UTF-8 bytes, lists of structs a struct of lists.
                Images are passed on as they are.
            number: of the row in its source; the id of a record that has none.

        Returns:
            With the names of keys that nothing read under `unread`, if there are any, and the value
            by which it is paired under `pair`, as text.

        Raises:
            RecordError: "field" for a column that is not there or an id that is neither text nor a
                number, "text" for bytes that are not UTF-8 or an id that is not valid text,
                "image_missing" for a caption or question without an image, "unread_key" for a key
                whose content would be lost.
        """
        values: Values = {}
        for name, column in self._columns.items():
            value = row.get(column, _ABSENT)
            if type(value) is str:  # nearly always
                values[name] = value
            elif value is not _ABSENT:
                values[name] = _listed(value) if name == "image" else _plain(value, column)
            elif name in self._needed:
                raise RecordError(
                    "field", f"no column {column!r} for {name}; the row has {_names(row)}"
                )
        raw = _MAKERS[self._layout](values)
        if self._layout == "llava" and len(raw) == 1:
            raise RecordError("field", _no_turns(row, self._columns.values()))
        if unread := self._unread_keys(row, values):
            raw["unread"] = unread
        raw["id"] = number if values.get("id") is None else values["id"]
        check_id(raw["id"])  # before anyone writes it into a message
        if values.get("language") is not None:
            raw["language"] = values["language"]
        for name, column in self._pairs.items():
            if (value := _plain(row.get(column), column)) is not None:
                check_id(value, column)
                raw[name] = str(value)
        return raw

    def key(self, row: dict[str, Any], number: int) -> str:
        """The id of a row, for messages; its number where it has none that can be one."""
        value = row.get(self._columns.get("id", "id"))
        is_id = type(value) in (str, int, float) and value == value
        return cut(str(value), 200) if is_id else str(number)

    def _unread_keys(self, row: dict[str, Any], values: Values) -> list[str]:
        names = self._unread.of_row(row, bool(values.get("image")))
        for name in self._turns:
            if (turns := values.get(name)) is not None:
                names += self._unread.of_turns(_structs(turns), _TURNS[name])
        return names


def _llava(values: Values) -> Values:
    raw = {"image": values.get("image")}
    for name in ("conversations", "messages"):
        if values.get(name) is not None:  # of two columns, one may be null
            raw[name] = _structs(values[name])
    return raw


def _text(values: Values) -> Values:
    return {"text": _answer(values["text"])}


def _caption(values: Values) -> Values:
    return {"image": _needs_image(values), "rounds": [("", _answer(values["caption"]))]}


def _question(values: Values) -> Values:
    rounds = [(values["question"], _answer(values["answer"]))]
    return {"image": _needs_image(values), "rounds": rounds}


def _cauldron(values: Values) -> Values:
    texts = _structs(values["texts"])
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise RecordError(
            "field", f"texts {quoted(texts, 60)} is not a list of {{user, assistant}}"
        )
    rounds = [(text.get("user"), _answer(text.get("assistant"))) for text in texts]
    return {"image": values["image"], "rounds": rounds}


def _magpie(values: Values) -> Values:
    turns = _structs(values["conversations"])
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError(
            "field", f"conversations {quoted(turns, 60)} is not a list of {{from, value}}"
        )
    messages = []
    for turn in turns:
        who = turn.get("from")
        role = _ROLES.get(who, who) if isinstance(who, str) else who
        content = [{"type": "text", "text": turn.get("value")}]
        messages.append({"role": role, "content": content})
    return {"messages": messages}


_MAKERS: dict[str, Callable[[Values], Values]] = {
    "llava": _llava,
    "caption": _caption,
    "text": _text,
    "conceptual_captions": _caption,
    "pixmo_ama": _question,
    "magpie": _magpie,
    "cauldron": _cauldron,
    "wit": _caption,
}


# ------------------------------------------------------------------------------------------- parts


def _names(row: dict[str, Any]) -> str:
    """Columns of a row, for messages."""
    return ", ".join(list(row)[:12]) + (", ..." if len(row) > 12 else "") if row else "none"


def _no_turns(row: dict[str, Any], read: Iterable[str]) -> str:
    others = {name: value for name, value in row.items() if name not in set(read)}
    layouts = [layout for column, layout in _OTHER_LAYOUT.items() if column in others]
    reason = "give either conversations or messages"
    reason += f"; the row has {_names(others)}" if others else ""
    return reason + (f"; layout: {layouts[0]} reads such rows" if layouts else "")


def _needs_image(values: Values) -> Any:
    image = values["image"]
    if image is None or image == []:
        raise RecordError("image_missing", "no image is stored with the text")
    return image


def _answer(value: Any) -> Any:
    """A null is an answer without text: it is counted as such, not as a field of a wrong type."""
    return "" if value is None else value


def _plain(value: Any, column: str) -> Any:
    """Python's own types, with bytes read as UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError(
                "text", f"column {column!r}: not UTF-8 text ({error.reason})"
            ) from error
    value = _listed(value)
    if isinstance(value, list):
        return [_plain(item, column) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, column) for name, item in value.items()}
    return value


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _structs(value: Any) -> Any:
    """{"from": ["human", "gpt"], "value": ["a", "b"]} -> a list of {"from", "value"}.

    The `datasets` library and TFDS store a sequence of structs as a struct of sequences.
    """
    if not isinstance(value, dict) or not all(isinstance(item, list) for item in value.values()):
        return value
    lengths = {len(item) for item in value.values()}
    if len(lengths) != 1:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
