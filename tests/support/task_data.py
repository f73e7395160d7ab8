"""Small data of tasks: rows beside images, and pictures as files or bytes."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def png(shade: int = 0) -> bytes:
    """A picture of 4 x 4 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def rows_file(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    """Rows as JSONL, and the files that their `image` names."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        image = row.get("image")
        for number, one in enumerate(image if isinstance(image, list) else [image]):
            if isinstance(one, str):
                (folder / one).write_bytes(png(number))
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
