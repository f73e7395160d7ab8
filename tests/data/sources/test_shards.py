"""Shards of a folder and their splits: none is read that was not asked for."""

from pathlib import Path

import pytest

from mllm_jax.data.sources.shards import find_shards, split_of
from mllm_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.parquet", "train"), ("validation.arrow", "validation"),
        ("data/test/000.tar", "test"), ("eu/dev_1.tar", "dev"), ("Train.parquet", "train"),
        ("test/train-1.tar", "train"), ("trains.parquet", None), ("00000.tar", None),
        ("contest-1.tar", None), ("testimony/1.tar", None),
    ],
)  # fmt: skip
def test_split_of(name, split):
    assert split_of(Path(name)) == split


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_one_split_is_chosen(tmp_path):
    folder = touch(tmp_path / "s", "train-1.tar", "train-0.tar", "test-0.tar", "more.tar")
    assert [f.name for f in find_shards(folder, ".tar", split="train")] == [
        "train-0.tar",
        "train-1.tar",
    ]
    with pytest.raises(ConfigError, match="holds shards of test and train, and a stream reads one"):
        find_shards(folder, ".tar")
    with pytest.raises(ConfigError, match="no shard of split 'dev'; there are test, train"):
        find_shards(folder, ".tar", split="dev")


def test_one_split_or_none_needs_no_choice(tmp_path):
    plain = touch(tmp_path / "test", "0.tar", "1.tar")  # the folder's own name says nothing
    assert len(find_shards(plain, ".tar")) == 2
    assert len(find_shards(touch(tmp_path / "t", "train-0.tar", "a.tar"), ".tar")) == 2
    with pytest.raises(ConfigError, match="'train'; no name of a shard says its split"):
        find_shards(plain, ".tar", split="train")
