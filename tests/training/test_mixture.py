"""open_mixture: the rows of the run as a Grain dataset that composes with Grain's own parts."""

import dataclasses
import pickle

import grain
import jax
import numpy as np
import pytest
from absl import flags

from mllm_jax.batch import Batch
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.dataset import RowDataset
from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture.packing import Row
from mllm_jax.training.mixture import open_mixture
from tests.support import tiny
from tests.support.once import once


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = once(tmp_path_factory, "open-mixture", tiny.make_data)
    config = tiny.config(folder, folder / "run", train={"steps": 5})
    open_mixture(config)  # builds the indexes
    return config


@pytest.fixture
def rows(config: Config) -> RowDataset:
    return open_mixture(config)


def loader_of(config: Config) -> Loader:
    tokenizer = load_tokenizer(config.init.tokenizer or "")
    return Loader(config.data, config.model, tokenizer, config.seed)


def same(one: Row | Batch | None, other: Row | Batch | None) -> None:
    assert one is not None and other is not None
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_are_those_of_the_loader_from_anywhere(config: Config, rows: RowDataset):
    loader, size = loader_of(config), config.data.rows
    assert len(rows) == 5 * size and isinstance(rows, grain.MapDataset)
    for step in (3, 0):
        batch = loader.batch(step).batch
        for number in reversed(range(size)):
            row = rows[step * size + number]
            assert row is not None
            for field, of_all in zip(jax.tree.leaves(row), jax.tree.leaves(batch), strict=True):
                np.testing.assert_array_equal(field, of_all[number])


def test_a_row_names_its_fields_as_a_batch_does(rows: RowDataset):
    assert Row._fields == Batch._fields
    row = rows[0]
    assert row is not None and row.tokens.shape == (96,) and row.pixels.dtype == np.uint8


def test_batches_are_those_of_the_loader(config: Config, rows: RowDataset):
    batches, loader = rows.batch(config.data.rows), loader_of(config)
    assert len(batches) == 5
    same(batches[2], loader.batch(2).batch)


@pytest.mark.parametrize("threads", [0, 2])
def test_read_threads_give_the_same_order(rows: RowDataset, threads: int):
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * 2)
    in_threads = list(rows.to_iter_dataset(options))
    assert len(in_threads) == len(rows)
    for number, row in enumerate(in_threads):
        same(row, rows[number])


def test_an_iterator_continues_from_its_state(rows: RowDataset):
    iterator = iter(rows.to_iter_dataset())
    for _ in range(7):
        next(iterator)
    again = iter(rows.to_iter_dataset())
    again.set_state(iterator.get_state())
    same(next(again), rows[7])


def test_transformations_compose(rows: RowDataset):
    lengths = rows.map(lambda row: int((row.segments > 0).sum()))
    total = sum(lengths)
    assert sum(rows.shuffle(seed=1).map(lambda row: int((row.segments > 0).sum()))) == total
    assert list(lengths.slice(slice(1, None, 2))) == list(lengths)[1::2]
    assert list(rows.shuffle(seed=1).map(lambda row: row.tokens.sum())) != list(
        rows.map(lambda row: row.tokens.sum())
    )


def test_a_grain_loader_reads_it(rows: RowDataset):
    sampler = grain.samplers.IndexSampler(len(rows), num_epochs=1)
    loader = grain.DataLoader(data_source=rows, sampler=sampler, worker_count=0)
    for number, row in zip(range(3), loader, strict=False):
        same(row, rows[number])


def test_a_pickled_dataset_gives_the_same_rows(rows: RowDataset):
    copy = pickle.loads(pickle.dumps(rows))
    for number in (33, 2):
        same(copy[number], rows[number])


def test_behind_the_end_it_begins_again(rows: RowDataset):
    same(rows[len(rows) + 3], rows[3])
    same(rows[-1], rows[len(rows) - 1])
    assert len(rows.repeat(2)) == 2 * len(rows)


def test_epochs_end_the_dataset_as_they_end_the_run(config: Config):
    train = dataclasses.replace(config.train, steps=None, epochs=1.0)
    rows, loader = open_mixture(dataclasses.replace(config, train=train)), loader_of(config)
    assert len(rows) == loader.steps(1) * config.data.rows
    segments = sum(int(row.segments.max()) for row in rows if row is not None)
    assert segments == loader.total_records


def test_another_seed_is_another_order(config: Config, rows: RowDataset):
    other = open_mixture(dataclasses.replace(config, seed=config.seed + 1))
    assert any((a.tokens != b.tokens).any() for a, b in zip(rows, other, strict=True))
    again = open_mixture(config)
    for number in range(10):
        same(again[number], rows[number])


@pytest.mark.slow  # processes that import Grain and JAX
def test_processes_of_grain_read_it(rows: RowDataset):
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for it; absl.app.run does it too
    options = grain.MultiprocessingOptions(num_workers=2)
    dataset = rows.batch(8).to_iter_dataset().mp_prefetch(options)
    read = list(dataset)
    assert len(read) == 5
    for number, batch in enumerate(read):
        same(batch, rows.batch(8)[number])
