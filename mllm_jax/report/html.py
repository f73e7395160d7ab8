"""Pieces of the page: sections, tables, pictures as text, and numbers as people write them."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mllm_jax.common.errors import require

LANGUAGES = {
    "ca": "Catalan",
    "en": "English",
    "es": "Spanish",
    "eu": "Basque",
    "fr": "French",
    "gl": "Galician",
    "it": "Italian",
}
LARGEST = 320  # pixels: larger pictures are shrunk for the page
SMALL = 96  # pixels: smaller pictures are enlarged without smoothing


def document(title: str, body: str, *sheets: str) -> str:
    """A whole page with its style sheets inside; `sheets` are files beside this one."""
    style = "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in sheets)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def section(title: str, note: str, body: str) -> str:
    """A headline, a line of explanation, and what it is about."""
    return f"<section><h2>{escape(title)}</h2><p class=note>{escape(note)}</p>{body}</section>\n"


def table(head: Sequence[str], rows: Iterable[str], css: str = "") -> str:
    """A table; `rows` are from `row`."""
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join(rows)
    return f"<table class='{css}'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


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


def picture(path: Path) -> str:
    """An <img> with the picture inside, shrunk where it is large.

    Raises:
        ConfigError: the file is missing.
    """
    hint = "build the page in the folder where the evaluation ran"
    require(path.is_file(), f"{path}: no such picture; {hint}")
    with Image.open(path) as image:
        size = max(image.size)
        image.thumbnail((LARGEST, LARGEST))
        data = io.BytesIO()
        image.convert("RGB").save(data, "PNG" if size <= LARGEST else "JPEG")
    kind = "png" if size <= LARGEST else "jpeg"
    text = base64.b64encode(data.getvalue()).decode()
    css = "small" if size <= SMALL else "large"
    return f"<img class={css} src='data:image/{kind};base64,{text}' alt='the picture asked about'>"


def language_name(code: str) -> str:
    """A language's English name; its code where none is known here."""
    return LANGUAGES.get(code, code)


def language_and_code(code: str) -> str:
    """eu -> Basque (eu); a code that is not known here stands alone."""
    return f"{LANGUAGES[code]} ({code})" if code in LANGUAGES else code


def counted(number: int, thing: str) -> str:
    """1,234 tokens; 1 token."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """0.914 -> 91.4 %, kept on one line."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """254.7 -> 4 min 15 s, kept on one line."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    words = [f"{value} {unit}" for value, unit in parts if value] or ["0 s"]
    return " ".join(words[:2]).replace(" ", "\N{NO-BREAK SPACE}")
