"""The quickstart's files and refusals; the whole way, a little of it, in a slow test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_jax.commands.quickstart import stages as quickstart
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer


class Stopped(Exception):
    """The recipe was stopped."""


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Recipes that would have run; each is stopped at once."""
    asked: list[Path] = []

    def run(path: Path, out: Path, devices: list) -> Path:
        assert len(devices) == 1, "a batch of four rows goes to one device"
        asked.append(path)
        raise Stopped

    monkeypatch.setattr(quickstart.recipe, "run", run)
    return asked


def prepare(out: Path, share: float = 0.01) -> None:
    with pytest.raises(Stopped):
        quickstart.run(out, share)


def test_everything_is_there_before_the_first_stage(tmp_path: Path, recipes: list[Path]):
    out = tmp_path / "first: try #1"  # a name that YAML would stumble over without quotes
    prepare(out)
    assert recipes == [out / "configs" / "recipe.yaml"]
    recipe = loading.load(RecipeConfig, recipes[0])
    assert recipe.out == str(out)
    assert recipe.evaluate is not None
    assert Path(recipe.evaluate.data).is_file()
    stages = {x.file: loading.load(Config, out / "configs" / x.file) for x in recipe.stages}
    for stage in stages.values():
        assert all(Path(stream.path).is_file() for stream in stage.data.streams.values())
        assert all(
            stream.images is None or Path(stream.images).is_dir()
            for stream in stage.data.streams.values()
        )
        assert stage.train.steps is not None
        assert stage.train.steps <= 14  # a hundredth
        assert stage.out.startswith(str(out))
    model = stages["backbone.yaml"].model
    tokenizer = load_tokenizer(stages["backbone.yaml"].init.tokenizer or "")
    assert model.language is not None
    assert len(tokenizer) == model.language.vocab
    assert tokenizer.convert_tokens_to_ids("<image>") == model.image_token
    assert "seconds" in json.loads((out / "summary.json").read_text())


def test_a_stopped_quickstart_goes_on_with_its_data(tmp_path: Path, recipes: list[Path]):
    prepare(tmp_path / "out")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    prepare(tmp_path / "out")
    assert len(recipes) == 2
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_data_making_that_is_stopped_leaves_nothing(
    tmp_path: Path, recipes: list[Path], monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "make_tokenizer", stop)
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(tmp_path / "out", 0.01)
    assert list(tmp_path.iterdir()) == []
    assert recipes == []


def test_refusals(tmp_path: Path, recipes: list[Path]):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        quickstart.run(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigError, match=r"--share=.*must lie in \(0, 1\]"):
            quickstart.run(tmp_path / "new", share)
    assert recipes == []
    prepare(tmp_path / "out", 0.01)
    with pytest.raises(ConfigError, match=r"was begun with --share 0\.01"):
        quickstart.run(tmp_path / "out", 0.02)
    (tmp_path / "out" / "report.html").write_text("")  # of a report made on the way
    prepare(tmp_path / "out", 0.01)
    for name in ("evaluation", "hf"):
        (tmp_path / "out" / name).mkdir()
    prepare(tmp_path / "out", 0.01)  # the comparison with an earlier stage is not there yet
    (tmp_path / "out" / "compared" / "align").mkdir(parents=True)
    (tmp_path / "out" / "compared" / "align" / "scores.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished quickstart"):
        quickstart.run(tmp_path / "out", 0.01)
    assert len(recipes) == 3


def test_localised_keeps_comments_and_counts():
    train = "train:\n  steps: 700\n  save_every: 350\n  log_every: 25\n"
    text = f'# with a comment\nout: "runs/quickstart/align" # 7\n{train}'
    assert quickstart.localised(text, Path('/a "b"'), 0.1) == (
        '# with a comment\nout: "/a \\"b\\"/align" # 7\n'
        "train:\n  steps: 70\n  save_every: 35\n  log_every: 25\n"
    )
    assert quickstart.localised(text, Path("runs/quickstart"), 1.0) == text
    assert "  steps: 1\n" in quickstart.localised(text, Path("x"), 0.0001)


def test_missing_configs_are_named():
    assert (quickstart.configs_folder("basque") / "align.yaml").is_file()
    with pytest.raises(ConfigError, match="configs/klingon: not found"):
        quickstart.configs_folder("klingon")


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path):
    """Few steps: nothing is learnt, but every part runs; transformers computes what we do."""
    words = ["quickstart", "--out", str(tmp_path / "out"), "--share", "0.02"]
    # a process of its own, optimised as a person's; of the eight devices it takes one
    alone = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-m", "mllm_jax", *words], env=alone, check=True)
    page = tmp_path / "out" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3 + 3 * 5, "losses; rate, norm, speed, waiting, padding"
    assert "A model that reads handwritten numbers" in text and "Which number" in text
    assert "data:image/png;base64," in text
    assert "95 % interval" in text and "align → instruct" in text
    assert (tmp_path / "out" / "hf" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="holds a finished quickstart"):
        quickstart.run(tmp_path / "out", share=0.02)
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the export check needs torch")
    spec = importlib.util.spec_from_file_location(
        "check_export", Path(__file__).parents[1] / "support" / "check_export.py"
    )
    assert spec is not None
    assert spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    data = tmp_path / "out" / "data"
    worst = check.compare(
        tmp_path / "out" / "instruct",
        tmp_path / "out" / "hf",
        data / "heldout.json",
        data / "images",
        4,
    )
    assert worst < 1e-4
