"""The package's public names: lazy, typed, documented; what the wheel holds."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mllm_jax
from mllm_jax.config import loading
from tests.support import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NAMES = sorted(set(mllm_jax.__all__) - {"__version__"})


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time\nstart = time.process_time()\nimport mllm_jax\n"
        "seconds = time.process_time() - start\n"
        "heavy = {'jax', 'flax', 'numpy', 'grain', 'yaml', 'regex'} & set(sys.modules)\n"
        "print(seconds)\nsys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 0.05


def test_public_names_are_what_type_checkers_read():
    tree = ast.parse(Path(mllm_jax.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {
        alias.asname or "": (node.module, alias.name) for node in imports for alias in node.names
    }
    assert sorted(typed) == NAMES
    for name, (module, attribute) in typed.items():
        assert module is not None
        value = getattr(mllm_jax, name)
        if inspect.ismodule(value):
            assert value.__name__ == f"{module}.{attribute}"
        else:
            assert value is getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_explains_itself(name: str):
    value = getattr(mllm_jax, name)
    functions = [value] if inspect.isfunction(value) else [value.from_hf, value.to_hf, value.join]
    for function in functions:
        text = inspect.getdoc(function) or ""
        assert "Raises:" in text and "ConfigError" in text, function
        example = re.search(rf"^    .*\b{function.__name__}\(.*\)", text, re.MULTILINE)
        assert example is not None, f"{function} has no example"
        assert ast.parse(example.group().strip())
    assert name in dir(mllm_jax) and f"`{name}" in PAGE


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mllm_jax' has no attribute 'trian'"):
        mllm_jax.trian  # noqa: B018


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a quickstart that the page names, of the tiny stage."""
    home = tmp_path / "runs" / "quickstart"
    tiny.make_data(home / "data")
    images = home / "data" / "images"
    for number in range(3):
        shutil.copy(images / f"{number}.png", images / f"test-0000{number}.png")
    (home / "configs").mkdir()
    stage = tiny.config(home / "data", home / "align", mesh={"data": -1})
    loading.dump(stage, home / "configs" / "align.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # trains
def test_the_page_trains_and_asks_as_written(quickstart: Path, capsys: pytest.CaptureFixture[str]):
    execute(blocks()[0])
    assert "4 tokens for an image" in capsys.readouterr().out
    execute(blocks()[1])
    answers, *scores = capsys.readouterr().out.splitlines()
    assert answers.startswith("[") and len(scores) == 3
    assert (quickstart / "runs" / "from-python-hf" / "model.safetensors").is_file()


def test_the_page_reads_rows_as_written(quickstart: Path, capsys: pytest.CaptureFixture[str]):
    train, ask, rows = blocks()
    assert "mllm_jax.train(" in train and "opened.answer(" in ask
    execute(rows)
    printed = capsys.readouterr().out
    assert "32 rows of (96,) tokens" in printed and "% padding" in printed


def execute(block: str) -> None:
    exec(compile(block, "docs/python.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow  # builds a wheel
def test_the_wheel_holds_types_styles_and_configs(tmp_path: Path):
    source = tmp_path / "source"  # building leaves files beside the sources
    shutil.copytree(ROOT / "mllm_jax", source / "mllm_jax")
    shutil.copytree(ROOT / "configs", source / "configs")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    words = ["wheel", *options, str(source)]
    built = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"mllm_jax/py.typed", "mllm_jax/report/style.css", "mllm_jax/report/inspect.css"}
    configs = (ROOT / "configs").rglob("*.yaml")
    expected |= {f"mllm_jax/configs/{path.relative_to(ROOT / 'configs')}" for path in configs}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "mllm_jax").rglob("*.py")}
    assert expected <= names, sorted(expected - names)
