"""Batches by step number: the same after any restart and on any number of processes."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.model import ModelConfig, VisionConfig
from mllm_jax.data.images import decode as images
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.loader import HostBatch, Loader

PLAIN = -2  # fields of a batch before those of pairs, which these streams have none of
WORDS = ["Zer", "ikusten", "da", "irudian", "txakur", "beltz", "bat", "belardian", "korrika", "bi"]


@pytest.fixture
def streams(write, picture):
    """A caption stream, a chat stream with images and text, and an English text stream."""
    rng = np.random.default_rng(0)

    def say(n: int) -> str:
        return " ".join(rng.choice(WORDS, n))

    def record(key: str, images: int, rounds: int = 1) -> dict:
        turns = []
        for r in range(rounds):
            marks = "<image>\n" * images if r == 0 else ""
            turns += [{"from": "human", "value": marks + say(3)}, {"from": "gpt", "value": say(4)}]
        return {"id": key, "image": names[:images], "conversations": turns}

    names = [picture(f"{n}.png", 40 * n) for n in range(1, 4)]
    captions = [record(f"c{n}", 1) for n in range(11)]
    talks = [record(f"t{n}", n % 3, 1 + n % 2) for n in range(17)]
    texts = [record(f"e{n}", 0) for n in range(5)]
    return {
        "captions": StreamConfig(str(write("c.json", captions)), None, "eu", 2.0, "plain"),
        "talks": StreamConfig(str(write("t.jsonl", talks)), None, "eu", 3.0, "llama31"),
        "texts": StreamConfig(str(write("e.json", texts)), None, "en", 1.0, "llama3"),
    }


def same(one: HostBatch, other: HostBatch) -> None:
    assert one.records == other.records
    for a, b in zip(one.batch, other.batch, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def load(streams, model, tokenizer, make_data):
    def make(seed=0, share=None, **changes) -> Loader:
        config = make_data(changes.pop("streams", streams), **({"length": 256} | changes))
        return Loader(config, model, tokenizer, seed, share)

    return make


@pytest.mark.parametrize("pack", [True, False])
def test_any_step_from_anywhere(load, pack):
    straight = list(load(pack=pack).iterate(0, 9))
    assert len({tuple(batch.records) for batch in straight}) == 9
    resumed = [*load(pack=pack).iterate(0, 3), *load(pack=pack).iterate(3, 5)]
    resumed += load(pack=pack, threads=1, prefetch=0).iterate(5, 9)
    for one, other in zip(straight, resumed, strict=True):
        same(one, other)
    same(load(pack=pack).batch(7), straight[7])


def test_several_processes_want_the_index_prepared(load):
    with pytest.raises(ConfigError, match="run `mllm-jax prepare --config FILE` once before"):
        load(share=[0, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_batches(load, workers):
    straight = [load().batch(step) for step in range(3, 6)]
    made = load(workers=workers, prefetch=3).iterate(3, 6)
    for one, other in zip(straight, made, strict=True):
        same(one, other)


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]]])
def test_shares_of_processes_are_the_whole(load, shares):
    loader = load()  # builds the indexes
    parts = [load(share=share) for share in shares]
    for step in (0, 5):
        whole, made = loader.batch(step), [part.batch(step) for part in parts]
        records = itertools.chain(*(part.records for part in made))
        assert sorted(records) == sorted(whole.records)
        for field, all_rows in enumerate(whole.batch[:PLAIN]):
            for share, part in zip(shares, made, strict=True):
                np.testing.assert_array_equal(part.batch[field], all_rows[share])
        for part in made:
            for field, all_examples in zip(part.contents, whole.contents, strict=True):
                np.testing.assert_array_equal(field, all_examples)


def test_contents_are_what_the_rows_hold(load, model):
    """Counted a second time, on the arrays that the device gets."""
    loader = load()
    for step in range(4):
        batch, records, contents = loader.batch(step)
        assert contents.records == records
        starts = (batch.segments > 0) & (batch.positions == 0)
        np.testing.assert_array_equal(contents.streams, batch.streams[starts])
        np.testing.assert_array_equal(contents.languages, batch.languages[starts])
        assert contents.tokens.sum() == (batch.segments > 0).sum()
        seats = batch.image_index
        assert contents.images.sum() == ((seats >= 0) & (seats % model.patches == 0)).sum()
        assert contents.positions == batch.tokens.size
        tokens = np.bincount(batch.streams[batch.segments > 0])
        np.testing.assert_array_equal(np.bincount(contents.streams, contents.tokens), tokens)


def test_seed_changes_the_order(load):
    assert load(seed=1).batch(0).records != load(seed=2).batch(0).records


def test_an_epoch_of_a_mixture_by_weights_has_as_many_records_as_there_are(load):
    """Shares are 2 : 3 : 1 of 33 records: captions 11, talks 16.5, texts 5.5."""
    loader = load()
    assert loader.total_records > 20
    steps = loader.steps(2)
    counts = Counter(record for batch in loader.iterate(0, steps) for record in batch.records)
    assert counts.total() == 66 and len(counts) == 33
    streams = Counter(record.split("/")[0] for record in counts.elements())
    assert streams["captions"] == 22 and streams["talks"] in (32, 33, 34)
    rows = [ref.position for step in range(steps) for row in loader.rows(step) for ref in row]
    assert sorted(rows) == list(range(66))
    assert load().steps(0.01) == 1 < load().steps(0.5) < steps < load().steps(4)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("window", [5, 16, 2048])
@pytest.mark.parametrize("epochs", [1, 3, 0.5, 2.25])
def test_epochs_of_streams_are_exact_in_the_batches(streams, load, pack, window, epochs):
    """One pass: captions 2 x 11, talks once 17, texts half of 5."""
    every = {"captions": 2.0, "talks": 1.0, "texts": 0.5}
    named = {
        name: dataclasses.replace(streams[name], weight=1.0, epochs=times)
        for name, times in every.items()
    }
    loader = load(streams=named, pack=pack, window=window)
    steps = loader.steps(epochs)
    batches = list(loader.iterate(0, steps))
    counts = Counter(record for batch in batches for record in batch.records)
    trained = Counter(record.split("/")[0] for record in counts.elements())
    for name, size in (("captions", 11), ("talks", 17), ("texts", 5)):
        exact = math.ceil(every[name] * epochs * size)
        slack = 0 if float(epochs).is_integer() else 1
        assert abs(trained[name] - exact) <= slack
        per_record = [counts[key] for key in counts if key.startswith(name)]
        assert max(per_record) - min(per_record) <= 1, "a record comes again after all others"
    assert counts.total() == sum(
        math.ceil(every[name] * epochs * size)
        for name, size in (("captions", 11), ("talks", 17), ("texts", 5))
    )
    end = loader.report()["end"]
    empty = [row for row in batches[-1].batch.segments if not row.any()]
    assert end == {"examples": counts.total(), "steps": steps, "empty_rows": len(empty)}
    assert len(empty) < 4, "else the last step would not be needed"
    for batch in batches[:-1]:
        assert batch.batch.segments.any(axis=1).all(), "only the last batch has empty rows"


def test_behind_the_end_rows_are_empty_in_workers_and_processes_alike(load):
    whole = load()
    steps = whole.steps(1)
    for field in whole.batch(steps).batch[:PLAIN]:
        assert not field.any() or (field == -1).all()
    parts = [load(share=[0, 1]), load(share=[2, 3]), load(workers=1)]
    for part in parts:
        assert part.steps(1) == steps
    last = list(parts[2].iterate(steps - 1, steps))
    same(last[0], whole.batch(steps - 1))
    for field, expected in enumerate(whole.batch(steps - 1).batch[:PLAIN]):
        rows = [part.batch(steps - 1).batch[field] for part in parts[:2]]
        np.testing.assert_array_equal(np.concatenate(rows), expected)


def test_shares_are_those_of_the_config(load):
    assert load().shares(10) == pytest.approx({"captions": 1 / 3, "talks": 1 / 2, "texts": 1 / 6})
    changed = load(changes={"5": {"captions": 6.0}})
    assert changed.shares(10)["captions"] == pytest.approx((1 / 3 + 0.6) / 2)
    assert changed.weights(4)["captions"] == pytest.approx(1 / 3)
    assert changed.weights(5)["captions"] == pytest.approx(0.6)


def test_a_batch_of_too_many_pixels_is_refused(load):
    fields = {"rows": 10**6, "image_slots": 4096, "length": 200}
    with pytest.raises(ConfigError, match=r"data.rows=1000000 with data.image_slots=4096"):
        load(**fields)


def test_rows_name_what_the_batch_holds(load):
    loader = load()
    batch = loader.batch(3)
    rows = loader.rows(3)
    assert [len(row) for row in rows] == batch.batch.segments.max(axis=1).tolist()
    names = ("captions", "talks", "texts")
    shown = [record.split("/")[0] for record in batch.records]
    assert shown == [names[ref.stream] for row in rows for ref in row]


def test_a_batch_holds_what_its_rows_say(load, model, image_token, tokenizer):
    loader = load()
    for batch, records, _ in loader.iterate(0, 6):
        b, t = batch.tokens.shape
        assert (b, t) == (4, 256)
        assert batch.pixels.shape == (4, 3, 4, 4, 3)
        assert batch.pixels.dtype == np.uint8
        np.testing.assert_array_equal(batch.tokens == image_token, batch.image_index >= 0)
        assert not batch.weights[batch.targets == image_token].any()
        assert not batch.weights[batch.segments == 0].any()
        assert not batch.tokens[batch.segments == 0].any()
        trained = batch.weights > 0
        np.testing.assert_array_equal(batch.targets[:, :-1][trained[:, :-1]],
                                      batch.tokens[:, 1:][trained[:, :-1]])  # fmt: skip
        same_segment = batch.segments[:, :-1] == batch.segments[:, 1:]
        assert not trained[:, :-1][~same_segment].any()
        starts = (batch.positions == 0) & (batch.segments > 0)
        assert int(starts.sum()) == len(records)
        assert (batch.tokens[starts] == tokenizer.bos_token_id).all()
        texts = batch.streams == 2
        np.testing.assert_array_equal(batch.languages == 1, texts)


def test_images_sit_in_their_own_slots(load):
    """The k-th picture of a record is grey 40 (k + 1); each image's seats point at its slot."""
    loader = load(pack=True)
    seen = 0
    for step in range(5):
        batch = loader.batch(step).batch
        for row in range(4):
            slots = batch.image_index[row][batch.image_index[row] >= 0]
            assert slots.tolist() == list(range(len(slots)))
            used = len(slots) // 4
            assert not batch.pixels[row, used:].any()
            for slot in range(used):
                where = np.flatnonzero(batch.image_index[row] == slot * 4)[0]
                segment = batch.segments[row, where]
                before = (batch.segments[row] == segment) & (batch.image_index[row] >= 0)
                number = int(before[:where].sum()) // 4
                assert (batch.pixels[row, slot] == 40 * (number + 1)).all()
                seen += 1
    assert seen > 10


