"""Shards of a folder: of one split, complete, and none left out without a word."""

import os
from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.sources.shards import Options, list_shards


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def listed(folder: Path, suffix: str = ".tar", **options) -> list[str]:
    files = list_shards(folder, (suffix,), Options(**options)).files
    return [str(file.relative_to(folder)) for file in files]


def refusal(folder: Path, suffix: str = ".tar", **options) -> str:
    with pytest.raises(ConfigError) as error:
        listed(folder, suffix, **options)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}: ")


def test_suffixes_are_read_in_any_case(tmp_path):
    touch(tmp_path, "b.tar", "A.TAR", "c/x.Tar")
    assert listed(tmp_path) == ["A.TAR", "b.tar", "c/x.Tar"]


def test_a_count_may_stand_behind_the_suffix(tmp_path):
    touch(tmp_path, "a.array_record-00000-of-00002", "a.array_record-00001-of-00002")
    assert len(listed(tmp_path, ".array_record")) == 2


def test_what_else_is_in_the_folder_is_said(tmp_path):
    touch(
        tmp_path, "train-0.tar", "test-0.tar", "test-1.tar", "x.tar", "stats.json", "b.csv",
        "README.md", "dataset_info.json", "1.png", "LICENSE",
    )  # fmt: skip
    files, notes = list_shards(tmp_path, (".tar",), Options("train"))
    assert [file.name for file in files] == ["train-0.tar"]
    assert notes == [
        f"{tmp_path}: not read, of no split: x.tar",
        f"{tmp_path}: not read, of test: test-0.tar, test-1.tar",
        f"{tmp_path}: not read, of other kinds: b.csv, stats.json",
    ]


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2", ".zst", ".lz4", ".ZIP"])
def test_packed_files_beside_plain_ones_are_refused(tmp_path, packing):
    touch(tmp_path, "a.txt", f"b.txt{packing}")
    said = refusal(tmp_path, ".txt")
    assert said == f"b.txt{packing}: compressed; rows are read by offset, so unpack them"
    (tmp_path / "a.txt").unlink()
    assert "compressed" in refusal(tmp_path, ".txt")


def test_packed_files_of_another_split_are_only_counted(tmp_path):
    touch(tmp_path, "train.tar", "test.tgz")
    assert listed(tmp_path, split="train") == ["train.tar"]
    assert "test.tgz: compressed" in refusal(tmp_path, split="test")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.tar", "train-00001-of-00002.tar"],
        ["0_of_2.tar", "1_of_2.tar"],
        ["a-1-of-2.tar", "a-2-of-2.TAR"],  # from 1
        ["x/a-0-of-1.tar", "y/a-0-of-2.tar", "y/a-1-of-2.tar"],
        ["eu-0-of-1.tar", "en-0-of-2.tar", "en-1-of-2.tar"],
        ["a-0-of-2-0123456789abcdef.tar", "a-1-of-2-fedcba9876543210.tar"],
    ],
)
def test_complete_sets_are_read(tmp_path, names):
    assert listed(touch(tmp_path, *names)) == sorted(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["train-00000-of-00003.tar", "train-00002-of-00003.tar"],
            "1 of 3 shards train-... are missing, as number 00001, beside train-00000-of-00003.tar",
        ),
        (["a-0-of-2.tar"], "1 of 2 shards a-... are missing, as number 1"),
        (["a-1-of-3.tar", "a-2-of-3.tar"], "1 of 3 shards a-... are missing, as number 0"),
        (["a-2-of-3.tar", "a-3-of-3.tar"], "1 of 3 shards a-... are missing, as number 1"),
        (["a-0-of-1.tar", "a-0-of-2.tar", "a-1-of-2.tar"], "are of two sets; keep one"),
        (["a-0-of-2.tar", "a-1-of-2.tar", "a-2-of-2.tar"], "a-2-of-2.tar: counts beyond its total"),
        (["a-0-of-999999999.tar"], "999999998 of 999999999 shards a-... are missing"),
    ],
)
def test_incomplete_sets_are_refused(tmp_path, names, said):
    assert said in refusal(touch(tmp_path, *names))


def test_one_shard_twice_under_two_digests_is_refused(tmp_path):
    touch(tmp_path, "a-0-of-1-0123456789abcdef.tar", "a-0-of-1-fedcba9876543210.tar")
    assert "-fedcba9876543210.tar are one shard; keep one" in refusal(tmp_path)


def test_missing_shards_of_another_split_do_not_matter(tmp_path):
    touch(tmp_path, "train-0-of-1.tar", "test-1-of-2.tar")
    assert listed(tmp_path, split="train") == ["train-0-of-1.tar"]


def test_numbers_that_are_left_out_are_said(tmp_path):
    touch(tmp_path, "a-0000.tar", "a-0001.tar", "a-0003.tar")
    (note,) = list_shards(tmp_path, (".tar",), Options()).notes
    assert note == f"{tmp_path}: 1 numbers are missing, the first after a-0001.tar"
    touch(tmp_path, "a-0002.tar")
    assert list_shards(tmp_path, (".tar",), Options()).notes == []
    touch(tmp_path, "year-1999.tar", "year-2020.tar")  # no series
    assert list_shards(tmp_path, (".tar",), Options()).notes == []


def test_a_file_that_the_config_names_is_read_as_it_is(tmp_path):
    touch(tmp_path, "train-00001-of-00003.tar", "train-test.tar")
    for file in tmp_path.iterdir():
        assert list_shards(file, (".tar",), Options()).files == [file]
    shard = tmp_path / "train-00001-of-00003.tar"
    assert list_shards(shard, (".tar",), Options("train")).files == [shard]
    with pytest.raises(ConfigError, match="no file of split 'test'; there are train"):
        list_shards(shard, (".tar",), Options("test"))


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    assert "a.tar: not a regular file" in refusal(tmp_path)
