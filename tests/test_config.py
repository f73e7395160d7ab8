"""Config sections and their YAML: what is accepted, and the one line that refuses the rest."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_jax import config_file
from mllm_jax.config import (
    Config,
    FolderConfig,
    MeshConfig,
    RecipeConfig,
    StreamConfig,
)
from mllm_jax.errors import ConfigError
from mllm_jax.model_config import VisionConfig

TREE: dict[str, Any] = {
    "model": {
        "vision": {
            "image_size": 28,
            "patch_size": 7,
            "width": 48,
            "mlp": 96,
            "layers": 3,
            "heads": 4,
        },
        "connector": {"kind": "linear"},
        "language": {
            "vocab": 512,
            "width": 64,
            "mlp": 160,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 16,
        },
        "image_token": 400,
    },
    "init": {"weights": "runs/align/model", "fresh": "connector/.*"},
    "data": {
        "streams": {
            "captions": {"path": "captions.json", "images": "images", "language": "eu"},
            "words": {"path": "words.jsonl", "language": "en", "weight": 0.2},
        },
        "languages": ["eu", "en"],
        "length": 128,
        "rows": 8,
    },
    "optimizer": {
        "parts": {
            "frozen": {"match": "vision/.*", "train": False},
            "moving": {"match": "(connector|language)/.*", "learning_rate": 1e-3},
        }
    },
    "train": {"steps": 10},
}


def tree(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The valid config above with some places ("a.b.c", value) changed; the value ... deletes."""
    made = copy.deepcopy(TREE)
    for path, value in changes:
        *folders, last = path.split(".")
        place = made
        for key in folders:
            place = place.setdefault(key, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made


def write(folder: Path, *changes: tuple[str, Any]) -> Path:
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(tree(*changes), allow_unicode=True), encoding="utf-8")
    return path


def test_a_valid_config_is_read_whole():
    config = config_file.build(Config, TREE)
    assert config.model.patches == 16
    assert config.model.vision == VisionConfig(28, 7, 48, 96, 3, 4)
    assert list(config.data.streams) == ["captions", "words"]
    assert config.data.streams["words"] == StreamConfig("words.jsonl", None, "en", 0.2, "llama31")
    assert config.data.languages == ("eu", "en")
    assert config.optimizer.parts["moving"].learning_rate == 1e-3
    assert config.mesh == MeshConfig()
    assert config.train.epochs is None


