"""Ranges of config fields: every field has one, each holds just inside and not just outside."""

import math
import typing
from typing import Annotated, Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.ranges import Name, Range, Section, Size, Text, check, hints, unstated
from mllm_jax.config import loading
from mllm_jax.config.data import DataConfig, StreamConfig
from mllm_jax.config.model import ModelConfig, RopeConfig
from mllm_jax.config.recipe import EvaluateConfig, RecipeConfig
from mllm_jax.config.stage import (
    Config,
    FolderConfig,
    InitConfig,
    MeshConfig,
    OptimizerConfig,
    PartConfig,
    TrainConfig,
)
from tests.support.valid_config import tree

DOCUMENTS = (Config, FolderConfig, RecipeConfig)  # what YAML files hold


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_every_field_states_what_it_may_hold(cls: type):
    assert unstated(cls, "") == []


def test_a_field_without_a_range_is_noticed():
    assert unstated(int, "x") == ["x"]
    assert unstated(Annotated[int, "a comment"], "x") == ["x"]
    assert unstated(tuple[float, ...], "x") == ["x", "x[]"]
    assert unstated(Annotated[tuple[float, ...], Size("[0, 1]")], "x") == ["x[]"]
    assert unstated(dict[str, int], "x") == ["x", "x key", "x.*"]
    assert unstated(str | None, "x") == ["x"]


def sections(cls: type) -> set[type]:
    """A document's section classes, found through its types."""
    found = {cls}
    for kind in hints(cls).values():
        pending = [kind]
        while pending:
            one = pending.pop()
            pending += [a for a in typing.get_args(one) if a is not ...]
            if isinstance(one, type) and issubclass(one, Section) and one not in found:
                found |= sections(one)
    return found


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_every_section_checks_itself_when_it_is_made(cls: type):
    for section in sections(cls):
        assert issubclass(section, Section)


# ------------------------------------------------------------------------ the table, both its sides


