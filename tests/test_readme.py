"""README and documentation name only what exists: scripts, verbs and flags, files."""

import re
import shlex
from pathlib import Path

import pytest

from mllm_jax.flags import TAKE_OVERRIDES, make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """The command lines of a page's ```bash blocks; a line that ends with a backslash goes on."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_the_readme_gives_the_two_commands():
    found = commands(ROOT / "README.md")
    assert "bash launch/quickstart.sh" in found
    assert "bash launch/test.sh" in found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_real(page: Path):
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "mllm-jax":
            options, rest = make_parser().parse_known_args(words[1:])  # ends the test when wrong
            assert not rest or options.verb in TAKE_OVERRIDES, line
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    files = re.findall(r"\b((?:configs|launch|docs|tests|mllm_jax)/[\w./-]+\.\w+)", text)
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing
