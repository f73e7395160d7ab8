"""Sweep files: runs of a grid, what they share, what is refused; nothing is trained."""

from pathlib import Path
from typing import Any

import pytest

from mllm_jax.commands.sweep import stages as sweep
from mllm_jax.commands.sweep.plan import load_runs, make_plan
from mllm_jax.commands.sweep.runs import read_runs, select
from mllm_jax.common import yaml_file
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config import loading
from mllm_jax.config.sweep import SweepConfig
from tests.support.sweeps import Files

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SWEEPS = sorted(path for path in CONFIGS.rglob("*.yaml") if "recipe" in read_yaml(path))
GRID = {"share": {"0": {"a": 1}, "50": {"a": 2}}, "seed": {"1": {"s": 1}, "2": {"s": 2}}}


def runs(**keys: Any) -> list:
    return read_runs(loading.build(SweepConfig, {"recipe": "r.yaml", "axes": GRID, **keys}))


@pytest.fixture
def files(tmp_path: Path, data: Path) -> Files:
    return Files(tmp_path, data)


def test_a_grid_is_every_combination_in_the_order_of_its_axes():
    grid = runs()
    assert [run.name for run in grid] == ["0-1", "0-2", "50-1", "50-2"]
    assert grid[1].points == {"share": "0", "seed": "2"}
    assert grid[1].overrides == {"a": 1, "s": 2} and grid[1].arguments == ["--a=1", "--s=2"]


def test_runs_are_one_more_axis_names_have_a_template():
    both = runs(
        axes={"seed": GRID["seed"]}, runs={"full": {}, "no_b": {"b": None}}, name="{run}.{seed}"
    )
    assert [run.name for run in both] == ["full.1", "no_b.1", "full.2", "no_b.2"]
    assert both[1].arguments == ["--s=1", "--b=null"]
    assert [run.name for run in runs(axes={}, runs={"full": {}, "none": {"b": 1}})] == [
        "full",
        "none",
    ]


def test_what_is_left_out_and_what_exists_already():
    some = runs(leave_out=["0-1", "0-2"], aliases={"0-2": "a/model", "Latxa": "b/model"})
    assert [(run.name, run.model) for run in some] == [
        ("0-2", "a/model"), ("50-1", None), ("50-2", None), ("Latxa", "b/model"),
    ]  # fmt: skip
    assert some[0].points == {"share": "0", "seed": "2"} and not some[3].points
    assert select(some, ["Latxa", "50-1"]) == ["50-1", "Latxa"]


def test_a_single_run_may_differ_from_its_points():
    changed = runs(changes={"50-2": {"s": 42, "t": None}})
    assert [run.overrides for run in changed][2:] == [
        {"a": 2, "s": 1},
        {"a": 2, "s": 42, "t": None},
    ]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"axes": {}}, "give axes (a grid) or runs (a list)"),
        ({"axis": GRID}, "axis: unknown key; did you mean 'axes'?"),
        ({"axes": {"a": {}}}, "axes.a: is empty; give it a point at least"),
        ({"axes": {"a": {0.5: {}}}}, "axes.a: key: expected text (put it in quotes), got 0.5"),
        ({"axes": {"a": {"x": 3}}}, "axes.a.x: expected a mapping"),
        ({"axes": {"a": {"x/y": {}}}}, "'x/y' cannot name a folder"),
        ({"axes": {"a": {"x": {}, "X": {}}}}, "two are named 'X'"),
        ({"name": "{share}"}, "two are named '0'"),
        ({"name": "{share}-{sed}"}, "{sed} is not an axis; write {share}, {seed}"),
        ({"name": "{share"}, "name='{share': "),
        ({"overrides": {"a": 1}}, "axes.share: 'a' is set by overrides too"),
        ({"overrides": {"--a.b": 1}}, "'--a.b': write a key without dashes"),
        ({"overrides": {"export": None}}, "'export': the sweep file has its own"),
        ({"runs": {"r": {}}, "axes": {"run": {"x": {}}}}, "axes.run: the name is taken"),
        ({"changes": {"0-3": {}}}, "changes: '0-3' is not a run; did you mean '0-2'?"),
        ({"changes": {"0-2": {"--x": 1}}}, "changes: '--x': write a key without dashes"),
        ({"leave_out": ["0-3"]}, "leave_out: '0-3' is not a run; did you mean '0-2'?"),
        ({"leave_out": ["0-1", "0-2", "50-1", "50-2"]}, "no run is left to train"),
        ({"figure": {"x": "shares"}}, "figure.x='shares': not an axis; axes are share, seed"),
        ({"figure": {"x": "share", "over": "share"}}, "x, line and over are three axes"),
        ({"axes": {"b": {"latxa": {}}}, "figure": {"x": "b"}}, "point 'latxa' is not a number"),
        ({"axes": {"b": {"nan": {}}}, "figure": {"x": "b"}}, "point 'nan' is not a number"),
    ],
)  # fmt: skip
def test_what_is_not_a_sweep_is_refused_in_one_line(keys: dict, words: str):
    with pytest.raises(ConfigError) as caught:
        runs(**keys)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_sweep_file_of_the_project_builds(path: Path):
    config = sweep.load_sweep(path)
    listed = read_runs(config)
    loaded = load_runs(config, path.parent / config.recipe, listed)
    plan = make_plan(loaded, listed, Path(config.out))
    assert len(plan.rows) >= len(listed)


