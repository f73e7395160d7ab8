#!/usr/bin/env python3
"""Type the README's commands as a newcomer does: in order, in a fresh shell, from a fresh clone.

    python .ci/readme.py [--folder DIR] [--print]

Every ```bash block is typed as it is, unless the line before it says otherwise:

    <!-- ci: bash launch/quickstart.sh --share 0.1 -->    type this instead of the block
    <!-- ci skips: needs the weights of Llama -->         leave the block out, and say why

The clone is of this checkout's last commit: `URL` in `git clone URL` is a link to it. Needs
nothing but Python, git and bash; the commands download packages as the README says.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:^<!-- ci(?P<skips> skips)?: (?P<note>.*?) -->\n)?^```bash\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One ```bash block: what is typed, or why nothing is."""

    text: str  # as it is in the README
    typed: str | None  # None: left out
    note: str | None  # the reason, or the command that is typed instead


def blocks(page: str) -> list[Block]:
    """The ```bash blocks of a page of Markdown, in order."""
    result = []
    for match in BLOCK.finditer(page):
        text, note = match["text"], match["note"]
        if match["skips"]:
            result.append(Block(text, None, note))
        else:
            result.append(Block(text, f"{note}\n" if note else text, note))
    return result


def script(page: str) -> str:
    """The commands of a page as one bash script; blocks that are left out are said by echo."""
    lines = []
    for block in blocks(page):
        if block.typed is None:
            first = block.text.splitlines()[0]
            lines.append(f"# not typed, {block.note}: {first}\n")
        else:
            lines.append(block.typed)
    return "".join(lines)


def environment() -> dict[str, str]:
    """The variables of a new login: without an activated environment."""
    variables = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    active = os.environ.get("VIRTUAL_ENV")
    folders = variables["PATH"].split(os.pathsep)
    variables["PATH"] = os.pathsep.join(
        f for f in folders if active is None or not Path(f).is_relative_to(active)
    )
    return variables


def main() -> int:
    """Types the commands; returns the exit code of the first that fails, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to clone into; default: a temporary one")
    parser.add_argument("--print", action="store_true", help="print the script, run nothing")
    options = parser.parse_args()
    commands = script((ROOT / "README.md").read_text(encoding="utf-8"))
    if options.print:
        print(commands, end="")
        return 0
    variables = environment()
    if (installed := shutil.which("mllm-jax", path=variables["PATH"])) is not None:
        print(f"readme.py: {installed} is on PATH: not a fresh shell", file=sys.stderr)
        return 2
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "URL").symlink_to(ROOT)  # what `git clone URL` clones
    typed = folder / "typed.sh"
    typed.write_text(commands, encoding="utf-8")
    # -v prints every line as it is typed, comments included; -e stops at the first that fails
    bash = ["bash", "--noprofile", "--norc", "-evo", "pipefail", str(typed.resolve())]
    code = subprocess.run(bash, cwd=folder, env=variables, stdin=subprocess.DEVNULL).returncode
    print(f"readme.py: {'all commands worked' if code == 0 else f'a command failed ({code})'}")
    if options.folder is None:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
