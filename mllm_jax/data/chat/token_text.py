"""Converts token ids to the text of each, byte by byte, for people to read.

A tokenizer's `decode` of one token loses incomplete characters; here their bytes are kept:

    ids      312   77    104   101     98    97    265
    texts    "Zer" "\\udcf0" "\\udc9f" "\\udc90" "\\udc88"  " da" "<|eot_id|>"

The lone surrogates are bytes f0 9f 90 88 (a cat), as `surrogateescape` writes them.
"""

import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in SentencePiece's vocabularies


class TokenTexts:
    """id -> text, for byte-level pairs (Llama 3, GPT-2) and for SentencePiece's marks."""

    def __init__(self, tokenizer: Any):
        """`tokenizer` is as `load_tokenizer` gives it; not changed."""
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        decoder = tokenizer.backend_tokenizer.decoder
        self._alphabet = _byte_alphabet() if "ByteLevel" in repr(decoder) else {}

    def __getitem__(self, token: int) -> str:
        """The text; bytes of incomplete characters are lone surrogates U+DC80 to U+DCFF.

        An id outside the vocabulary is "[id]": embedding tables are longer than tokenizers.
        """
        if token in self._added:
            return self._added[token]
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"[{token}]"
        return self._bytes(piece).decode("utf-8", "surrogateescape")

    def is_control(self, token: int) -> bool:
        """Whether it is an added token, as templates write between texts."""
        return token in self._added

    def _bytes(self, piece: str) -> bytes:
        if self._alphabet:
            return b"".join(self._alphabet.get(c) or c.encode("utf-8") for c in piece)
        if match := _BYTE.fullmatch(piece):
            return bytes.fromhex(match[1])
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode("utf-8")


def _byte_alphabet() -> dict[str, bytes]:
    """The letters in which byte-level vocabularies are written (openai/gpt-2, src/encoder.py).

    Printable bytes are themselves, all others follow each other from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(hidden)}
