"""Parts of a page: sections, tables, pictures, and numbers as people write them.

Every page is one file that loads nothing: its policy forbids scripts and requests.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mllm_jax.common import log

LANGUAGES = {
    "ar": "Arabic",
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "eu": "Basque",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "it": "Italian",
    "oc": "Occitan",
    "pt": "Portuguese",
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LOSSLESS = 64 * 1024  # bytes of a PNG; a picture that needs more becomes a JPEG
SMALL = 96  # pixels: smaller pictures are enlarged without smoothing


def sheet(name: str) -> str:
    """The text of a style sheet beside this file; charts.css has the colours of all of them."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def document(title: str, body: str, *sheets: str) -> str:
    """A whole page with its style sheets inside; `sheets` are files beside this one."""
    style = "".join(map(sheet, ("charts.css", *sheets)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def section(title: str, note: str, body: str) -> str:
    """A heading, a line of explanation if there is one, and the content."""
    line = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{line}{body}</section>\n"


def table(head: Sequence[str], rows: Iterable[str], css: str = "") -> str:
    """A table that scrolls inside its own box where it is too wide; `rows` are from `row`."""
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join(rows)
    inside = f"<table class='{css}'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll tabindex=0>{inside}</div>"


def row(name: str, cells: Iterable[str], css: str = "") -> str:
    """A row of a table: its name, then cells that are HTML already."""
    inside = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr class='{css}'><th scope=row>{escape(name)}</th>{inside}</tr>"


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """A few large numbers with their names; the numbers are HTML already."""
    inside = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f"<dl class=figures>{inside}</dl>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, side by side."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl class=facts>{inside}</dl>"


def bar(share: float, target: float | None = None) -> str:
    """A share in percent over a bar; a mark on the bar is where `target` is."""
    mark = "" if target is None else f"<b style='left:{_width(target)}'></b>"
    return (
        f"{percent(share)}<span class='bar{' target' if mark else ''}' aria-hidden=true>"
        f"<i style='width:{_width(share)}'></i>{mark}</span>"
    )


def _width(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


def picture(pixels: UInt8[np.ndarray, "height width C"], alt: str, lossless: int = LOSSLESS) -> str:
    """An <img> with the picture inside, pixel by pixel; as a JPEG where that needs more bytes."""
    image, data = Image.fromarray(pixels), io.BytesIO()
    image.save(data, "PNG", optimize=True)
    kind = "png"
    if data.tell() > lossless:
        kind, data = "jpeg", io.BytesIO()
        image.save(data, "JPEG", quality=90)
    text = base64.b64encode(data.getvalue()).decode()
    css, alt = "small" if max(image.size) <= SMALL else "large", escape(alt, quote=True)
    return f"<img class={css} src='data:image/{kind};base64,{text}' alt='{alt}'>"


def language_name(code: str) -> str:
    """A language's English name; its code where none is known here."""
    return LANGUAGES.get(code, code)


def language_and_code(code: str) -> str:
    """eu -> Basque (eu); a code without a name here stays as it is."""
    return f"{LANGUAGES[code]} ({code})" if code in LANGUAGES else code


def counted(number: int, thing: str) -> str:
    """1,234 tokens; 1 token."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """0.914 -> 91.4 %, kept on one line."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """254.7 -> 4 min 15 s, kept on one line."""
    return log.duration(seconds).replace(" ", "\N{NO-BREAK SPACE}")
