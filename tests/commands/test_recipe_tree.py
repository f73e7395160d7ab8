"""Recipes that are trees: shared stages, `--only`, several finished models. Training is made up."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.recipe.tree import read_tree
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config, FolderConfig
from mllm_jax.conversion import conversions
from tests.support.recipes import CONNECTOR, EVERY, Files, begin, made_up_recipe, save

ENTRIES = [
    "mlp.yaml",
    "pt.yaml",
    {"file": "it.yaml", "from": "mlp"},
    {"name": "pt_it", "file": "it.yaml", "from": "pt"},
    {"file": "long.yaml", "from": "mlp"},
    {"name": "pt_long", "file": "long.yaml", "from": "pt"},
    {"name": "it_long", "file": "long.yaml", "from": "it"},
    {"name": "pt_it_long", "file": "long.yaml", "from": "pt_it"},
]
NAMES = ["mlp", "pt", "it", "pt_it", "long", "pt_long", "it_long", "pt_it_long"]
VARIANTS = {
    "IT": "it",
    "PT+IT": "pt_it",
    "LONG-IT": "long",
    "PT+LONG-IT": "pt_long",
    "IT+LONG-IT": "it_long",
    "PT+IT+LONG-IT": "pt_it_long",
}


def ends(variants: dict[str, str]) -> list[str]:
    """What is called when these are evaluated and exported."""
    stages = variants.values()
    return [
        *(f"evaluate {stage} 5 2" for stage in stages),
        *(f"export {stage} float32" for stage in stages),
    ]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    made = made_up_recipe(tmp_path, monkeypatch)
    made.stages = {
        "mlp": made.stage(CONNECTOR, {"tokenizer": "somewhere"}),
        **{name: made.stage(EVERY, {"weights": "not this one"}) for name in ("pt", "it", "long")},
    }
    made.recipe |= {"stages": ENTRIES, "variants": VARIANTS}
    return made


def tree(entries: list[Any], variants: dict[str, str] | None = None):
    return read_tree(loading.build(RecipeConfig, {"stages": entries, "variants": variants or {}}))


# --------------------------------------------------------------------------------------- the tree


def test_a_list_is_a_chain():
    chain = tree(["a.yaml", "b.yaml", {"file": "c.yaml"}])
    assert chain.parents == {"a": None, "b": "a", "c": "b"}
    assert chain.single and chain.variants == {"c": "c"}
    assert chain.results(Path("out"), "hf", "c") == Path("out/hf")


def test_a_stage_may_be_listed_before_the_one_it_starts_from():
    mixed = tree(
        [
            "a.yaml",
            {"file": "d.yaml", "from": "c"},
            {"file": "c.yaml", "from": "b"},
            {"file": "b.yaml", "from": "a"},
        ]
    )
    assert list(mixed.files) == ["a", "b", "c", "d"]
    assert mixed.path("d") == ["a", "b", "c", "d"] and mixed.after("b") == ["c", "d"]


def test_without_variants_the_leaves_are_finished_models():
    leaves = tree(ENTRIES)
    assert list(leaves.variants) == ["long", "pt_long", "it_long", "pt_it_long"]
    assert not leaves.single
    assert leaves.results(Path("out"), "evaluation", "long") == Path("out/evaluation/long")


def test_a_long_chain_is_no_problem():
    chain = tree([f"s{n}.yaml" for n in range(1000)])
    assert len(chain.path("s999")) == 1000 and len(chain.after("s0")) == 999


@pytest.mark.parametrize(
    ("entries", "variants", "words"),
    [
        (["a.yaml", {"file": "b.yaml", "from": "aa"}], {}, "b: from: 'aa' is not a stage of this "
         "recipe; did you mean 'a'?"),
        (["a.yaml", {"file": "b.yaml", "from": "b"}], {}, "stages: b starts from itself"),
        (["a.yaml", {"file": "b.yaml", "from": "c"}, {"file": "c.yaml", "from": "b"}, "d.yaml"], {},
         "stages: b, c start from one another"),
        ([{"file": "a.yaml", "from": "b"}, "b.yaml"], {}, "stages: a, b start from one another"),
        (["a.yaml", {"file": "x/a.yaml"}], {}, "stages: two are named 'a'"),
        (["a.yaml", {"file": "b.yaml", "name": "A"}], {}, "stages: two are named 'A'"),
        (["a.yaml", {"file": "b.yaml", "name": "hf"}], {}, "which is not free for a stage"),
        (["a.yaml", {"file": "b.yaml", "name": "x/y"}], {}, "which is not free for a stage"),
        (["a.yaml", {"file": "b.yaml", "form": "a"}], {}, "stages[1].form: unknown key; did you "
         "mean 'from'?"),
        (["a.yaml", {"name": "b"}], {}, "stages[1].file: missing"),
        (["a.yaml", 7], {}, "stages[1]: expected a section"),
        (["a.yaml"], {"A": "b"}, "variants: A: 'b' is not a stage of this recipe"),
        (["a.yaml", "b.yaml"], {"A": "a", "B": "a"}, "variants: A and B are both stage a"),
        (["a.yaml", "b.yaml"], {"A": "a", "a": "b"}, "variants: 'a' cannot name a folder"),
        (["a.yaml"], {"x/y": "a"}, "variants: 'x/y' cannot name a folder"),
    ],
)  # fmt: skip
def test_what_is_not_a_tree_is_refused(entries: list, variants: dict, words: str):
    with pytest.raises(ConfigError) as caught:
        tree(entries, variants)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- the recipe


def test_six_variants_from_eight_runs(files: Files, capsys: pytest.CaptureFixture[str]):
    files.run()
    assert files.calls == [*NAMES, *ends(VARIANTS)], "every stage is trained once"
    starts = {"pt": "mlp", "it": "mlp", "pt_it": "pt", "long": "mlp", "pt_long": "pt",
              "it_long": "it", "pt_it_long": "pt_it"}  # fmt: skip
    for name, start in starts.items():
        config = loading.load(Config, files.out / name / "config.yaml")
        assert config.init.weights == str(files.out / start)
    summary = json.loads((files.out / "summary.json").read_text())
    assert [(stage["name"], stage["from"]) for stage in summary["stages"]] == [
        (name, starts.get(name)) for name in NAMES
    ]
    assert summary["variants"] == VARIANTS
    assert sorted(path.name for path in (files.out / "hf").iterdir()) == sorted(VARIANTS)
    card = loading.load(FolderConfig, files.out / "pt_it" / "model" / "config.yaml")
    assert card.scores == {"exact match (eu)": 0.9}
    printed = capsys.readouterr().out
    assert re.search(r"\| PT\+IT +\| +90.0% \| +0.100 \| +mlp → pt → pt_it \|", printed), printed
    # a made-up stage adds 1 to what it trains; mlp trains the connector alone
    norms = {name: norm_of(files.out / name) for name in NAMES}
    assert {name: norm - norms["mlp"] for name, norm in norms.items()} == {
        "mlp": 0, "pt": 1, "it": 1, "pt_it": 2, "long": 1, "pt_long": 2, "it_long": 2,
        "pt_it_long": 3,
    }  # fmt: skip
    files.run()
    assert files.calls == [*NAMES, *ends(VARIANTS)], "a finished recipe does nothing again"


def norm_of(run: Path) -> float:
    model = open_model(run)
    leaves = model.leaves(conversions.abstract(model.config.model))
    return float(np.ravel(leaves["language/norm/scale"].read())[0])


@pytest.mark.parametrize(
    ("only", "stages", "variants"),
    [
        (["PT+IT"], ["mlp", "pt", "pt_it"], {"PT+IT": "pt_it"}),
        (["pt_it"], ["mlp", "pt", "pt_it"], {"PT+IT": "pt_it"}),
        (["pt"], ["mlp", "pt"], {}),
        (["long", "it"], ["mlp", "it", "long"], {"IT": "it", "LONG-IT": "long"}),
    ],
)
def test_only_what_is_named_and_what_it_needs(files: Files, only, stages, variants):
    files.run(only=only)
    assert files.calls == [*stages, *ends(variants)]


def test_only_needs_a_name_that_is_there(files: Files):
    with pytest.raises(ConfigError, match=r"--only: 'pt_itt' is not .*; did you mean 'pt_it'"):
        files.run(only=["mlp", "pt_itt"])
    assert files.calls == [] and not files.out.exists()


def test_data_of_other_stages_is_not_asked_for(files: Files):
    files.stages["long"]["data"]["streams"]["all"]["path"] = "not-here.json"
    with pytest.raises(ConfigError, match=r"^long: .*not-here\.json: no such file"):
        files.run()
    files.run(only=["IT"])
    assert files.calls == ["mlp", "it", *ends({"IT": "it"})]
    files.calls.clear()
    files.run(only=["PT+IT", "IT"])
    assert files.calls == ["pt", "pt_it", *ends({"PT+IT": "pt_it"})], "only what is missing"


@pytest.mark.slow  # one stage that stopped: tests/commands/test_recipe.py
def test_a_killed_tree_continues(files: Files, monkeypatch: pytest.MonkeyPatch):
    whole, stops = recipe.loop.train, ["pt", "it_long"]

    def train(config: Config, **options: Any) -> Path:
        name = Path(config.out).name
        if name in stops:
            stops.remove(name)
            files.calls.append(f"{name}, half")
            begin(config)
            save(config, 2)
            raise KeyboardInterrupt
        return whole(config, **options)

    monkeypatch.setattr(recipe.loop, "train", train)
    both = ["PT+IT", "IT+LONG-IT"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            files.run(only=both)
    files.run(only=both)
    assert files.calls == [
        "mlp", "pt, half", "pt again", "it", "pt_it", "it_long, half", "it_long again",
        *ends({name: VARIANTS[name] for name in both}),
    ]  # fmt: skip


# ------------------------------------------------------------------------- what no longer belongs


def test_a_stage_with_another_start_than_before_is_refused(files: Files):
    files.run(only=["it"])
    files.recipe["stages"] = [
        entry if entry != ENTRIES[2] else {"file": "it.yaml", "from": "pt"} for entry in ENTRIES
    ]
    calls = list(files.calls)
    with pytest.raises(ConfigError, match=r"^it: out=.*began from .*mlp', but starts from pt now"):
        files.run()
    assert files.calls == calls


@pytest.mark.slow
def test_weights_that_others_have_begun_with_are_not_made_again(files: Files):
    files.run(only=["IT", "PT+IT"])
    shutil.rmtree(files.out / "pt")
    calls = list(files.calls)
    for only in (["PT+IT"], ["pt"]):
        with pytest.raises(ConfigError, match=r"^pt_it: out=.* from weights of pt that are no"):
            files.run(only=only)
    shutil.rmtree(files.out / "pt_it")
    for kind in ("evaluation", "hf"):
        with pytest.raises(ConfigError, match=f"{kind}/PT.IT: was made from older weights"):
            files.run(only=["PT+IT"])
        shutil.rmtree(files.out / kind / "PT+IT")
    assert files.calls == calls
    files.run(only=["IT", "PT+IT"])
    assert files.calls[len(calls) :] == ["pt", "pt_it", *ends({"PT+IT": "pt_it"})]


def test_a_stage_whose_start_was_trained_further_is_refused(files: Files):
    files.run(only=["IT"])
    save(loading.load(Config, files.out / "mlp" / "config.yaml"), 6)
    with pytest.raises(ConfigError, match=r"^it: out=.*was trained from other weights of mlp than"):
        files.run(only=["IT"])


def test_results_without_a_variant_are_not_taken_for_a_variants(files: Files):
    (files.out / "hf").mkdir(parents=True)
    (files.out / "hf" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="hf: holds the result of a recipe with one model"):
        files.run()
    assert files.calls == []


def test_overrides_are_of_stages_not_of_files(files: Files):
    files.run("--pt_it.data.rows", "4", "--evaluate", "null", only=["it", "pt_it"])
    rows = {
        name: loading.load(Config, files.out / name / "config.yaml").data.rows
        for name in ("mlp", "pt", "it", "pt_it")
    }
    assert rows == {"mlp": 2, "pt": 2, "it": 2, "pt_it": 4}
    assert files.calls[-2:] == ["export it float32", "export pt_it float32"]
