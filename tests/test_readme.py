"""README and documentation name only what exists: scripts, verbs and flags, files."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from mllm_jax import __version__
from mllm_jax.commands.main import VERBS, make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """The command lines of a page's ```bash blocks; a line that ends with a backslash goes on."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def load_typist():
    """The module .ci/readme.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["readme"] = module
    spec.loader.exec_module(module)
    return module


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
            assert not rest or VERBS[options.verb].USAGE.overrides, line
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    files = re.findall(r"(?<![\w/])((?:configs|launch|docs|tests|mllm_jax)/[\w./-]+\.\w+)", text)
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing


def test_ci_types_blocks_in_order_and_says_what_it_leaves_out():
    page = """
```bash
git clone URL here
cd here
```

<!-- ci: bash run.sh --short -->
```bash
bash run.sh
```

<!-- ci skips: needs a pod -->
```bash
bash pod.sh
```

```text
no command
```
"""
    assert load_typist().script(page) == (
        "git clone URL here\ncd here\nbash run.sh --short\n# not typed, needs a pod: bash pod.sh\n"
    )


def test_ci_types_the_readme_from_the_clone_on():
    typist = load_typist()
    page = (ROOT / "README.md").read_text("utf-8")
    typed = [block.typed for block in typist.blocks(page) if block.typed is not None]
    assert typed[0].startswith("git clone URL ") and "source .venv/bin/activate" in typed[0]
    assert "--share" in typed[1] and any("mllm-jax generate" in text for text in typed[2:])
    assert len(typist.blocks(page)) == page.count("```bash")


def test_a_fresh_shell_has_no_environment(monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", "/home/me/.venv")
    monkeypatch.setenv("PATH", "/home/me/.venv/bin:/usr/bin:/bin")
    variables = load_typist().environment()
    assert variables["PATH"] == "/usr/bin:/bin" and "VIRTUAL_ENV" not in variables


def test_hooks_use_the_versions_of_the_test_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0][
        "hooks"
    ]
    needed = {text for hook in hooks for text in hook["additional_dependencies"]}
    assert needed <= set(project["optional-dependencies"]["test"])


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ and citation["license"] == project["license"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_workflows_ask_for_little_and_forms_have_a_body(file: Path):
    content = yaml.safe_load(file.read_text("utf-8"))
    if file.parent.name == "workflows":
        assert content["permissions"] == {"contents": "read"} and "concurrency" in content
        assert all("timeout-minutes" in job for job in content["jobs"].values())
    elif file.name != "config.yml":
        assert content["name"] and content["description"] and content["body"]


def test_the_site_builds_without_a_broken_link(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "index.html").is_file()
