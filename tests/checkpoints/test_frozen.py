"""The files of frozen parameters: one at a time, whole or not at all, their damage found."""

import errno
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.checkpoints import frozen as module
from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.frozen import FrozenParams, frozen_leaves
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.manifest import DamagedCheckpoint
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common.errors import ConfigError, RunError
from tests.support import disks


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    numbers = [random.standard_normal((16, 64), np.float32) for _ in range(3)]
    formats = (np.float32, np.float16, ml_dtypes.bfloat16)
    names = ("vision/a", "language/b", "language/layers/c")
    return {n: x.astype(f) for n, x, f in zip(names, numbers, formats, strict=True)}


def lazy(numbers: dict[str, np.ndarray]) -> dict[str, Leaf]:
    return {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in numbers.items()}


def written(run: Path, seed: int = 0) -> FrozenParams:
    made = FrozenParams(run)
    made.write(lazy(arrays(seed)))
    return made


def assert_holds(run: Path, expected: dict[str, np.ndarray]) -> None:
    stored = frozen_leaves(run)
    assert stored.keys() == expected.keys()
    for path, x in expected.items():
        assert (stored[path].dtype, stored[path].read().tobytes()) == (x.dtype, x.tobytes()), path


def test_number_formats_and_bits_stay(tmp_path: Path):
    made = written(tmp_path)
    assert_holds(tmp_path, arrays())
    assert made.files == manifest.checksums(tmp_path / "frozen")
    assert os.listdir(tmp_path) == ["frozen"]


def test_one_is_in_memory_at_a_time(tmp_path: Path):
    alive: list[str] = []

    def read(path: str) -> np.ndarray:
        assert not alive
        array = np.ones((256, 256), np.float32)
        alive.append(path)
        weakref.finalize(array, alive.remove, path)
        return array

    dtype = np.dtype(np.float32)
    leaves = {f"vision/{i}": Leaf((256, 256), dtype, partial(read, f"{i}")) for i in range(4)}
    FrozenParams(tmp_path).write(leaves)
    assert frozen_leaves(tmp_path).keys() == leaves.keys()


@pytest.mark.parametrize("left", ["partial", "old", "both"])
def test_what_a_killed_run_left_is_replaced(tmp_path: Path, left: str):
    if left != "partial":
        written(tmp_path, seed=1)
    if left != "old":
        (tmp_path / module.TEMPORARY).mkdir()
        (tmp_path / module.TEMPORARY / "model.safetensors").write_bytes(b"half")
        (tmp_path / module.REPLACED).mkdir()
    written(tmp_path)
    assert_holds(tmp_path, arrays())
    assert os.listdir(tmp_path) == ["frozen"]


def test_without_frozen_parameters_there_is_no_folder(tmp_path: Path):
    made = written(tmp_path, seed=1)
    made.write({})
    assert os.listdir(tmp_path) == [] and made.files == {} and made.load({}) == {}


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path: Path):
    def fail() -> np.ndarray:
        raise OSError(5, "Input/output error")

    leaves = lazy(arrays()) | {"vision/z": Leaf((4,), np.dtype(np.float32), fail)}
    words = r"frozen: writing the frozen parameters failed: .*Input/output error \(.* MB free\)"
    with pytest.raises(RunError, match=words):
        FrozenParams(tmp_path).write(leaves)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named_and_left_as_it_was(tmp_path: Path):
    with disks.small_disk(tmp_path, megabytes=1) as disk:
        large = {"vision/a": np.random.default_rng(0).standard_normal((512, 1024), np.float32)}
        with pytest.raises(RunError, match=r"failed: the disk is full .*start again"):
            FrozenParams(disk).write(lazy(large))
        assert os.listdir(disk) == []


def test_a_quota_that_is_used_up_is_a_full_disk(tmp_path: Path):
    def fail() -> np.ndarray:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.raises(RunError, match="failed: the disk is full "):
        FrozenParams(tmp_path).write({"vision/z": Leaf((4,), np.dtype(np.float32), fail)})


@pytest.mark.parametrize("axes", [{"devices": 1}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_devices_hold_them_cast_and_in_their_places(tmp_path: Path, make_mesh, axes):
    where = NamedSharding(make_mesh(**axes), P("fsdp", "tensor"))
    abstract = {
        path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=where)
        for path, x in arrays().items()
    }
    made = written(tmp_path)
    for path, x in made.load(abstract).items():
        assert x.sharding == where
        expected = arrays()[path].astype(ml_dtypes.bfloat16)
        assert np.asarray(x).tobytes() == expected.tobytes(), path
    with pytest.raises(ConfigError, match=r"missing 1 \(vision/more\)"):
        made.load(abstract | {"vision/more": abstract["vision/a"]})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run with frozen parameters whose checkpoints at steps 4 and 8 hold another."""
    made = written(tmp_path)
    tree = {"connector": {"bias": jnp.ones(8)}}
    with Checkpoints(tmp_path, Keep(1)) as checkpoints:
        for step in (2, 4, 8):
            checkpoints.save(step, tree, {"mu": tree}, {}, frozen=made.files)
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "holds other bytes than were saved"),
    "grown": (lengthen, r"has \d+ bytes, \d+ were saved"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_named_and_repaired_from_the_same_source_alone(saved, harm: str, capsys):
    path, paths = saved / "frozen" / "model.safetensors", list(arrays())
    change, words = HARMS[harm]
    change(path)
    again = partial(FrozenParams(saved).resume, saved / "checkpoints" / "8", paths)
    with pytest.raises(DamagedCheckpoint, match=f"{path}: {words}.*--train.on_damage previous"):
        again(lambda: lazy(arrays()), "fail")
    with pytest.raises(DamagedCheckpoint, match="no longer holds what the run"):
        again(lambda: lazy(arrays(seed=1)), "previous")
    again(lambda: lazy(arrays()), "previous")
    assert "damaged" in capsys.readouterr().err
    assert_holds(saved, arrays())
    again(dict, "fail")  # undamaged: the source is not asked
    assert sorted(os.listdir(saved)) == ["checkpoints", "frozen"]


def test_deleted_checkpoints_take_none_along(saved):
    assert os.listdir(saved / "checkpoints") == ["8"]
    assert_holds(saved, arrays())


def test_a_checkpoint_of_before_gives_its_own(tmp_path: Path):
    """It has no word on frozen files, and all parameters."""
    params = {"vision/a": jnp.arange(6.0), "connector/bias": jnp.ones(8)}
    trained = {"connector/bias": params["connector/bias"]}
    with Checkpoints(tmp_path, Keep(1)) as checkpoints:
        checkpoints.save(4, params, {"mu": trained}, {"seed": 1})
        checkpoints.wait()
        folder = checkpoints.folder / "4"
        about = manifest.read(folder)
        del about["frozen"]
        (folder / manifest.FILE).unlink()
        manifest.close(folder, about)
        made = FrozenParams(tmp_path)
        made.resume(folder, ["vision/a"], dict, "fail")
        assert_holds(tmp_path, {"vision/a": np.arange(6, dtype=np.float32)})
        assert set(made.files) == {"model.safetensors"}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trained)
        restored, _, extra = checkpoints.restore(4, shapes, {"mu": shapes})
        assert restored.keys() == trained.keys() and extra == {"seed": 1}
