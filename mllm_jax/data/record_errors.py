"""Names the errors that a record can have; each code is counted, and allowed or not by the config.

`data.streams.*.skip` maps codes to the share of a stream's records that may be left out for that
reason; everything else ends the run with the record's name. `image_path` can never be allowed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mllm_jax.common.errors import cut, one_line, quoted

CODES = {
    "json": "a line is not JSON, or not UTF-8",
    "field": "a field is missing or of the wrong type",
    "role": "an unknown role",
    "role_order": "turns do not alternate, or the last is not an answer",
    "empty_answer": "an answer without text",
    "text": "half a surrogate pair, or a NUL character",
    "language": "no language, or one that is not in data.languages",
    "duplicate_id": "id and content that an earlier record of the stream has",
    "unread_key": "a key that nothing reads, though it holds a picture, a text or a loss mask",
    "too_long": "a conversation of more characters than a row could ever hold",
    "image_count": "the number of <image> and of images differ",
    "image_path": "a path that leaves the image folder: always refused",
    "image_missing": "no such image file",
    "image_empty": "an image of zero bytes",
    "image_type": "the file is not an image",
    "image_broken": "an image that cannot be decoded to its end",
    "image_pixels": "more pixels than data.max_pixels",
    "image_animated": "an image of several frames",
    "template": "the chat template refuses the conversation",
}
NEVER_SKIPPED = ("image_path",)
NAMED = 5  # records that a message names
REASON = 400  # characters of a reason that are kept: what it quotes may be megabytes
_SHORT = 200  # and that a message about several shows


class RefusedRow(NamedTuple):
    """A row that cannot be used; a line of faults.jsonl."""

    row: int
    id: str
    where: str  # its location; the name of the key in the file
    code: str
    reason: str


def refusal(path: str, refused: Sequence[RefusedRow], total: int) -> str:
    """One line that counts the refused rows of a stream and names the first few."""
    named = "; ".join(
        f"record {quoted(f.id, 60)} ({cut(f.where, 120)}): {cut(f.reason, _SHORT)}"
        for f in refused[:NAMED]
    )
    more = f"; and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
    return f"{path}: {len(refused)} of {total} records refused: {named}{more}"


class RecordError(Exception):
    """A record cannot be used."""

    def __init__(self, code: str, reason: str):
        """`code` is a key of CODES; `reason` says what is wrong, and is cut to one line."""
        assert code in CODES, code
        self.code, self.reason = code, one_line(reason, REASON)
        super().__init__(self.reason)

    def __reduce__(self):
        return RecordError, (self.code, self.reason)  # travels from worker processes