# (place, value, the whole message)
REFUSED = [
    # names
    (
        "optimizer.learning_rat",
        1e-3,
        "optimizer.learning_rat: unknown key; did you mean 'learning_rate'?",
    ),
    ("trian", {"steps": 1}, "trian: unknown key; did you mean 'train'?"),
    (
        "data.streams.words.lang",
        "en",
        "data.streams.words.lang: unknown key; did you mean 'language'?",
    ),
    ("mesh", {"zzz": 1}, "mesh.zzz: unknown key; allowed are data, fsdp, tensor"),
    (
        "optimizer.parts.frozen.match",
        ...,
        "optimizer.parts.frozen.match: missing; it has no default",
    ),
    ("train", ..., "train: missing; it has no default"),
    # types
    ("data.rows", "eight", "data.rows: expected a whole number, got 'eight'"),
    ("data.rows", 8.0, "data.rows: expected a whole number, got 8.0"),
    ("data.rows", True, "data.rows: expected a whole number, got True"),
    ("data.rows", None, "data.rows: expected a whole number, got None"),
    ("data.pack", "yes", "data.pack: expected true or false, got 'yes'"),
    ("data.pack", 1, "data.pack: expected true or false, got 1"),
    ("data.languages", "eu", "data.languages: expected a list, got 'eu'"),
    ("data.languages", ["eu", 3], "data.languages[1]: expected text, got 3"),
    (
        "data.streams",
        ["a.json"],
        "data.streams: expected a mapping of names to sections, got ['a.json']",
    ),
    (
        "data.streams.words",
        None,
        "data.streams.words: expected a section (key: value lines), got None",
    ),
    (
        "model.vision.image_mean",
        [0.5, 0.5],
        "model.vision.image_mean: expected 3 values, got [0.5, 0.5]",
    ),
    ("optimizer.learning_rate", "fast", "optimizer.learning_rate: expected a number, got 'fast'"),
    ("optimizer.learning_rate", False, "optimizer.learning_rate: expected a number, got False"),
    ("optimizer.eps", "nan", "optimizer.eps: expected a number, got 'nan'"),
    ("optimizer.eps", float("inf"), "optimizer.eps: expected a number, got inf"),
    ("train", 10, "train: expected a section (key: value lines), got 10"),
    ("model.connector.kind", "mpl", "model.connector.kind: expected linear or mlp, got 'mpl'"),
    ("compute.remat", True, "compute.remat: expected none or dots or full, got True"),
    # the network's own numbers
    ("model.vision.image_size", 30, "model.vision.image_size=30 is not a multiple of patch_size=7"),
    ("model.vision.heads", 5, "model.vision.width=48 is not a multiple of heads=5"),
    ("model.vision.heads", 0, "model.vision.width=48 is not a multiple of heads=0"),
    (
        "model.vision.feature_layer",
        -5,
        "model.vision.feature_layer=-5 is outside the tower's 3 layers; allowed are -4..3",
    ),
    ("model.language.kv_heads", 3, "model.language.heads=4 is not a multiple of kv_heads=3"),
    (
        "model.language.head_dim",
        15,
        "model.language.head_dim=15 is odd; rotary positions need an even width",
    ),
    ("model.language.layers", 0, "model.language.layers=0 must be positive"),
    (
        "model.connector",
        ...,
        "model.connector: missing between vision and language; add kind: linear or mlp",
    ),
    (
        "model.image_token",
        ...,
        "model.image_token: missing; give the id of <image> in the tokenizer",
    ),
    (
        "model.image_token",
        512,
        "model.image_token=512 is outside the 512 rows of model.language.vocab",
    ),
    ("model", {}, "model: give vision, language, or all three parts"),
    # where weights come from
    (
        "init",
        {},
        "init: give weights (a model, run or Hugging Face folder) or, for random weights, "
        "a tokenizer folder",
    ),
    (
        "init",
        {"tokenizer": "tok", "fresh": "connector/.*"},
        "init.fresh='connector/.*' has no effect without init.weights",
    ),
    # data
    ("data.streams", {}, "data.streams: empty; name at least one stream"),
    ("data.languages", [], "data.languages: empty; list the language of every record"),
    (
        "data.streams.words.language",
        "fr",
        "data.streams.words.language='fr' is not in data.languages ['eu', 'en']",
    ),
    (
        "data.streams.words.weight",
        0,
        "data.streams.*.weight=0.0 must be positive; remove the stream instead",
    ),
    ("data.length", 0, "data.length=0 must be positive"),
    ("data.image_slots", -1, "data.image_slots=-1 must not be negative"),
    ("data.length", 16, "data.length=16 is too short for one image of 16 tokens"),
    ("data.rows", 9, "data.rows=9 is not a multiple of train.microbatches=2"),
    # training
    (
        "optimizer.parts.frozen.match",
        "vision/(",
        "optimizer.parts.*.match='vision/(' is no regular expression: "
        "missing ), unterminated subpattern at position 7",
    ),
    (
        "optimizer.parts.frozen.learning_rate",
        1e-3,
        "optimizer.parts.*.learning_rate=0.001 has no effect on a frozen part (train: false)",
    ),
    (
        "optimizer.parts.moving",
        {"match": ".*", "train": False},
        "optimizer.parts: every part is frozen; set train: true on one",
    ),
    ("optimizer.warmup_ratio", 1.0, "optimizer.warmup_ratio=1.0 must lie in [0, 1)"),
    ("optimizer.floor", 1.5, "optimizer.floor=1.5 must lie in [0, 1]"),
    ("optimizer.clip_norm", 0, "optimizer.clip_norm=0.0 must be positive or null"),
    ("train.epochs", 2, "train: give steps or epochs, exactly one (steps=10, epochs=2.0)"),
    ("train.steps", None, "train: give steps or epochs, exactly one (steps=None, epochs=None)"),
    ("train.save_every", 0, "train.save_every=0 must be positive"),
    ("compute.loss_chunk", 0, "compute.loss_chunk=0 must be positive"),
]


@pytest.mark.parametrize(("place", "value", "message"), REFUSED)
def test_a_bad_config_is_refused_in_one_line(place: str, value: Any, message: str):
    with pytest.raises(ConfigError) as error:
        config_file.build(Config, tree(("train.microbatches", 2), (place, value)))
    assert str(error.value) == message


def test_a_language_model_without_images_takes_no_image_slots():
    text_only = [("model.vision", ...), ("model.connector", ...), ("model.image_token", ...)]
    with pytest.raises(ConfigError) as error:
        config_file.build(Config, tree(*text_only, ("data.image_slots", 1)))
    assert str(error.value) == "data.image_slots=1: the model reads no images, set 0"
    config = config_file.build(Config, tree(*text_only, ("data.image_slots", 0)))
    assert config.model.patches == 0


def test_a_stage_needs_a_language_model():
    alone = [("model.language", ...), ("model.image_token", ...), ("data.image_slots", 0)]
    with pytest.raises(ConfigError, match=r"^model\.language: missing; a stage trains"):
        config_file.build(Config, tree(*alone))


