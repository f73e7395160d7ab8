"""Config sections: what is accepted, and the one line that refuses the rest."""

from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.model import VisionConfig
from mllm_jax.config.stage import Config, MeshConfig
from tests.support.valid_config import TREE, tree


def test_a_valid_config_is_read_whole():
    config = loading.build(Config, TREE)
    assert config.model.patches == 16
    assert config.model.vision == VisionConfig(28, 7, 48, 96, 3, 4)
    assert list(config.data.streams) == ["captions", "words"]
    assert config.data.streams["words"] == StreamConfig("words.jsonl", None, "en", 0.2, "llama31")
    assert config.data.languages == ("eu", "en")
    assert config.optimizer.parts["moving"].learning_rate == 1e-3
    assert config.mesh == MeshConfig()
    assert config.train.epochs is None


@pytest.mark.parametrize(
    ("attention", "flags", "limit", "segments"),
    [
        ("auto", (), None, None),
        ("cudnn", ("--data.length", "64"), 8, 8),
        ("cudnn", ("--data.length", "4096"), 32, 32),
        ("cudnn", ("--data.row_examples", "5"), 5, 5),
        ("blocks", ("--data.row_examples", "5"), 5, 5),
        ("cudnn", ("--data.pack", "false"), None, 1),
    ],
)
def test_attention_that_needs_a_limit_of_examples_in_a_row(attention, flags, limit, segments):
    """The resolved config names it, and is valid input that says the same."""
    flags = ("--compute.attention", attention, *flags)
    config = loading.build(Config, loading.overridden(TREE, flags))
    assert (config.data.row_examples, config.data.segments) == (limit, segments)
    assert loading.build(Config, loading.to_dict(config)) == config


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
    ("mesh", {"zzz": 1}, "mesh.zzz: unknown key; allowed are data, fsdp, tensor, context"),
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
        "data.streams.words: null, and there is none of this name to remove; there are captions",
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
    (
        "compute.remat",
        True,
        "compute.remat: expected none or dots or attention or full or offload, got True",
    ),
    # the network's own numbers
    ("model.vision.image_size", 30, "model.vision.image_size=30 is not a multiple of patch_size=7"),
    ("model.vision.heads", 5, "model.vision.width=48 is not a multiple of heads=5"),
    ("model.vision.heads", 0, "model.vision.heads=0 must lie in [1, 65_536]"),
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
    ("model.language.layers", 0, "model.language.layers=0 must lie in [1, 10_000]"),
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
    # what has no effect
    (
        "optimizer.rounding",
        "kahan",
        "optimizer.rounding=kahan has no effect on float32 parameters; set compute.parameters to "
        "bfloat16, or leave it out",
    ),
    # data
    ("data.streams", {}, "data.streams: is empty; name at least one stream"),
    ("data.languages", [], "data.languages: is empty; list the language of every record"),
    (
        "data.streams.words.language",
        "fr",
        "data.streams.words.language='fr' is not in data.languages ['eu', 'en']",
    ),
    (
        "data.streams.words.weight",
        0,
        "data.streams.words.weight=0.0 must lie in (0, 1_000_000_000]; remove the stream instead",
    ),
    ("data.length", 0, "data.length=0 must lie in [2, 16_777_216]"),
    ("data.image_slots", -1, "data.image_slots=-1 must lie in [0, 65_536]"),
    ("data.length", 16, "data.length=16 is too short for one image of 16 tokens"),
    ("data.row_examples", 0, "data.row_examples=0 must lie in [1, 16_777_216]"),
    (
        "data",
        TREE["data"] | {"pack": False, "row_examples": 2},
        "data.row_examples=2 has no effect with data.pack=false; leave it out",
    ),
    (
        "data",
        TREE["data"]
        | {
            "streams": {"a": {"path": "a.json", "language": "eu", "pairs": "id"}},
            "row_examples": 1,
        },
        "data.row_examples=1: the two records of a pair share a row; give 2 or more",
    ),
    ("data.rows", 9, "data.rows=9 is not a multiple of train.microbatches=2"),
    # training
    (
        "optimizer.parts.frozen.match",
        "vision/(",
        "optimizer.parts.frozen.match='vision/(' is not a regular expression: "
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
        "optimizer.parts: every part is frozen; set train: true on one, or give an adapter",
    ),
    ("optimizer.learning_rate", 101, "optimizer.learning_rate=101.0 must lie in (0, 100]"),
    ("optimizer.beta1", 1.0, "optimizer.beta1=1.0 must lie in [0, 1)"),
    ("optimizer.eps", 0.0, "optimizer.eps=0.0 must lie in (0, 1]"),
    ("optimizer.warmup_ratio", 1.0, "optimizer.warmup_ratio=1.0 must lie in [0, 1)"),
    ("optimizer.floor", 1.5, "optimizer.floor=1.5 must lie in [0, 1]"),
    (
        "optimizer.clip_norm",
        0,
        "optimizer.clip_norm=0.0 must lie in (0, 1_000_000_000]; null for none",
    ),
    ("train.epochs", 2, "train: give steps or epochs, exactly one (steps=10, epochs=2.0)"),
    ("train.steps", None, "train: give steps or epochs, exactly one (steps=None, epochs=None)"),
    ("train.save_every", 0, "train.save_every=0 must lie in [1, 1_000_000_000]"),
    ("train.keep_every", 0, "train.keep_every=0 must lie in [1, 1_000_000_000]"),
    ("train.keep_every", 7, "train.keep_every=7 is not a multiple of train.save_every=500"),
    ("train.keep_every", 100, "train.keep_every=100 is not a multiple of train.save_every=500"),
    ("train.keep_best", -1, "train.keep_best=-1 must lie in [0, 1_000_000]"),
    ("compute.loss_chunk", 0, "compute.loss_chunk=0 must lie in [1, 16_777_216]"),
]


@pytest.mark.parametrize(("place", "value", "message"), REFUSED)
def test_a_bad_config_is_refused_in_one_line(place: str, value: Any, message: str):
    with pytest.raises(ConfigError) as error:
        loading.build(Config, tree(("train.microbatches", 2), (place, value)))
    assert str(error.value) == message
    assert "\n" not in message


def test_a_language_model_without_images_takes_no_image_slots():
    text_only = [("model.vision", ...), ("model.connector", ...), ("model.image_token", ...)]
    with pytest.raises(ConfigError) as error:
        loading.build(Config, tree(*text_only, ("data.image_slots", 1)))
    assert str(error.value) == "data.image_slots=1: the model reads no images, set 0"
    config = loading.build(Config, tree(*text_only, ("data.image_slots", 0)))
    assert config.model.patches == 0


def test_a_stage_needs_a_language_model():
    alone = [("model.language", ...), ("model.image_token", ...), ("data.image_slots", 0)]
    with pytest.raises(ConfigError, match=r"^model\.language: missing; a stage trains"):
        loading.build(Config, tree(*alone))
