"""A stage that begins to cut images into tiles: its newline vector, its rows, its equivalences."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mllm_jax.batch import TEXT
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.data.records.parse import user_turn
from mllm_jax.distributed import sharding
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from mllm_jax.training.loop import train
from mllm_jax.training.setup import init_params, make_setup
from tests.support import tiny

NEWLINE = "connector/newline"
# squares of 16 pixels, pictures of 24 x 20: five tiles; two in a record are a padded square each
GRIDS = {
    "order": "wh",
    "rounding": "original",
    "several_images": "pad",
    "sizes": [[16, 32], [32, 16], [32, 32]],
}
SLOTS, LENGTH = 10, 144


def one_device(config: Config, resume: bool = False) -> Path:
    return train(config, resume, jax.devices()[:1])


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:
    """A stage without tiles."""
    out = tmp_path_factory.mktemp("plain") / "run"
    return one_device(tiny.config(data, out, train={"steps": 2, "save_every": 2}))


def tiled(data: Path, weights: Path, out: Path, **sections: Any) -> Config:
    """The stage after it: anyres, padded and text-only records in one mixture."""
    model = tiny.tree(data, out)["model"] | {"grids": GRIDS}
    tree: dict[str, Any] = {
        "model": model,
        "init": {"weights": str(weights)},
        "data": {"length": LENGTH, "image_slots": SLOTS},
        "train": {"steps": 6, "save_every": 3},
    }
    return tiny.config(data, out, **(tree | sections))


@pytest.fixture(scope="module")
def straight(data, plain, tmp_path_factory) -> Path:
    return one_device(tiled(data, plain, tmp_path_factory.mktemp("tiled") / "run"))


def newline_of(run: Path, checkpoint: str = "") -> np.ndarray:
    source = open_model(run / checkpoint if checkpoint else run)
    shapes = mllm.abstract_params(mllm.build(source.config.model, tiny.config(run, run).compute))
    return np.asarray(source.load(shapes)[NEWLINE])


def test_the_newline_is_drawn_where_a_stage_needs_it(data, plain, straight, tmp_path, capsys):
    """With the stage's seed, as a model of random numbers has it; said in the line on weights."""
    config = tiled(data, plain, tmp_path / "run", train={"steps": 1, "save_every": 1})
    run = one_device(config)
    line = f"weights: read from {plain}, {NEWLINE} new, drawn with seed 3"
    assert capsys.readouterr().err.count(line) == 1
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    setup = make_setup(config.model, config.compute, config.optimizer, mesh, 6)
    drawn = np.asarray(init_params(setup, setup.params, config.seed)[NEWLINE])
    np.testing.assert_array_equal(newline_of(run), drawn)  # the rate of the first step is 0
    assert np.any(newline_of(straight) != newline_of(straight, "checkpoints/3"))
    assert open_model(plain).config.model.grids is None
    assert (straight / "model" / "config.yaml").read_text().count("several_images: pad") == 1


def test_rows_mix_images_in_tiles_padded_ones_and_text(data, plain, straight, tmp_path):
    config = tiled(data, plain, tmp_path / "run")
    loader = Loader(config.data, config.model, load_tokenizer(data / "tokenizer"), config.seed)
    batches = list(loader.iterate(0, 6))
    contents = [host.contents for host in batches]
    kinds = [pair for c in contents for pair in np.stack([c.images, c.tiles], axis=1).tolist()]
    assert {tuple(pair) for pair in kinds} == {(0, 0), (1, 5), (2, 2)}
    for host in batches:
        index = host.batch.image_index
        assert ((index == SLOTS * 4).sum(axis=1) > 0).any() and index.max() <= SLOTS * 4
        tokens = host.batch.tokens == config.model.image_token
        np.testing.assert_array_equal(tokens, index != TEXT)
        assert not host.batch.weights[:, :-1][tokens[:, 1:]].any()
        named = sum(len(set((row[(row >= 0) & (row < SLOTS * 4)] // 4).tolist())) for row in index)
        assert named == host.contents.tiles.sum()
    lines = tiny.numbers(straight)
    shares = [1 - c.tiles.sum() / c.slots for c in contents]
    assert [line["unused_slot_share"] for line in lines] == pytest.approx(shares)


@pytest.mark.slow
def test_resumed_equals_straight_to_the_bit(data, plain, straight, tmp_path):
    config = tiled(data, plain, tmp_path / "run")
    part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=3))
    one_device(part)
    run = one_device(config, resume=True)
    assert tiny.numbers(run) == tiny.numbers(straight)
    np.testing.assert_array_equal(newline_of(run), newline_of(straight))


@pytest.mark.slow  # tests/training/test_mixed_rows.py does it with SigLIP and LoRA
def test_eight_devices_equal_one(data, plain, straight, tmp_path):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    run = train(tiled(data, plain, tmp_path / "run", mesh=mesh))
    one, eight = tiny.numbers(straight), tiny.numbers(run)
    for name in ("loss", "grad_norm", "loss/stream/eu", "loss/stream/text", "unused_slot_share"):
        pairs = [(a[name], b[name]) for a, b in zip(one, eight, strict=True) if name in a]
        assert pairs
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-4)
    np.testing.assert_allclose(newline_of(run), newline_of(straight), rtol=1e-3, atol=1e-5)


def test_weights_with_other_grids_are_of_another_architecture(data, straight, tmp_path):
    config = tiled(data, straight, tmp_path / "run")
    other = loading.to_dict(config) | {"out": str(tmp_path / "other")}
    other["model"]["grids"]["order"] = "hw"
    with pytest.raises(ConfigError, match=r"grids\.order is 'wh', the config says 'hw'"):
        one_device(loading.build(Config, other))
    none = tiled(data, straight, tmp_path / "none", model=tiny.tree(data, tmp_path)["model"])
    with pytest.raises(ConfigError, match=r"another architecture: grids\.order is 'wh'"):
        one_device(none)
    assert not (tmp_path / "other").exists() and not (tmp_path / "none").exists()


def test_answers_see_the_tiles(data, straight):
    """Prompts with an image in tiles, two padded ones and none: together as one by one."""
    opened = Answerer(straight)
    files = [data / "images" / f"{n}.png" for n in range(3)]
    asked = [files[:1], files[1:], []]
    prompts = [
        opened.prompt([user_turn("Zein kolore?", len(images))], 4, images=images)
        for images in asked
    ]
    # a whole image and 4 lines of 4 with a newline each; squares with a newline each
    counts = [int((prompt.placeholders != TEXT).sum()) for prompt in prompts]
    assert counts == [4 + 4 * 5, 2 * 5, 0]
    pictures = [opened.pictures(images) for images in asked]
    assert [len(picture.pixels) for few in pictures for picture in few] == [5, 1, 1]
    together = opened.answer(prompts, pictures, 4)
    alone = [
        opened.answer([prompt], [few], 4, rows=len(prompts), slots=5)[0]
        for prompt, few in zip(prompts, pictures, strict=True)
    ]
    assert together == alone
