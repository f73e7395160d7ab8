"""Bad stage and recipe files: broken YAML, values out of range, sections that disagree."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mllm_jax.common.trees import flatten
from tests.support.workplace import Case, cut_file, put, remove, stage, write, write_yaml

TRAIN = ["train", "--config", "stage.yaml"]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)

# name -> (the whole file, part of the message)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "stage.yaml"),
    "a list": ("- a\n", "stage.yaml"),
    "a number": ("7\n", "stage.yaml"),
    "not closed": ("model: {vision: \n", "stage.yaml"),
    "a tab": ("model:\n\tvision: 3\n", "stage.yaml"),
    "a tag of Python": ("model: !!python/object:os.system {}\n", "stage.yaml"),
    "a tag of nobody": ("model: !mine 3\n", "stage.yaml"),
    "an alias of nothing": ("model: *a\n", "stage.yaml"),
    "an anchor that holds itself": ("model: &a [*a]\n", "alias"),
    "a bad date": ("seed: 2024-99-99\n", "2024-99-99"),
    "a bad time": ("seed: 2024-01-01 99:99:99\n", "99:99:99"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000 + "\n", "stage.yaml:1"),
    "NUL": ("seed: 1\0\n", "stage.yaml"),
    "not UTF-8": (b"out: a\xf1o\n", "stage.yaml"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "stage.yaml"),
    "nested deeply": ("a: " + "[" * 20_000, "stage.yaml"),
    "nested in braces": ("a: " + "{a: " * 20_000, "stage.yaml"),
    "billions of laughs": (BOMB, "stage.yaml"),
    "a merge of nothing": ("model:\n  <<: 3\n", "stage.yaml"),
    "a key twice": ("seed: 1\nseed: 2\n", "seed"),
    "a list as a key": ("? [a]\n: 3\n", "stage.yaml"),
    "a number as a key": ("7: 3\n", "7"),
    "null as a key": ("null: 3\n", "None"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "stage.yaml"),
    "binary": (bytes(range(256)) * 40, "stage.yaml"),
    "a key of 10,000 letters": ("k" * 10_000 + ": 3\n", "stage.yaml:1"),
    "a key of control characters": ('"\\x1b[2J": 3\n', r"\x1b[2J"),
}

# dotted key -> (value, part of the message)
VALUES: list[tuple[str, object, str]] = [
    ("seed", -1, "seed"),
    ("seed", 2**70, "seed"),
    ("seed", 1.5, "seed"),
    ("seed", True, "seed"),
    ("out", "", "out"),
    ("out", "a\0b", "out"),
    ("out", "o" * 5000, "out"),
    ("model.language.vocab", 10**18, "vocab"),
    ("model.language.layers", 10**7, "layers"),
    ("model.language.layers", 0, "layers"),
    ("model.language.width", 0, "width"),
    ("model.language.width", 10**12, "width"),
    ("model.language.heads", 0, "heads"),
    ("model.language.heads", 3, "heads"),
    ("model.language.kv_heads", -2, "kv_heads"),
    ("model.language.head_dim", 7, "head_dim"),
    ("model.language.head_dim", 0, "head_dim"),
    ("model.language.norm_eps", -1.0, "norm_eps"),
    ("model.language.norm_eps", float("nan"), "norm_eps"),
    ("model.language.norm_eps", float("inf"), "norm_eps"),
    ("model.language.max_length", 0, "max_length"),
    ("model.language.rope", {"theta": -1.0}, "theta"),
    ("model.language.rope", {"kind": "yarn"}, "kind"),
    ("model.vision.image_size", 0, "image_size"),
    ("model.vision.image_size", 15, "image_size"),
    ("model.vision.image_size", 10**9, "image_size"),
    ("model.vision.patch_size", 0, "patch_size"),
    ("model.vision.heads", 3, "heads"),
    ("model.vision.layers", 0, "layers"),
    ("model.vision.feature_layer", -9, "feature_layer"),
    ("model.vision.image_std", [0.0, 0.1, 0.1], "image_std"),
    ("model.vision.image_mean", [0.5], "image_mean"),
    ("model.connector.kind", "resampler", "kind"),
    ("model.image_token", 10**6, "image_token"),
    ("model.image_token", -1, "image_token"),
    ("model.language", None, "language"),
    ("model.connector", None, "connector"),
    ("init", {}, "init"),
    ("init.weights", "none", "none"),
    ("init.tokenizer", "none", "none"),
    ("init.tokenizer", "data/images", "data/images"),
    ("init.fresh", "(", "fresh"),
    ("init.fresh", "connector/.*", "fresh"),
    ("compute.compute", "float16", "compute"),
    ("compute.loss_chunk", 0, "loss_chunk"),
    ("compute.loss_chunk", 10**15, "loss_chunk"),
    ("compute.attention", "flash", "attention"),
    ("compute.attention", "cudnn", "needs a GPU, not a cpu; choose"),
    ("compute.attention", "tokamax", "needs a GPU, not a cpu; choose"),
    ("compute.attention", "triton", "needs a GPU, not a cpu; choose"),
    ("compute.remat", "some", "remat"),
    ("data.streams", {}, "streams"),
    ("data.streams", [], "streams"),
    ("data.streams.eu.path", "none.json", "none.json"),
    ("data.streams.eu.path", "", "path"),
    ("data.streams.eu.path", "data/images", "data/images"),
    ("data.streams.eu.images", "none", "none"),
    ("data.streams.eu.weight", 0, "weight"),
    ("data.streams.eu.weight", -1.0, "weight"),
    ("data.streams.eu.weight", float("inf"), "weight"),
    ("data.streams.eu.epochs", -1.0, "epochs"),
    ("data.streams.eu.format", "vicuna", "format"),
    ("data.streams.eu.kind", "csv", "kind"),
    ("data.streams.eu.layout", "coco", "layout"),
    ("data.streams.eu.columns", {"images": "a"}, "columns"),
    ("data.streams.eu.columns", {"image": 3}, "columns"),
    ("data.streams.eu.split", "train", "split"),
    ("data.streams.eu.language", "gl", "language"),
    ("data.streams.eu.hub", "a/b", "revision"),
    ("data.streams.eu.skip", {"image_missing": 2.0}, "image_missing"),
    ("data.streams.eu.skip", {"image_gone": 0.5}, "image_gone"),
    ("data.streams.eu.skip", {"image_path": 0.5}, "image_path"),
    ("data.languages", [], "languages"),
    ("data.languages", "eu", "languages"),
    ("data.languages", ["eu", "eu"], "languages"),
    ("data.changes", {"soon": {"eu": 1.0}}, "changes"),
    ("data.changes", {"1": {"gl": 1.0}}, "gl"),
    ("data.temperature", 0.0, "temperature"),
    ("data.temperature", float("inf"), "temperature"),
    ("data.length", 0, "length"),
    ("data.length", 10**12, "length"),
    ("data.length", 2, "length"),
    ("data.rows", 0, "rows"),
    ("data.rows", 10**9, "rows"),
    ("data.row_examples", 0, "row_examples"),
    ("data.row_examples", 10**9, "row_examples"),
    ("data.window", 0, "window"),
    ("data.window", 10**12, "window"),
    ("data.image_slots", -1, "image_slots"),
    ("data.image_slots", 10**9, "image_slots"),
    ("data.over_long", "wrap", "over_long"),
    ("data.image_fit", "fill", "image_fit"),
    ("data.max_pixels", 0, "max_pixels"),
    ("data.workers", -1, "workers"),
    ("data.workers", 10**6, "workers"),
    ("data.threads", 0, "threads"),
    ("data.threads", 10**7, "threads"),
    ("data.prefetch", -1, "prefetch"),
    ("data.prefetch", 10**9, "prefetch"),
    ("data.image_cache", -1, "image_cache"),
    ("data.index", "stage.yaml", "stage.yaml"),
    ("optimizer.parts", {}, "parts"),
    ("optimizer.parts.all.match", "(", "match"),
    ("optimizer.parts.all.match", "vision/.*", "no part claims"),
    ("optimizer.parts.all.match", "(.*)*(.*)*(.*)*(.*)*(.*)*x", "match"),
    ("optimizer.parts.all.match", "((a|a|[a-z/_])+)+$", "parts"),
    ("optimizer.parts.all.train", False, "train"),
    ("optimizer.parts.more", {"match": ".*"}, "more"),
    ("optimizer.learning_rate", 0.0, "learning_rate"),
    ("optimizer.learning_rate", -1.0, "learning_rate"),
    ("optimizer.learning_rate", "fast", "learning_rate"),
    ("optimizer.learning_rate", 1e6, "learning_rate"),
    ("optimizer.schedule", "step", "schedule"),
    ("optimizer.warmup_ratio", 1.0, "warmup_ratio"),
    ("optimizer.floor", 2.0, "floor"),
    ("optimizer.beta1", 1.0, "beta1"),
    ("optimizer.beta2", 2.0, "beta2"),
    ("optimizer.beta2", -0.1, "beta2"),
    ("optimizer.eps", -1.0, "eps"),
    ("optimizer.eps", 0.0, "eps"),
    ("optimizer.weight_decay", -5.0, "weight_decay"),
    ("optimizer.no_decay", "[", "no_decay"),
    ("optimizer.clip_norm", 0.0, "clip_norm"),
    ("train.steps", 0, "steps"),
    ("train.steps", 10**18, "steps"),
    ("train.steps", None, "steps"),
    ("train.epochs", 1.0, "epochs"),
    ("train.microbatches", 3, "microbatches"),
    ("train.microbatches", 0, "microbatches"),
    ("train.save_every", 0, "save_every"),
    ("train.keep", 0, "keep"),
    ("train", {"steps": 6, "save_every": 2, "keep_every": 3}, "keep_every"),
    ("train.keep_best", -1, "keep_best"),
    ("train.log_every", 0, "log_every"),
    ("train.stop_at", -1, "stop_at"),
    ("train.on_damage", "ignore", "on_damage"),
    ("mesh.data", 0, "mesh"),
    ("mesh.data", 3, "mesh"),
    ("mesh.fsdp", 10**9, "mesh"),
    ("mesh.tensor", -2, "mesh"),
    ("mesh", {"data": -1, "fsdp": -1}, "mesh"),
]

# name -> (recipe file, part of the message)
RECIPES: dict[str, tuple[str, str]] = {
    "no stages": ("stages: []\n", "stages"),
    "stages of no list": ("stages: align.yaml\n", "stages"),
    "a stage that is not there": ("stages: [none.yaml]\n", "none.yaml"),
    "a stage twice": ("stages: [align.yaml, align.yaml]\n", "align"),
    "a stage that is broken": ("stages: [broken.yaml]\n", "broken.yaml"),
    "a stage that is a folder": ("stages: [data]\n", "data"),
    "an unknown key": ("stages: [align.yaml]\nscore: 1\n", "score"),
    "no data to evaluate": ("stages: [align.yaml]\nevaluate: {}\n", "evaluate.data"),
    "data that is not there": ("stages: [align.yaml]\nevaluate: {data: none.json}\n", "none.json"),
    "data that is broken": ("stages: [align.yaml]\nevaluate: {data: broken.json}\n", "broken.json"),
    "no new tokens": (
        "stages: [align.yaml]\nevaluate: {data: questions.json, max_new_tokens: 0}\n",
        "max_new_tokens",
    ),
    "more new tokens than the model reads": (
        "stages: [align.yaml]\n"
        "evaluate: {data: questions.json, images: data/images, max_new_tokens: 5000}\n",
        "max_length",
    ),
    "no rows": ("stages: [align.yaml]\nevaluate: {data: questions.json, rows: -1}\n", "rows"),
    "images that are not there": (
        "stages: [align.yaml]\nevaluate: {data: questions.json, images: none}\n",
        "none",
    ),
    "another export": ("stages: [align.yaml]\nexport: int4\n", "export"),
    "out of another type": ("stages: [align.yaml]\nout: 3\n", "out"),
    "out that is a file": ("stages: [align.yaml]\nout: stage.yaml\n", "stage.yaml"),
    "the export's name": ("stages: [hf.yaml]\n", "hf"),
    "the evaluation's name": ("stages: [evaluation.yaml]\n", "evaluation"),
    "a later stage of another architecture": ("stages: [align.yaml, other.yaml]\n", "width"),
    "a later stage without its data": ("stages: [align.yaml, dataless.yaml]\n", "gone.json"),
    "an epoch that never ends": ("stages: [endless.yaml]\n", "epochs"),
    "a start that is no stage": (
        "stages: [align.yaml, {file: align.yaml, name: b, from: algin}]\n",
        "did you mean 'align'",
    ),
    "stages in a circle": (
        "stages: [align.yaml, {file: align.yaml, name: b, from: c}, {file: align.yaml, name: c}]\n",
        "b, c start from one another",
    ),
    "a stage that starts from itself": (
        "stages: [{file: align.yaml, from: align}]\n",
        "align starts from itself",
    ),
    "a variant of no stage": ("stages: [align.yaml]\nvariants: {A: b}\n", "variants: A"),
    "a variant's name with a slash": ("stages: [align.yaml]\nvariants: {x/y: align}\n", "x/y"),
    "a misspelt key of a stage": ("stages: [{file: align.yaml, form: x}]\n", "'from'"),
}


def recipe(text: str) -> Callable[[Path], None]:
    """Writes recipe.yaml, and the stages and files that recipes here name."""

    def change(place: Path) -> None:
        (place / "recipe.yaml").write_text(text)
        good = yaml.safe_load((place / "align.yaml").read_text())
        for name in ("hf", "evaluation"):
            write_yaml(place / f"{name}.yaml", good)
        (place / "broken.yaml").write_text("model: [")
        (place / "broken.json").write_text('[{"id": 1, "conversations": 3}]')
        others = {
            "other": ("model.language.width", 64),
            "dataless": ("data.streams.eu.path", "gone.json"),
            "endless": ("train", {"epochs": 1e12}),
        }
        for name, (key, value) in others.items():
            tree = yaml.safe_load((place / "align.yaml").read_text())
            put(tree, key.split("."), value)
            write_yaml(place / f"{name}.yaml", tree)

    return change


CASES = [
    Case(f"file: {name}", TRAIN, write("stage.yaml", text), said)
    for name, (text, said) in TEXTS.items()
]
CASES += [
    Case(f"{key}={value!r:.24}", TRAIN, stage(**{key.replace(".", "__"): value}), said)
    for key, value, said in VALUES
]
CASES += [
    Case(f"recipe: {name}", ["recipe", "recipe.yaml"], recipe(text), said)
    for name, (text, said) in RECIPES.items()
]
CASES += [
    Case(
        "an index cut short on several processes", TRAIN, cut_file("data/eu.json", 100), "eu.json"
    ),
    Case("data that is gone", TRAIN, remove("data/eu.json"), "eu.json"),
]
VERBS = {
    "prepare": ["prepare", "--config", "stage.yaml"],
    "inspect": ["inspect", "--config", "stage.yaml", "--out", "look"],
    "preflight": ["preflight", "--config", "stage.yaml", "--hardware", "cpu:1"],
    "bench": ["bench", "--config", "stage.yaml"],
    "bench --data": ["bench", "--data", "--config", "stage.yaml"],
    "prepare a recipe": ["prepare", "recipe.yaml"],
}
CASES += [
    Case(f"{verb}: rows=0", words, stage(data__rows=0), "rows")
    for verb, words in VERBS.items()
    if "stage.yaml" in words
]
CASES += [
    Case(
        "prepare a recipe: no stage", VERBS["prepare a recipe"], remove("align.yaml"), "align.yaml"
    )
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refused(case: Case, refuse: Callable[[Case], None]):
    refuse(case)


def test_every_option_of_a_stage_refuses_another_type(
    place: Path, refuse: Callable[[Case], None], capsys: pytest.CaptureFixture[str]
):
    from mllm_jax.__main__ import main

    tree = yaml.safe_load((place / "stage.yaml").read_text())
    for key in flatten(tree, "."):
        code = main([*TRAIN[:2], str(place / "stage.yaml"), f"--{key}", "{a: [1]}"])
        err = capsys.readouterr().err
        assert code == 2 and key.split(".")[0] in err and err.count("\n") == 1, (key, err)
