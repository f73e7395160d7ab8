"""A page in a real browser, in a frame of a given width; its own numbers are read from the DOM."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless --hide-scrollbars --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--allow-file-access-from-files --virtual-time-budget=5000"
)
needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


class Shown(NamedTuple):
    """Pixels: what the page wants to be wide, what it may be wide, its height."""

    scroll: int
    client: int
    height: int


def show(page: Path, folder: Path, width: int) -> Shown:
    """The page in a frame as wide as a phone or a desk's window; `folder` takes what it leaves."""
    frame = folder / "frame.html"
    frame.write_text(
        f"<iframe id=f src='{page.as_uri()}' style='width:{width}px;height:900px;border:0'>"
        "</iframe><p id=said></p><script>"
        "f.onload = () => { const d = f.contentDocument.documentElement;"
        " said.textContent = `scroll ${d.scrollWidth} client ${d.clientWidth}`"
        " + ` height ${d.scrollHeight}` }</script>"
    )
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    words = [CHROMIUM, *FLAGS.split(), profile, "--dump-dom", frame.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = re.search(r"scroll (\d+) client (\d+) height (\d+)", done.stdout)
    assert found, done.stderr[-2000:]
    return Shown(*map(int, found.groups()))
