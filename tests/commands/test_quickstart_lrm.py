"""`quickstart --lrm`: data and configs of LRM-LLaVA's ablation; its sweeps, small and full size."""

import json
from pathlib import Path

import pytest

from mllm_jax.__main__ import main
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.mixture.weights import record_weights
from tests.conftest import ROOT
from tests.corpus.tasks.test_shares import Stream


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lrm") / "out"
    assert main(["quickstart", "--lrm", "--share", "0.01", "--out", str(folder)]) == 0
    return folder


def test_everything_is_there(out: Path):
    recipe = loading.load(RecipeConfig, out / "configs" / "recipe.yaml")
    assert recipe.evaluate is not None and Path(recipe.evaluate.data).is_file()
    stages = {x.file: loading.load(Config, out / "configs" / x.file) for x in recipe.stages}
    for stage in stages.values():
        for stream in stage.data.streams.values():
            assert Path(stream.path).is_file()
            assert stream.images is None or Path(stream.images).is_dir()
    model = stages["backbone.yaml"].model
    tokenizer = load_tokenizer(out / "tokenizer")
    assert model.language is not None and len(tokenizer) == model.language.vocab
    assert tokenizer.convert_tokens_to_ids("<image>") == model.image_token
    block = (out / "data" / "instruct" / "streams.yaml").read_text(encoding="utf-8")
    assert f"{out}/data/instruct/mvqa_en.jsonl" in block


def test_the_mixture_is_half_english(out: Path):
    """And as streams.yaml says: ratio 1, a third of each language for each task."""
    for stage, tasks in (("align", 1), ("instruct", 3)):
        data = loading.load(Config, out / "configs" / f"{stage}.yaml").data
        report = json.loads((out / "data" / stage / "tasks.json").read_text(encoding="utf-8"))
        sizes = {f"{of['task']}_{of['language']}": of["records"] for of in report["tasks"]}
        assert sizes.keys() == data.streams.keys()
        shares = record_weights([Stream(sizes[name], "en") for name in data.streams], data)
        assert shares[0] == pytest.approx(0.5, abs=1e-3)
        assert shares[1:] == pytest.approx([1 / 4 / tasks] * (len(shares) - 1), abs=1e-3)


def test_a_folder_in_use_is_refused(out: Path, capsys):
    assert main(["quickstart", "--lrm", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_ablation_is_twelve_models_from_seventeen_stages(out: Path, capsys):
    assert main(["sweep", str(out / "configs" / "ablation.yaml"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "17 stages are trained for 12 models" in printed


@pytest.mark.parametrize(
    ("file", "stages", "models"),
    [("ablation", 8, 6), ("ratio", 8, 4), ("backbones", 8, 4), ("llama3/backbones", 4, 2)],
)
def test_the_full_size_sweeps_are_valid(capsys, file: str, stages: int, models: int):
    assert main(["sweep", str(ROOT / "configs" / "lrm" / f"{file}.yaml"), "--dry-run"]) == 0
    assert f"{stages} stages are trained for {models} models" in capsys.readouterr().out
