"""Text as it is, for eyes: white space, control characters and single bytes get signs of their own.

" da\\n"        ␣da↵
U+200B         ⟨200B⟩                characters that show nothing, or turn the text around
f0 9f, 90 88   f0 9f, 90 88 = 🐈     bytes of a character that spans tokens
"""

import unicodedata
from collections.abc import Iterable, Iterator
from html import escape

SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_SHOW_NOTHING = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}  # Unicode categories


def visible(text: str) -> str:
    """One text on its own, in plain letters."""
    return "".join(sign for sign, _ in next(_signs([text])))


def visible_html(texts: Iterable[str]) -> Iterator[str]:
    """Texts that follow each other, as HTML: signs are <i>; a character is named at its last byte.

    Args:
        texts: of tokens, in order; bytes are lone surrogates, as `surrogateescape` writes them.
    """
    for signs in _signs(texts):
        yield "".join(
            f"<i class={css}>{escape(sign)}</i>" if css else escape(sign) for sign, css in signs
        )


def _signs(texts: Iterable[str]) -> Iterator[list[tuple[str, str]]]:
    """Per text: what is shown for each character, and the style class of signs."""
    begun = b""  # bytes of a character that is not whole yet
    for text in texts:
        signs: list[tuple[str, str]] = []
        for c in text:
            if "\udc80" <= c <= "\udcff":
                byte = c.encode("utf-8", "surrogateescape")
                begun += byte
                signs.append((byte.hex(), "byte"))
                if whole := _decoded(begun):
                    signs.append((f"= {_sign(whole)[0]}", "whole"))
                    begun = b""
                continue
            begun = b""
            signs.append(_sign(c))
        yield signs


def _sign(c: str) -> tuple[str, str]:
    if c in SIGNS:
        return SIGNS[c], "space"
    if unicodedata.category(c) in _SHOW_NOTHING or "\ufe00" <= c <= "\ufe0f":  # or a variation mark
        return f"⟨{ord(c):04X}⟩", "byte"
    return c, ""


def _decoded(data: bytes) -> str:
    """The character these bytes are, or nothing."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
