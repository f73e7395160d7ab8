"""A copy of a tokenizer for which text is only text: no string in it becomes a control token."""

import json
from typing import Any

from tokenizers import Tokenizer

from mllm_jax.errors import require


def token_text(tokenizer: Any, token: int) -> str:
    """The text of the image token. Raises ConfigError when the tokenizer has no such id."""
    text = tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(tokenizer) else None
    require(
        text is not None,
        f"model.image_token={token} is no token of the tokenizer, which has {len(tokenizer)}",
    )
    return str(text)


def control_tokens(tokenizer: Any, mark: str) -> dict[str, int]:
    """Text -> id of all special tokens and of the image token `mark` (empty: there is none).

    Raises:
        ConfigError: the image token is an ordinary word, or there are no special tokens.
    """
    found = {}
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special or added.content == mark:
            found[added.content] = token
    require(
        mark == "" or mark in found,
        f"model.image_token: {mark!r} is an ordinary word of the tokenizer, not an added token",
    )
    require(len(found) > 0, "the tokenizer has no special tokens")
    return found


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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process: a tokenizer that is sent forgets that special tokens are text."""
        self.__dict__.update(state)
        self._copy.encode_special_tokens = True

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of many texts, on all cores."""
        found = self._copy.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def ids_and_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of many texts and the characters of each, on all cores."""
        found = self._copy.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]