@pytest.mark.parametrize(
    ("feature_layer", "used"), [(-2, 2), (-1, 3), (-4, 0), (0, 0), (3, 3), (1, 1)]
)
def test_used_layers_counts_what_stands_before_the_features(feature_layer: int, used: int):
    # hidden states 0..3 of three layers: state 0 is the embeddings, state i comes after layer i
    assert VisionConfig(28, 7, 48, 96, 3, 4, feature_layer=feature_layer).used_layers == used


# ------------------------------------------------------------------------------------- files, flags


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path):
    words = [
        "--optimizer.learning_rate", "1e-4",
        "--data.streams.words.weight=0.5",
        "--train.steps", "null", "--train.epochs", "2",
        "--data.languages", "[eu, en, it]",
        "--compute.remat", "none",
        "--seed", "1", "--seed", "2",
        "--out", "runs/other",
    ]  # fmt: skip
    config = config_file.load(Config, write(tmp_path), words)
    assert config.optimizer.learning_rate == 1e-4  # YAML itself would read 1e-4 as text
    assert config.data.streams["words"].weight == 0.5
    assert (config.train.steps, config.train.epochs) == (None, 2.0)
    assert config.data.languages == ("eu", "en", "it")
    assert config.compute.remat == "none"
    assert (config.seed, config.out) == (2, "runs/other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed"], "--seed: value missing; write --seed VALUE"),
        (["seed", "1"], "unexpected argument 'seed'; overrides are written --section.key value"),
        (["--seed", "[1"], "--seed: '[1' is not a value YAML can read"),
        (["--seed.x", "1"], "--seed.x: seed is not a section"),
        (["--sed", "1"], "sed: unknown key; did you mean 'seed'?"),
        (["--optimizer.lr", "1"], None),
    ],
)
def test_a_bad_override_is_refused_in_one_line(tmp_path, words: list[str], message: str | None):
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, write(tmp_path, ("seed", 0)), words)
    if message is None:
        assert str(error.value).startswith("optimizer.lr: unknown key; ")
    else:
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nmodel: [1, 2\n",
            ":3: not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("a: 1\nb: x: y\n", ":2: not valid YAML: mapping values are not allowed here"),
        ("- 1\n", ": expected sections (a mapping), found list"),
        ("", ": expected sections (a mapping), found NoneType"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text: str, message: str):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, path)
    assert str(error.value) == f"{path}{message}"


def test_what_is_no_text_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config_file.load(Config, path)


def test_a_key_written_twice_is_refused(tmp_path):
    # PyYAML keeps the last of two equal keys and says nothing
    path = tmp_path / "stage.yaml"
    path.write_text("seed: 1\nout: runs/x\nseed: 2\n")
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, path)
    assert str(error.value) == f"{path}:3: not valid YAML: key 'seed' stands twice"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, tmp_path / "none.yaml")
    assert str(error.value) == f"{tmp_path / 'none.yaml'}: no such file"


def test_every_refusal_is_one_line(tmp_path):
    for place, value, _ in REFUSED:
        with pytest.raises(ConfigError) as error:
            config_file.build(Config, tree(("train.microbatches", 2), (place, value)))
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- round trips


def test_the_resolved_config_is_itself_valid_input(tmp_path):
    config = config_file.load(Config, write(tmp_path), ["--optimizer.eps", "1e-10"])
    config_file.dump(config, tmp_path / "config.yaml")
    again = config_file.load(Config, tmp_path / "config.yaml")
    assert again == config
    config_file.dump(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "config.yaml").read_bytes()


@pytest.mark.parametrize(
    ("cls", "made"),
    [
        (
            FolderConfig,
            {
                "model": TREE["model"],
                "dtype": "bfloat16",
                "languages": ["eu"],
                "shares": {"ikasketa": 0.8},
                "scores": {"exact match (eu)": 0.93},
            },
        ),
        (
            RecipeConfig,
            {
                "stages": ["align.yaml", "instruct.yaml"],
                "evaluate": {"data": "test.json"},
                "export": None,
            },
        ),
    ],
)
def test_other_files_survive_a_round_trip(tmp_path, cls: type, made: dict[str, Any]):
    section = config_file.build(cls, made)
    config_file.dump(section, tmp_path / "x.yaml")
    assert config_file.load(cls, tmp_path / "x.yaml") == section


def test_text_that_looks_like_something_else_stays_text(tmp_path):
    # "no" and "on" are language codes and words; YAML 1.1 reads them as false and true
    config = config_file.build(
        Config,
        tree(("data.languages", ["eu", "en", "no"]), ("data.streams.words.language", "no")),
    )
    config_file.dump(config, tmp_path / "config.yaml")
    again = config_file.load(Config, tmp_path / "config.yaml")
    assert again.data.languages == ("eu", "en", "no")


def test_an_unquoted_no_is_refused_not_read_as_false(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(write(tmp_path).read_text().replace("- en\n", "- en\n  - no\n"))
    with pytest.raises(ConfigError, match=r"^data\.languages\[2\]: expected text, got False$"):
        config_file.load(Config, path)
