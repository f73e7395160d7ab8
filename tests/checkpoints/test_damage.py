"""Checkpoints that are not as they were saved: each damage is found, and named with its file."""

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.manifest import DamagedCheckpoint
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints


def tree(seed: int) -> dict:
    return {"language": {"embedding": jax.random.normal(jax.random.key(seed), (64, 64))}}


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch):
    """Steps 4 and 8, whose files are of many blocks."""
    monkeypatch.setattr(manifest, "BLOCK", 64)
    with Checkpoints(tmp_path, Keep(3)) as made:
        for step in (4, 8):
            made.save(step, tree(step), {"mu": tree(-step), "count": jnp.int32(step)}, {})
        made.wait()
        yield made


def truncate(path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return f"has {size // 2} bytes, {size} were saved"


def grow(path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, size + 1)
    return f"has {size + 1} bytes, {size} were saved"


def flip(path: Path, at: float = 0.5) -> str:
    with path.open("r+b") as file:
        position = int((path.stat().st_size - 1) * at)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))
    return r"holds other bytes than were saved \(crc32\)"


def flip_first(path: Path) -> str:
    return flip(path, at=0)


def flip_last(path: Path) -> str:
    return flip(path, at=1)


def remove(path: Path) -> str:
    path.unlink()
    return "is missing"


def largest(folder: Path) -> Path:
    return max((x for x in folder.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


@pytest.mark.parametrize("harm", [truncate, grow, flip_first, flip, flip_last, remove])
@pytest.mark.parametrize("item", ["params", "moments"])
def test_a_damaged_file_is_named(checkpoints, item: str, harm: Callable[[Path], str], capsys):
    path = largest(checkpoints.folder / "8" / item)
    words = f"checkpoint 8 is damaged: {re.escape(str(path))}: {harm(path)}; "
    with pytest.raises(DamagedCheckpoint, match=words) as error:
        checkpoints.verified("fail")
    assert str(error.value).endswith(
        "continue from step 4 with --train.on_damage previous, or train again into another folder"
    )
    assert "\n" not in str(error.value)
    assert checkpoints.steps() == [4, 8]
    assert checkpoints.verified("previous") == 4
    assert re.search(f"{words}continuing from step 4", capsys.readouterr().err)
    assert checkpoints.steps() == [4]
    assert (checkpoints.folder / "8.damaged").is_dir()
    checkpoints.save(8, tree(8), {"mu": tree(-8), "count": jnp.int32(8)}, {})  # its name is free


def test_every_file_is_under_the_seal(checkpoints):
    folder = checkpoints.folder / "8"
    sealed = set(manifest.read(folder)["files"])
    there = {x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file()}
    assert sealed == there - {manifest.FILE, *manifest.STAMPS}
    assert {name.split("/")[0] for name in sealed} >= {"params", "moments"}
    assert not list(folder.rglob(f"{manifest.NOTES}*"))


def test_one_that_was_damaged_before_makes_room(checkpoints):
    (checkpoints.folder / "8.damaged" / "params").mkdir(parents=True)
    flip(largest(checkpoints.folder / "8"))
    assert checkpoints.verified("previous") == 4
    assert (checkpoints.folder / "8.damaged" / manifest.FILE).is_file()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (remove, "seal.json: is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"seal\.json: is corrupt"),
        (lambda path: path.write_text("[]"), r"seal\.json: is corrupt"),
    ],
)
def test_the_seal_itself(checkpoints, harm, words: str):
    harm(checkpoints.folder / "8" / manifest.FILE)
    with pytest.raises(DamagedCheckpoint, match=words):
        checkpoints.verified("fail")
    assert checkpoints.verified("previous") == 4


def test_when_all_are_damaged_nothing_is_taken(checkpoints):
    for step in (4, 8):
        flip(largest(checkpoints.folder / f"{step}" / "moments"))
    with pytest.raises(
        DamagedCheckpoint, match=r"checkpoint 4 is damaged: .*there is no other: train again"
    ):
        checkpoints.verified("previous")


def test_whole_checkpoints_pass(checkpoints):
    assert checkpoints.verified("fail") == 8
    manifest.verify(checkpoints.folder / "8", manifest.read(checkpoints.folder / "8")["files"])


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 1000])
def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path, monkeypatch, size: int):
    """Whatever the blocks in which it is read."""
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "a").write_bytes(content)
    for block in (1, 4, 2**22):
        monkeypatch.setattr(manifest, "BLOCK", block)
        assert manifest.checksums(tmp_path) == {"a": (size, zlib.crc32(content))}


def test_without_a_checkpoint_there_is_none(tmp_path: Path):
    with Checkpoints(tmp_path / "new", Keep(1)) as made:
        assert made.verified("fail") is None
