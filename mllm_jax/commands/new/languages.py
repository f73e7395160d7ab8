"""Codes of languages and the names of those that the documentation speaks of."""

import re
from typing import NamedTuple

from mllm_jax.common.errors import quoted, require

# BCP 47 (RFC 5646): a language of two or three letters, then subtags: gl, pt-BR, zh-Hant
CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")
NAMES = {
    "an": "Aragonese", "ast": "Asturian", "br": "Breton", "ca": "Catalan", "co": "Corsican",
    "cy": "Welsh", "de": "German", "en": "English", "es": "Spanish", "eu": "Basque",
    "fo": "Faroese", "fr": "French", "fur": "Friulian", "fy": "West Frisian", "ga": "Irish",
    "gd": "Scottish Gaelic", "gl": "Galician", "is": "Icelandic", "it": "Italian",
    "lb": "Luxembourgish", "lmo": "Lombard", "mt": "Maltese", "nl": "Dutch", "nn": "Nynorsk",
    "oc": "Occitan", "pt": "Portuguese", "qu": "Quechua", "rm": "Romansh", "sc": "Sardinian",
    "scn": "Sicilian", "se": "Northern Sami", "sw": "Swahili", "vec": "Venetian", "yo": "Yoruba",
}  # fmt: skip


class Language(NamedTuple):
    """The language that a project is for."""

    code: str
    name: str


def check(code: str) -> None:
    """Raises ConfigError unless `code` is written as BCP 47 writes languages."""
    require(
        CODE.fullmatch(code) is not None,
        f"--language {quoted(code, 60)}: expected a code of two or three small letters, as gl, or "
        "pt-BR with a region",
    )


def name(code: str) -> str:
    """The English name of a language; its code where it is not in NAMES."""
    return NAMES.get(code.split("-")[0], code)