def test_packed_and_unpacked_hold_the_same_examples(load):
    def segments(loader: Loader, steps: int) -> dict[int, tuple]:
        found = {}
        for step in range(steps):
            batch = loader.batch(step).batch
            for r, row in enumerate(loader.rows(step)):
                for s, ref in enumerate(row, start=1):
                    at = batch.segments[r] == s
                    image = batch.image_index[r][at]
                    shape = np.where(image >= 0, image - image.max(initial=0), -99)
                    found[ref.position] = tuple(
                        map(bytes, (batch.tokens[r][at], batch.targets[r][at], shape,
                                    batch.weights[r][at], batch.positions[r][at]))
                    )  # fmt: skip
        return found

    packed, alone = segments(load(), 4), segments(load(pack=False), 12)
    assert len(set(packed) & set(alone)) > 40
    assert len(alone) == 48
    assert all(packed[p] == alone[p] for p in set(packed) & set(alone))


def test_report(load):
    report = load(length=120, over_long="cut").report()
    assert report["records"] == 33
    assert report["used"] == report["records"] - sum(
        sum(s["dropped"].values()) for s in report["streams"].values()
    )
    assert list(report["streams"]) == ["captions", "talks", "texts"]
    assert set(report["streams"]["talks"]["dropped"]) <= {"eu"}
    assert 0 < report["trained_share"] < 1


