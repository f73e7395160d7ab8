"""`mllm-jax preflight RECIPE`: a line for each stage; those that are alike are estimated once."""

import json
from pathlib import Path

import pytest
import yaml

from mllm_jax.__main__ import main
from mllm_jax.commands.preflight import recipe_table
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import report
from tests.support import valid_config

FLAGS = ("--data.rows", "16", "--data.image_slots", "2", "--mesh.data", "1", "--mesh.fsdp", "8")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(valid_config.tree()))
    entries = ["first.yaml", "second.yaml", {"name": "third", "file": "second.yaml"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": entries}))
    return tmp_path / "recipe.yaml"


def run(recipe: Path, *words: str) -> int:
    return main(["preflight", str(recipe), "--hardware", "h200:8", *FLAGS, *words])


def test_stages_that_are_laid_out_alike_share_a_line(recipe: Path, capsys, monkeypatch):
    whole, calls = report.estimate, []
    monkeypatch.setattr(report, "estimate", lambda *given: calls.append(1) or whole(*given))
    assert run(recipe, "--first.train.microbatches", "2") == 0
    printed = capsys.readouterr().out
    assert len(calls) == 2
    assert "h200:8: 8 x H200" in printed and "estimated by formula" in printed
    lines = [line for line in printed.splitlines() if "GiB" in line and "yes" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["first", "second, third"]
    # what is quicker is below, with what it gains
    flags = "--compute.remat none --train.microbatches 1"
    assert f"\nfirst: quicker, and it fits: {flags}\n" in printed
    assert "no step is faster than" in printed


def test_an_adapter_makes_another_layout(recipe: Path):
    """Of all else that memory depends on, too."""
    config = loading.build(Config, valid_config.tree())
    others = [
        ["--data.row_examples", "9"],
        ["--data.rows", "32"],
        ["--compute.remat", "dots"],
        ["--adapter.match", "language/layers/.*/kernel", "--adapter.rank", "4"],
    ]
    layouts = {recipe_table._layout(config)}
    for flags in others:
        tree = loading.overridden(valid_config.tree(), flags)
        layouts.add(recipe_table._layout(loading.build(Config, tree)))
    assert len(layouts) == 1 + len(others)


def test_json_is_an_object_for_each_line(recipe: Path, capsys):
    assert run(recipe, "--json", "--only", "second") == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["stages"] == ["first", "second"]
    assert result["memory"]["fits"] is True and result["setting"]["rows"] == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--second.data.rows", "12"], "second: "),
        (["--only", "fourth"], "--only: 'fourth' is not a stage or a variant"),
        (["--secnd.seed", "1"], "did you mean 'second'?"),
    ],
)
def test_what_is_wrong_names_the_stage(recipe: Path, capsys, words: list[str], message: str):
    assert run(recipe, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_file_is_needed(recipe: Path, capsys):
    assert main(["preflight", "--hardware", "h200:8"]) == 2
    assert "give a recipe file" in capsys.readouterr().err
    words = ["--config", str(recipe.parent / "first.yaml"), "--only", "x"]
    assert main(["preflight", "--hardware", "h200:8", *words]) == 2
    assert "--only names stages of a recipe" in capsys.readouterr().err
