"""Copies a tokenizer so that text is only text: no string in it becomes a control token.

SentencePiece-style tokenizers (Llama 2, Mistral) write the space before a word into its token, and
some put one before their input: "first" before its beginning only, others after every control
token as well. So a text is encoded as it occurs, at the beginning or behind a control token:

    "USER"    at the beginning       behind </s>
    first     ▁US ER                 USER
    always    ▁US ER                 ▁US ER
"""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mllm_jax.common.errors import require

# Texts are encoded several at a time, since a call costs as much as some words; the separator
# between them cannot be part of a text (`records` refuses it). It is a control token for the
# tokenizer, so the text behind it is encoded like any text behind one.
_BETWEEN = "\0"
_TOGETHER = 16  # beyond this nothing is gained
_NUL = "a text holds a NUL character"
_PROBE = ["a", " a", "\n\na b ", "", "A", "  ", "a\n"]


def token_text(tokenizer: Any, token: int) -> str:
    """The text of the image token. Raises ConfigError when the tokenizer has no such id."""
    text = tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(tokenizer) else None
    require(
        text is not None,
        f"model.image_token={token} is not a token id of the tokenizer, which has {len(tokenizer)}",
    )
    return str(text)


def control_tokens(tokenizer: Any, mark: str) -> dict[str, int]:
    """Text -> id of all special tokens and of the image token `mark` (empty: there is none).

    Raises:
        ConfigError: the image token is an ordinary word, or there are no special tokens.
    """
    tokens = {}
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special or added.content == mark:
            tokens[added.content] = token
    require(
        mark == "" or mark in tokens,
        f"model.image_token: {mark!r} is an ordinary word of the tokenizer, not an added token",
    )
    require(len(tokens) > 0, "the tokenizer has no special tokens")
    return tokens


class LiteralTokenizer:
    """A copy of a tokenizer that reads control tokens as ordinary text and adds nothing."""

    def __init__(self, backend: Tokenizer, control: frozenset[str]):
        """Copies.

        Args:
            backend: a fast tokenizer's backend; not changed.
            control: texts of control tokens, all added tokens of `backend`.

        Raises:
            ConfigError: a control token swallows the spaces beside it; cutting a text at its
                control tokens cannot follow that.
        """
        tree = json.loads(backend.to_str())
        for token in tree["added_tokens"]:
            if token["content"] in control:
                require(
                    not (token["lstrip"] or token["rstrip"]),
                    f"tokenizer: the special token {token['content']!r} swallows spaces beside it "
                    "(lstrip, rstrip), which is not supported",
                )
                token["special"] = True
        tree.update(post_processor=None, truncation=None, padding=None)
        self._copy = Tokenizer.from_str(json.dumps(tree))
        self._copy.encode_special_tokens = True
        # splits a text before anything else looks at it
        self._copy.add_tokens([AddedToken(_BETWEEN, special=False, normalized=False)])
        self._between: Any = self._copy.token_to_id(_BETWEEN)
        # put before texts that are not the first, where the beginning of the input is treated apart
        self._lead = ""
        first, joined = self.ids(_PROBE, first=True), self.ids(_PROBE)
        self._lead = "" if first == joined else _BETWEEN

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: a tokenizer that is sent forgets that special tokens are text."""
        self.__dict__.update(state)
        self._copy.encode_special_tokens = True

    def ids(self, texts: list[str], first: bool = False) -> list[list[int]]:
        """Token ids of many texts, on all cores.

        Args:
            texts: each is encoded by itself.
            first: whether they are beginnings of their inputs; otherwise a control token is before
                each.

        Raises:
            ConfigError: a text holds a NUL character.
        """
        if first:
            require(not any(_BETWEEN in text for text in texts), _NUL)
            encodings = self._copy.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        joined = [
            self._lead + _BETWEEN.join(texts[i : i + _TOGETHER])
            for i in range(0, len(texts), _TOGETHER)
        ]
        encodings = self._copy.encode_batch_fast(joined, add_special_tokens=False)
        skipped = len(self._lead)
        split = [
            ids for encoding in encodings for ids in _split(encoding.ids[skipped:], self._between)
        ]
        require(len(split) == len(texts), _NUL)
        return split

    def ids_and_offsets(
        self, texts: list[str], first: bool = False
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of many texts and the characters of each token, on all cores; see `ids`."""
        require(not any(_BETWEEN in text for text in texts), _NUL)
        lead = "" if first else self._lead
        led = [lead + text for text in texts] if lead else texts
        encodings = self._copy.encode_batch(led, add_special_tokens=False)
        if not lead:
            return [(encoding.ids, encoding.offsets) for encoding in encodings]
        return [
            (encoding.ids[1:], [(left - 1, right - 1) for left, right in encoding.offsets[1:]])
            for encoding in encodings
        ]


def _split(ids: list[int], between: int) -> list[list[int]]:
    """[1, 2, between, 3] -> [[1, 2], [3]]."""
    parts, start = [], 0
    for _ in range(ids.count(between)):
        end = ids.index(between, start)
        parts.append(ids[start:end])
        start = end + 1
    return [*parts, ids[start:]]