def test_a_broken_image_ends_the_iteration_with_its_name(load, tmp_path):
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[:48])
    for ahead in (0, 2):
        with pytest.raises(ConfigError, match=r"2\.png: the image is broken"):
            list(load(prefetch=ahead).iterate(0, 8))


def test_the_limit_on_pixels_is_that_of_the_index(load, tmp_path):
    """A picture that grew after the index was built; 5 x 4 pixels were looked at."""
    loader = load(max_pixels=20)
    for name in ("1.png", "2.png", "3.png"):
        Image.fromarray(np.zeros((7, 3, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(ConfigError, match=r"3 x 7 pixels are more than data.max_pixels=20"):
        list(loader.iterate(0, 8))


def test_rotation_and_fit_reach_the_batch(write, model, tokenizer, make_data, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    left_dark = np.zeros((8, 4, 3), np.uint8)
    left_dark[:4] = 250
    Image.fromarray(left_dark).save(tmp_path / "a.png", exif=exif)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    path = write("a.json", [{"image": "a.png", "language": "eu", "conversations": turns}])
    pixels = {}
    for fit in ("crop", "pad"):
        data = make_data({"s": StreamConfig(str(path))}, image_fit=fit, window=4)
        pixels[fit] = Loader(data, model, tokenizer, 0).batch(0).batch.pixels[0, 0]
    assert pixels["crop"][:, 0].max() < 60 < 200 < pixels["crop"][:, 3].min()
    assert (abs(pixels["pad"][0].astype(int) - [122, 116, 104]) < 20).all()


def test_what_does_not_fit_together(streams, model, tokenizer, make_data):
    def refused(match: str, network: ModelConfig) -> None:
        with pytest.raises(ConfigError, match=match):
            Loader(make_data(streams), network, tokenizer, 0)

    assert model.language is not None
    fields = {"vision": model.vision, "connector": model.connector, "image_token": 300}
    few = ModelConfig(
        language=type(model.language)(**{**vars(model.language), "vocab": 355}), **fields
    )
    refused("model.language.vocab=355 is too small for the tokenizer's 356 tokens", few)
    short = type(model.language)(**{**vars(model.language), "max_length": 64})
    short_model = ModelConfig(language=short, **fields)
    refused("data.length=96 is longer than model.language.max_length=64", short_model)
    blind = ModelConfig(language=model.language)
    refused("data.image_slots=3: the model reads no images, set 0", blind)
    assert isinstance(model.vision, VisionConfig)


def test_what_just_fits_together(streams, model, tokenizer, make_data):
    data = make_data(streams)
    assert model.language is not None and len(tokenizer) == 356
    sizes = {"vocab": len(tokenizer), "max_length": data.length}
    language = type(model.language)(**{**vars(model.language), **sizes})
    network = ModelConfig(model.vision, model.connector, language, model.image_token)
    assert Loader(data, network, tokenizer, 0).total_records > 20


def test_the_first_images_are_kept_as_far_as_there_is_room(load, monkeypatch):
    read = []

    def tiles(path, *_):
        read.append(path)
        return Tiles(np.zeros((1, 400, 1000, 1), np.uint8), np.arange(4, dtype=np.int32))

    loader = load(image_cache=1)
    monkeypatch.setattr(images, "load_tiles", tiles)
    for path in "abcabc":
        assert loader.tiles([path])[0].pixels.nbytes == 400_000
    assert read == ["a", "b", "c", "c"]


def test_text_alone(streams, model, tokenizer, make_data):
    data = make_data({"texts": streams["texts"]}, image_slots=0)
    loader = Loader(data, ModelConfig(language=model.language), tokenizer, 0)
    batch = loader.batch(0).batch
    assert batch.pixels.shape == (4, 0, 1, 1, 3)
    assert (batch.image_index == -1).all()
    assert list(loader.iterate(3, 3)) == []
