"""Splits by names, as the `datasets` library reads them: no test data is trained on by accident."""

from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.sources.splits import choose, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.parquet", "train"), ("validation.arrow", "validation"),
        ("data/test/000.tar", "test"), ("eu/dev_1.tar", "validation"), ("Train.parquet", "train"),
        ("cc3m-train-0000.tar", "train"), ("cc3m-validation-0000.tar", "validation"),
        ("basque_vqa-test.arrow", "test"), ("corpus_train.parquet", "train"),
        ("training/0.parquet", "train"), ("testing/0.parquet", "test"),
        ("eu_dev/7.txt", "validation"),
        ("train1/0.tar", "train"), ("val2017.parquet", "validation"), ("my eval/0.tar", "test"),
        ("a.evaluation.7.tar", "test"), ("test/train-1.tar", "test"),  # folders before the name
        ("trains.parquet", None), ("00000.tar", None), ("contest-1.tar", None),
        ("attest.tar", None),
        ("testimony/1.tar", None), ("evaluated-1.tar", None), ("devs.tar", None),
        ("data/train_sft-00000-of-00003.parquet", "train_sft"),
        ("data/heldout-00000-of-00001-0a1b2c3d4e5f6a7b.parquet", "heldout"),
        ("data/dev-00000-of-00001.parquet", "validation"),
        ("more/train_sft-00000-of-00003.parquet", "train"),
    ],
)  # fmt: skip
def test_split_of(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["train-test.tar", "train/eu_dev/0.tar", "dev.test.parquet"])
def test_a_name_of_two_splits_is_refused(name):
    with pytest.raises(ConfigError, match=r"its name says the splits .* and .*; rename it"):
        split_of(name)


ROOT = Path("test")  # the folder's own name says nothing


def test_one_split_is_chosen_and_the_others_are_counted():
    files = ["cc-train-1.tar", "cc-train-0.tar", "cc-val-0.tar", "cc-dev-1.tar", "more.tar"]
    for split in ("train", "training", "Train"):
        others = {"no split": files[4:], "validation": files[2:4]}
        assert choose(files, ROOT, split) == (files[:2], others)
    assert choose(files, ROOT, "valid").names == files[2:4]
    assert choose(files, ROOT, "all") == (files, {})
    with pytest.raises(ConfigError, match="no file of split 'test'; there are train, validation"):
        choose(files, ROOT, "test")
    with pytest.raises(ConfigError, match="no file of split 'train'; no name of a file says its"):
        choose(["0.tar"], ROOT, "train")


def test_sets_of_one_split_are_told_apart_by_their_whole_name():
    files = ["train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet"]
    assert choose(files, ROOT, "train_sft") == (files[:1], {"train": files[1:]})
    assert choose(files, ROOT, "train").names == files
    data = [f"data/{name}" for name in files]
    with pytest.raises(ConfigError, match="holds files of train_gen and train_sft"):
        choose(data, ROOT, None)


def test_without_a_choice_all_names_say_the_same_or_nothing():
    for names in (("0.tar", "1.tar"), ("train-0.tar", "training/1.tar")):
        assert choose(list(names), ROOT, None) == (list(names), {})
    with pytest.raises(ConfigError) as error:
        choose(["eu_train/0.txt", "eu_dev/0.txt", "0.txt"], ROOT, None)
    assert str(error.value) == (
        "test: holds files of train and validation, and a stream reads one split; choose by "
        "data.streams.*.split"
    )
    with pytest.raises(ConfigError) as error:
        choose(["extra.tar", "train-0.tar", "train-1.tar"], ROOT, None)
    assert str(error.value) == (
        "test: train-0.tar says that it is of split train, extra.tar says no split; choose by "
        "data.streams.*.split: train, or all for every file"
    )
