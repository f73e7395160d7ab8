"""A new folder is there whole or not at all; nothing that exists is written over."""

from pathlib import Path

import pytest

from mllm_jax.errors import ConfigError
from mllm_jax.folders import in_use, new_folder, whole_file


def test_in_use(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert not in_use(tmp_path / "none")
    assert not in_use(tmp_path / "empty")
    assert in_use(tmp_path / "file")
    assert in_use(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_gets_its_name_at_the_end(tmp_path: Path, exists: bool):
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "a").write_text("x")
        assert not in_use(out)
    assert (out / "a").read_text() == "x"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path):
    def work() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_in_use_is_refused_and_kept(tmp_path: Path, kind: str):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").touch()
    with pytest.raises(ConfigError, match=r"is a file; give|exists and is not empty"):
        new_folder(out).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert in_use(out)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    path = tmp_path / "config.yaml"
    with whole_file(path) as beside:
        beside.write_text("one")
        assert not path.exists() and beside.parent == tmp_path

    def work() -> None:
        with whole_file(path) as beside:
            beside.write_text("two")
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        work()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