def test_the_basque_sweep_shares_its_first_stage():
    path = CONFIGS / "basque" / "sweep.yaml"
    config = sweep.load_sweep(path)
    listed = read_runs(config)
    plan = make_plan(load_runs(config, path.parent / "recipe.yaml", listed), listed, Path("out"))
    assert len(listed) == 6 * 2 * 2
    assert sorted(plan.tree.files.values()).count("align.yaml") == 12
    assert sorted(plan.tree.files.values()).count("instruct.yaml") == 24
    leaf = plan.stages[plan.tree.variants["20-llama-17"]]
    weights = {name: stream.weight for name, stream in leaf.data.streams.items()}
    assert weights == {
        "pixmo_ama_eu": 0.166, "pixmo_ama_en": 0.664, "magpie_eu": 0.136, "magpie_en": 0.034,
    }  # fmt: skip
    start = plan.tree.path(plan.tree.variants["20-llama-17"])[0]
    assert leaf.init.weights == f"out/stages/{start}"
    assert plan.stages[start].init.weights == "models/basque_llama"
    published = plan.stages[plan.tree.variants["80-latxa-17"]].data
    assert published == loading.load(type(leaf), path.parent / "instruct.yaml").data
    none = plan.stages[plan.tree.variants["0-latxa-0"]].data.streams
    assert list(none) == ["pixmo_ama_en"]


def test_a_dry_run_says_what_is_shared_and_how_to_run_it(
    files: Files, capsys: pytest.CaptureFixture[str]
):
    files.run(dry_run=True)
    printed = capsys.readouterr().out
    assert "5 stages are trained for 4 models, instead of 8: 1 of them are shared" in printed
    lines = [line for line in printed.splitlines() if line.startswith("mllm-jax sweep ")]
    assert len(lines) == 4
    path, out = files.root / "sweep.yaml", files.root / "out"
    assert lines[3] == f"mllm-jax sweep {path} --out {out} --only 50-2"
    assert not out.exists()
    files.run(dry_run=True, only=["50-2"])
    assert "2 stages are trained for 1 models" in capsys.readouterr().out


def test_every_file_is_read_once_for_all_runs(files: Files, monkeypatch: pytest.MonkeyPatch):
    texts, parse = [], yaml_file.parse_yaml

    def counted(text: str) -> Any:
        texts.append(text)
        return parse(text)

    monkeypatch.setattr(yaml_file, "parse_yaml", counted)
    files.run(dry_run=True)
    names = ["sweep.yaml", "recipe.yaml", *files.recipe["stages"]]
    assert texts == [(files.root / name).read_text() for name in names]


def bad_key(files: Files) -> None:
    files.sweep["axes"]["seed"]["2"] = {"instruct.sed": 2}


def bad_value(files: Files) -> None:
    files.sweep["axes"]["seed"]["2"] = {"instruct.data.rows": 0}


def unknown_stream(files: Files) -> None:
    files.sweep["axes"]["share"]["50"] = {"instruct.data.streams.euu": None}


def two_of_one_content(files: Files) -> None:
    files.sweep["axes"]["seed"]["2"] = {"instruct.seed": 1}


def no_evaluation(files: Files) -> None:
    del files.recipe["evaluate"]


def two_evaluations(files: Files) -> None:
    files.sweep["axes"]["seed"]["2"] = {"evaluate.rows": 4, "instruct.seed": 2}


def a_recipe(files: Files) -> None:
    files.sweep = files.recipe


def no_recipe(files: Files) -> None:
    files.sweep["recipe"] = "recipes.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bad_key, "run 0-2: --instruct.sed: 'sed' is not a section or a stage; did you mean"),
        (bad_value, "run 0-2: {root}/instruct.yaml: data.rows=0 must lie in"),
        (unknown_stream, "run 50-1: {root}/instruct.yaml: data.streams.euu: null, and there is "
         "none of this name to remove; did you mean 'eu'?"),
        (two_of_one_content, "runs 0-1 and 0-2 are the same: no stage differs; put one of them"),
        (no_evaluation, "recipe.yaml: no section evaluate, so there would be nothing to compare"),
        (two_evaluations, "evaluate.rows is 32 in run 0-1 and 4 in run 0-2; all runs are compared"),
        (a_recipe, "sweep.yaml: a recipe, where a sweep file is expected"),
        (no_recipe, "{root}/recipes.yaml: no such file"),
    ],
)  # fmt: skip
def test_all_runs_are_checked_before_the_first_starts(files: Files, change, words: str):
    change(files)
    with pytest.raises(ConfigError) as caught:
        files.run(dry_run=True)
    assert words.format(root=files.root) in str(caught.value)
    assert "\n" not in str(caught.value) and not (files.root / "out").exists()


def test_only_names_a_run(files: Files):
    with pytest.raises(ConfigError, match="--only: '50-3' is not a run; did you mean '50-2'"):
        files.run(only=["50-3"], dry_run=True)
