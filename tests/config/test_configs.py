"""Every YAML file of the project loads, fits its neighbours, and builds its abstract state."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mllm_jax.commands.recipe.tree import read_tree
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config import loading
from mllm_jax.config.grids import NEXT_SIZES, GridsConfig
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import Config
from mllm_jax.data.mixture.weights import mixture_passes
from mllm_jax.training.setup import make_setup

ROOT = Path(__file__).resolve().parents[2] / "configs"
STAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.yaml")
    if not {"stages", "recipe"} & read_yaml(path).keys()  # recipes and sweeps
)
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("recipe.yaml"))
# connector 1024 x 4096 + 4096; CLIP ViT-L/14-336 and Llama-3.1-8B as counted by transformers, with
# 64 more rows in both tables
BASQUE = {"vision": 303_507_456, "connector": 4_198_400, "language": 8_030_261_248 + 2 * 64 * 4096}
# 1024 x 4096 + 4096 + 4096 x 4096 + 4096 as counted from the published class; grids add the newline
NDINO = BASQUE | {"connector": 20_979_712}
NEWLINE = 4096
# Llama-2-13b and -7b as counted by transformers, with 64 more rows in both tables
VICUNA = {
    5120: BASQUE | {"connector": 31_467_520, "language": 13_015_864_320 + 2 * 64 * 5120},
    4096: NDINO | {"language": 6_738_415_616 + 2 * 64 * 4096},
}
# as counted by transformers, LlamaForCausalLM; no <image>, so no more rows
LATXA = {"latxa_instruct": 8_030_261_248, "latxa_instruct_70b": 70_553_706_496}


def load(file: str) -> Config:
    return loading.load(Config, ROOT / file)


def test_the_folders_are_what_the_readme_says():
    assert RECIPES == [
        "basque/recipe.yaml",
        "latxa_instruct/recipe.yaml",
        "latxa_instruct_70b/recipe.yaml",
        "lrm/llama3/recipe.yaml",
        "lrm/recipe.yaml",
        "ndino/recipe.yaml",
        "quickstart/recipe.yaml",
        "quickstart_lrm/recipe.yaml",
    ]
    assert len(STAGES) == 18


@pytest.mark.parametrize("file", STAGES)
def test_a_stage_writes_where_its_recipe_will_look(file: str):
    assert load(file).out == f"runs/{file.removesuffix('.yaml')}"


@pytest.mark.parametrize("file", RECIPES)
def test_stages_follow_each_other(file: str):
    recipe, folder = loading.load(RecipeConfig, ROOT / file), Path(file).parent
    tree = read_tree(recipe)
    stages = {name: load(f"{folder}/{path}") for name, path in tree.files.items()}
    assert {f"{folder}/{path}" for path in tree.files.values()} == {
        stage for stage in STAGES if Path(stage).parent == folder
    }
    models = [dataclasses.replace(stage.model, grids=None) for stage in stages.values()]
    assert all(model == models[0] for model in models)
    for path in dict.fromkeys(tree.files.values()):  # alone, a file starts as its first stage does
        name = next(name for name, of in tree.files.items() if of == path)
        start = tree.parents[name]
        assert start is None or stages[name].init.weights == stages[start].out
    assert recipe.evaluate is not None


def test_ndino_has_six_variants_from_eight_runs():
    tree = read_tree(loading.load(RecipeConfig, ROOT / "ndino" / "recipe.yaml"))
    assert {name: tree.path(stage) for name, stage in tree.variants.items()} == {
        "IT": ["mlp", "it"],
        "PT+IT": ["mlp", "pt", "pt_it"],
        "LONG-IT": ["mlp", "long"],
        "PT+LONG-IT": ["mlp", "pt", "pt_long"],
        "IT+LONG-IT": ["mlp", "it", "it_long"],
        "PT+IT+LONG-IT": ["mlp", "pt", "pt_it", "pt_it_long"],
    }
    assert len(tree.files) == 8


@pytest.mark.parametrize(
    ("file", "rate", "vision", "rows", "length", "steps", "chat"),
    [
        ("mlp", 1e-3, None, 256, 1024, None, "plain"),
        ("pt", 1e-5, 2e-6, 128, 8192, 250_000 // 128, "plain"),
        ("it", 1e-5, 2e-6, 128, 8192, 260_302 // 128, "llama3"),
        ("long", 1e-5, 2e-6, 128, 8192, 500, "llama3"),
    ],
)
def test_ndino_has_the_published_numbers(file, rate, vision, rows, length, steps, chat):
    config = load(f"ndino/{file}.yaml")
    optimizer, parts = config.optimizer, config.optimizer.parts
    assert (optimizer.learning_rate, config.data.rows, config.data.length) == (rate, rows, length)
    assert config.train.steps == steps and (steps or config.train.epochs == 1)
    assert (optimizer.warmup_ratio, optimizer.schedule, optimizer.floor) == (0.03, "cosine", 0.0)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.0, 1.0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert {stream.format for stream in config.data.streams.values()} == {chat}
    assert not config.data.pack, "a row is a conversation, so rows are the published batch"
    grids = config.model.grids
    if file == "mlp":
        assert grids is None and config.data.image_fit == "crop"
        return
    assert parts["vision"].learning_rate == vision and all(part.train for part in parts.values())
    assert grids == GridsConfig("wh", NEXT_SIZES, "original", "pad")
    assert config.data.image_slots >= 5, "an image and its four tiles"


LRM = ["lrm/align", "lrm/instruct", "lrm/llama3/align", "lrm/llama3/instruct"]


@pytest.mark.parametrize("file", LRM)
def test_lrm_has_the_published_numbers(file: str):
    config, stage = load(f"{file}.yaml"), Path(file).name
    rate, rows = {"align": (1e-3, 192), "instruct": (2e-5, 256)}[stage]
    optimizer, data = config.optimizer, config.data
    assert (optimizer.learning_rate, data.rows, data.length) == (rate, rows, 2048)
    connector = config.model.connector
    assert config.train.epochs == 1 and connector is not None and connector.kind == "mlp"
    assert (optimizer.warmup_ratio, optimizer.schedule, optimizer.floor) == (0.03, "cosine", 0.0)
    assert data.languages == ("en", "zh", "it", "fr", "de", "es", "ru", "ro", "cs", "hr")
    assert not data.pack, "a row is a conversation, so rows are the published batch"
    chat = "llama3" if "llama3" in file else "vicuna_v1"
    assert {stream.format for stream in data.streams.values()} == {chat}
    tasks = {"align": ["mvqa"], "instruct": ["mvqa", "ep", "bvqa"]}[stage]
    assert list(dict.fromkeys(data.task_of_streams)) == tasks


@pytest.mark.parametrize("file", LRM)
def test_lrm_reads_half_english_and_each_other_language_alike(file: str):
    """What the mixture draws of 1,200,000 aligned records, all complete: 2.4 million in a stage."""
    data = load(f"{file}.yaml").data
    streams = [_Sized(2_400_000 if name.startswith("bvqa") else 1_200_000) for name in data.streams]
    counts = [int(rate) for rate in mixture_passes(streams, data).rates]
    total = sum(counts)
    assert total == pytest.approx(2_400_000, rel=1e-5)
    assert counts[0] / total == pytest.approx(0.5, abs=1e-5)
    tasks = len(set(data.task_of_streams))
    for name, count in list(zip(data.streams, counts, strict=True))[1:]:
        assert count / total == pytest.approx(1 / 18 / tasks, abs=1e-6), name
    steps = {"align": 12_500, "instruct": 9_375}[Path(file).name]
    assert total // data.rows == pytest.approx(steps, abs=1)


class _Sized:
    """A stream of so many examples, as the mixture measures it."""

    def __init__(self, count: int):
        self.sizes, self.tiles = np.full(1, 700), np.ones(1, np.int64)
        self.languages, self._count = ("en",), count

    def __len__(self) -> int:
        return self._count


@pytest.mark.parametrize("folder", ["basque", "quickstart"])
def test_the_mixture_is_that_of_the_model_card(folder: str):
    align, instruct = (
        load(f"{folder}/align.yaml").data.streams,
        load(f"{folder}/instruct.yaml").data.streams,
    )
    for streams in (align, instruct):
        assert sum(s.weight for s in streams.values()) == pytest.approx(1)
        assert sum(s.weight for name, s in streams.items() if name[-2:] == "eu") == pytest.approx(
            0.8
        )
    assert all(s.format == "plain" for s in align.values())
    text = {name: s for name, s in instruct.items() if s.images is None}
    assert sum(s.weight for s in text.values()) == pytest.approx(0.17)
    assert sum(s.weight for name, s in text.items() if name[-2:] == "eu") == pytest.approx(
        0.17 * 0.8
    )


@pytest.mark.parametrize("file", STAGES)
def test_the_abstract_state_stands(file: str, make_mesh: Callable[..., Mesh]):
    """Over eight devices: parameters are claimed, dimensions divide, the frozen cost nothing."""
    config = load(file)
    setup = make_setup(
        config.model, config.compute, config.optimizer, make_mesh(fsdp=8, data=1), 100
    )
    params = setup.params
    sizes = {
        part: sum(x.size for path, x in params.items() if path.startswith(part))
        for part in ("vision", "connector", "language")
    }
    if file.startswith("basque"):
        assert sizes == BASQUE
    elif file.startswith("lrm/llama3"):
        assert sizes == NDINO
    elif file.startswith("lrm"):
        assert sizes == VICUNA[5120]
    elif file.startswith("ndino"):
        newline = NEWLINE if config.model.grids else 0
        assert sizes == NDINO | {"connector": NDINO["connector"] + newline}
    elif file.startswith("latxa"):
        assert sizes == {"vision": 0, "connector": 0, "language": LATXA[Path(file).parent.name]}
    else:
        assert 1_000_000 < sum(sizes.values()) < 3_000_000
    trained = {path.split("/")[0] for path in setup.abstract.trainable}
    wanted = {
        "backbone": {"vision", "connector", "language"},
        "align": {"connector"},
        "instruct": {"connector", "language"},
        "mlp": {"connector"},
    }
    expected = wanted.get(Path(file).stem, wanted["backbone"])
    assert trained == {part for part in expected if sizes[part]}
    moments = sum(x.size for x in jax.tree.leaves(setup.abstract.opt_state) if x.ndim)
    idle = 0  # of the image tower, whose last layer and norm nothing reads
    if "vision" in trained and config.model.vision is not None:
        layers = [x.size for path, x in params.items() if path.startswith("vision/layers/")]
        norm = [x.size for path, x in params.items() if path.startswith("vision/post_norm/")]
        idle = sum(layers) // config.model.vision.layers + sum(norm)
    assert moments == 2 * (sum(sizes[part] for part in trained) - idle)
    assert {str(x.dtype) for x in setup.abstract.frozen.values()} <= {config.compute.compute}


@pytest.mark.parametrize("file", [s for s in STAGES if s.startswith("basque")])
def test_what_was_not_published_is_marked_as_ours(file: str):
    """Every hyperparameter of the full-size recipe says where its value comes from."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for key in (
        "length",
        "learning_rate",
        "schedule",
        "warmup_ratio",
        "weight_decay",
        "clip_norm",
        "epochs",
        "image_fit",
        "over_long",
    ):
        assert re.search(rf"(?m)^ +{key}: .*# ours: ", text), key
    assert re.search(r"# ours: .*\n.*\n.*rows: ", text) or re.search(
        r"# ours:[^\n]*\n[^\n]*\n +rows: ", text
    )
    assert re.search(r"compute: bfloat16 +# ours: ", text)


@pytest.mark.parametrize("file", LRM)
def test_what_lrms_paper_does_not_say_is_marked_as_ours(file: str):
    text = (ROOT / f"{file}.yaml").read_text(encoding="utf-8")
    for key in ("schedule", "warmup_ratio", "weight_decay", "beta2", "clip_norm", "image_fit"):
        assert re.search(rf"(?m)^ +{key}: .*# ours: ", text), key
    assert re.search(r"compute: bfloat16 +# ours: ", text)
    for key in ("learning_rate", "rows", "length", "epochs", "languages"):
        assert re.search(rf"(?m)^ +{key}: .*# \[paper\]", text), key
