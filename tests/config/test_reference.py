"""docs/config.md and the options of --help: every field is described, and as it is checked."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest

from mllm_jax.common.ranges import Range, Section
from mllm_jax.config import reference
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config, FolderConfig
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]
FILES = [Config, RecipeConfig, FolderConfig]


@dataclasses.dataclass(frozen=True)
class Inner(Section, at="part"):
    """A part."""

    size: Annotated[int, Range("[1, 8]")] = 4
    """Its size | in metres.

    Of one part, not of all.
    """
    rate: Annotated[float, Range("(0, 1]")] | None = None
    """Its rate. Faster is not better."""


@dataclasses.dataclass(frozen=True)
class Outer(Section):
    """A file."""

    parts: dict[str, Inner]
    """The parts."""
    fixed: bool = True
    # no text of its own
    bare: Annotated[int, Range("[0, 1]")] = 1


def options(cls: type) -> dict[str, reference.Option]:
    return {
        ".".join(filter(None, (section.path, option.name))): option
        for section in reference.sections(cls)
        for option in section.options
    }


def test_an_option_is_its_field_with_the_text_under_it():
    described = options(Outer)
    assert list(described) == ["fixed", "bare", "parts.NAME.size", "parts.NAME.rate"]
    assert described["parts.NAME.size"] == reference.Option(
        "size", "integer", "4", "[1, 8]", "Its size | in metres.\n\nOf one part, not of all.", ()
    )
    assert described["parts.NAME.rate"].default == "null"
    assert described["fixed"].choices == ("true", "false") and described["bare"].meaning == ""
    assert reference.first_sentence(described["parts.NAME.rate"]) == "Its rate."


@pytest.mark.parametrize("cls", FILES)
def test_every_field_is_described_in_a_sentence(cls: type):
    for key, option in options(cls).items():
        first = reference.first_sentence(option)
        assert first.endswith(".") and first[0] in "`" + first[0].upper(), f"{key}: {first!r}"
        assert len(first) <= 100, f"{key}: {len(first)} characters in the first sentence"
    for section in reference.sections(cls):
        assert section.meaning.endswith("."), section.path


def test_the_first_sentence_is_the_short_form():
    described = options(Config)
    first = reference.first_sentence(described["compute.reduce"])
    assert first == "Number format in which gradients are summed over devices."
    assert reference.first_sentence(described["model.vision.projection"]).endswith("joint space.")


def test_sections_inside_a_file_are_described_too():
    paths = {section.path for section in reference.sections(Config)}
    assert {"", "model.language.rope", "data.streams.NAME", "optimizer.parts.NAME"} <= paths
    documented = reference.field_docs(Config)
    assert documented.keys() == {field.name for field in dataclasses.fields(Config)}


def test_defaults_are_written_as_in_yaml():
    described = options(Config)
    defaults = {
        "data.streams.NAME.path": "required",
        "data.streams.NAME.columns": "{}",
        "data.streams.NAME.images": "null",
        "optimizer.learning_rate": "2e-5",
        "data.pack": "true",
        "model.vision.image_mean": "[0.48145466, 0.4578275, 0.40821073]",
    }
    assert {key: described[key].default for key in defaults} == defaults
    assert described["data.streams.NAME.kind"].choices[0] == StreamConfig.kind == "json"
    assert described["data.streams.NAME.skip"].allowed == "(0, 1]"


def test_options_of_a_file_itself_are_on_the_page():
    """A recipe's and a model folder's, whose sections are without a path as a stage's are."""
    page = reference.reference().partition("## Recipe file")[2]
    recipe, _, folder = page.partition("## config.yaml of a model folder")
    assert "| `export` | choice | `bfloat16` |" in recipe and "| `from` |" in recipe
    assert "| `base_models` |" in folder


def test_the_page_is_what_the_fields_say():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    again = "run: python -m mllm_jax.config.reference > docs/config.md"
    assert page == reference.reference(), again


def test_the_command_in_the_page_writes_it():
    words = [sys.executable, "-m", "mllm_jax.config.reference"]
    written = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert written.stdout == reference.reference(), written.stderr


def test_every_option_of_a_real_stage_is_in_the_reference(tmp_path: Path):
    described = options(Config)

    def keys(tree: dict, path: str = "") -> list[str]:
        return [
            key
            for name, value in tree.items()
            for key in (
                keys(value, f"{path}{name}.")
                if isinstance(value, dict) and f"{path}{name}" not in described
                else [f"{path}{name}"]
            )
        ]

    for key in keys(tiny.tree(tmp_path, tmp_path / "run")):
        for name in ("eu", "en", "text"):
            key = key.replace(f"data.streams.{name}.", "data.streams.NAME.")
        assert key.replace("parts.all.", "parts.NAME.") in described


@pytest.mark.parametrize("columns", [10, 80, 200])
def test_help_fits_the_terminal_and_has_every_option(monkeypatch, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = reference.options_help()
    assert max(map(len, text.splitlines())) <= min(max(columns, 72), 120)
    for section in reference.sections(Config):
        path = f"--{section.path}." if section.path else "--"
        assert not section.options or f"\n{path}KEY VALUE\n" in text
        for option in section.options:
            assert f"\n  {option.name} " in text