def ranges(kind: Any, place: str) -> list[tuple[str, Range, type]]:
    """(place in a config tree, its range, int or float) of every number inside a type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and args[0] in (int, float):
        return [(place, bound, args[0]) for bound in args[1:] if isinstance(bound, Range)]
    if isinstance(kind, type) and issubclass(kind, Section):
        return [r for name, one in hints(kind).items() for r in ranges(one, f"{place}.{name}")]
    if origin is Annotated:
        return ranges(args[0], place)
    if origin is dict:
        key = {"data.streams": "captions", "optimizer.parts": "moving", "data.changes": "7"}
        name = key.get(place.lstrip("."), "captions" if "changes" in place else "json")
        return ranges(args[1], f"{place}.{name}")
    if origin is tuple:
        return []
    return [r for arg in args for r in ranges(arg, place)]


TABLE = [(place.lstrip("."), bound, kind) for place, bound, kind in ranges(Config, "")]


def sides(bound: Range, kind: type) -> tuple[list[Any], list[Any]]:
    """(values just inside, values just outside)."""
    low, high = bound.ends
    if kind is int:
        return [low, high], [low - 1, high + 1]
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    inside = [low if bound.interval[0] == "[" else math.nextafter(low, math.inf)]
    inside += [high if bound.interval[-1] == "]" else math.nextafter(high, -math.inf)]
    outside = [below if bound.interval[0] == "[" else low]
    return inside, [*outside, above if bound.interval[-1] == "]" else high]


# of sections that may be left out
REQUIRED = ("train.evaluate.streams.json.path", "adapter.match")


def refusal(place: str, value: Any) -> str:
    try:
        needed = [(key, "a.json") for key in REQUIRED if place.startswith(key.rpartition(".")[0])]
        loading.build(Config, tree(*needed, (place, value)))
    except ConfigError as error:
        return str(error)
    return ""


def test_the_table_is_as_long_as_it_looks():
    assert len(TABLE) > 60
    assert {"seed", "train.steps", "model.language.rope.theta"} <= {place for place, _, _ in TABLE}


@pytest.mark.parametrize(("place", "bound", "kind"), TABLE, ids=[row[0] for row in TABLE])
def test_just_inside_is_accepted_and_just_outside_refused(place: str, bound: Range, kind: type):
    inside, outside = sides(bound, kind)
    for value in inside:  # another rule may refuse it: a width that heads do not divide
        assert "must lie in" not in refusal(place, value), value
    for value in outside:
        message = refusal(place, value)
        assert message.startswith(f"{place}={kind(value)!r} must lie in {bound.interval}"), message
        assert "\n" not in message and len(message) < 300


# what the table must say, whatever it says
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("optimizer.learning_rate", -1),
        ("optimizer.learning_rate", 0),
        ("optimizer.parts.moving.learning_rate", -1e-3),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", 2),
        ("optimizer.beta2", -0.1),
        ("optimizer.eps", -1),
        ("optimizer.eps", 0),
        ("optimizer.weight_decay", -5),
        ("optimizer.no_decay", "("),
        ("init.fresh", "connector/("),
        ("optimizer.parts.moving.match", "((a{1000}){1000}){1000}"),
        ("train.steps", 10**18),
        ("train.steps", 0),
        ("train", {"epochs": 1e12}),
        ("train", {"epochs": 0}),
        ("train.stop_at", 0),
        ("train.log_every", 0),
        ("data.rows", 10**9),
        ("data.window", 10**12),
        ("data.length", 1),
        ("data.length", 10**12),
        ("data.workers", 10**9),
        ("data.threads", 0),
        ("data.streams.words.weight", -1),
        ("data.streams.words.weight", 1e300),
        ("data.streams.words.skip", {"json": 1.5}),
        ("data.streams.words.skip", {"json": 0}),
        ("data.streams.words.path", ""),
        ("data.streams.words.path", "a\0b"),
        ("data.streams.words.path", "a" * 5000),
        ("data.streams.words.path", "\ud800"),
        ("data.streams", {"../../up": {"path": "x"}}),
        ("data.streams", {"": {"path": "x"}}),
        ("data.changes", {"0": {"words": 1}}),
        ("data.changes", {"9" * 50: {"words": 1}}),
        ("data.temperature", 1e-300),
        ("model.language.layers", 10**7),
        ("model.vision.layers", 0),
        ("model.vision.layers", 10**7),
        ("model.language.heads", 0),
        ("model.language.kv_heads", 0),
        ("model.language.head_dim", 0),
        ("model.language.norm_eps", 0),
        ("model.language.rope", {"theta": 0}),
        ("model.language.rope", {"theta": -1}),
        ("model.language.rope", {"kind": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}),
        ("model.vision.image_std", [0, 1, 1]),
        ("model.image_token", -1),
        ("mesh", {"data": 0}),
        ("mesh", {"data": -2}),
        ("compute", {"loss_chunk": 10**12}),
        ("optimizer.learning_rate", 10**400),
        ("out", ""),
    ],
)
def test_a_value_without_sense_is_refused(place: str, value: Any):
    message = refusal(place, value)
    assert message.startswith(place.split(".")[0]), message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("data.rows", 1_000_000), ("data.length", 2048)], "tokens that a batch may have"),
        ([("train.steps", 10**9), ("data.rows", 128)], "rows that a run may have"),
        (
            [("data.rows", 8192), ("data.image_slots", 65_536), ("model.vision.image_size", 7000)],
            "the images of a batch have",
        ),
    ],
)
def test_products_have_bounds_too(changes: list[tuple[str, Any]], message: str):
    with pytest.raises(ConfigError, match=message):
        loading.build(Config, tree(*changes))


def test_the_images_of_a_batch_are_counted_with_their_three_colours():
    """2^24 pixels each: 21,845 of them have 2^40 bytes less 2^24, one more has too many."""
    size = [("model.vision.image_size", 4096), ("model.vision.patch_size", 4096)]
    size += [("data.image_slots", 1)]
    loading.build(Config, tree(("data.rows", 21_845), *size))
    with pytest.raises(ConfigError, match="the images of a batch have 1,099,545,182,208 bytes"):
        loading.build(Config, tree(("data.rows", 21_846), *size))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(steps=0),
        lambda: InitConfig(weights=""),
        lambda: EvaluateConfig("q.json", max_new_tokens=0),
        lambda: EvaluateConfig("q.json", rows=-1),
        lambda: RecipeConfig(()),
        lambda: MeshConfig(data=0),
        lambda: PartConfig("("),
        lambda: OptimizerConfig({"all": PartConfig(".*")}, beta2=2.0),
        lambda: OptimizerConfig({"all": PartConfig(".*")}, eps=math.nan),
        lambda: StreamConfig("a.json", skip={"json": 2.0}),
        lambda: DataConfig({}, ("eu",)),
        lambda: RopeConfig(theta=math.inf),
        lambda: ModelConfig(),
    ],
)
def test_a_section_made_in_code_is_held_to_the_same(make: Any):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("bound", "good", "bad"),
    [
        (Text(3), ["a", "aé中", "a b"], ["", "abcd", "a\n", "a\x7f", "\x85", "\udc80"]),
        (Name(), ["a", "a/b", "a.b", "..a", "eu"], ["", "/a", "a/../b", ".", "..", "a\tb"]),
        (Size("[1, 2]"), [[1], {1: 1, 2: 2}], [[], [1, 2, 3]]),
        (Range("(0, 1)"), [0.5], [0, 1, math.nan, math.inf]),
    ],
)
def test_bounds(bound: Any, good: list[Any], bad: list[Any]):
    for value in good:
        assert bound.problem(value) is None
    for value in bad:
        assert bound.problem(value) is not None


def test_messages_cut_what_comes_from_outside():
    with pytest.raises(ConfigError) as error:
        check(Annotated[str, Text(10)], "x" * 10**6, "data.x")
    assert len(str(error.value)) < 300
