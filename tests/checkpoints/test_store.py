"""Orbax: streaming writes, reads on another sharding, checkpoints of a run."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.checkpoints import params as stored
from mllm_jax.checkpoints import store
from mllm_jax.checkpoints.leaves import Index, Leaf, compare
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.trees import flatten


class Moments(NamedTuple):
    count: jax.Array
    mu: dict[str, dict[str, jax.Array]]


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "language/embedding": random.standard_normal((16, 8), np.float32),
        "language/layers/mlp/up/kernel": random.standard_normal((2, 8, 24), np.float32).astype(
            ml_dtypes.bfloat16
        ),
        "connector/linear_1/bias": random.standard_normal((8,), np.float32).astype(np.float16),
    }


def save(folder: Path) -> None:
    stored.save_params(
        folder, {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in arrays().items()}
    )


def abstract(**change: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(change.get(path, x.shape), x.dtype)
        for path, x in arrays().items()
    }


def same(params: dict, expected: dict[str, np.ndarray]) -> None:
    assert params.keys() == expected.keys()
    for path, x in expected.items():
        found = np.asarray(params[path])
        assert found.dtype == x.dtype, path
        assert found.tobytes() == x.tobytes(), path


def test_one_leaf_is_read_at_a_time(tmp_path: Path) -> None:
    events = []

    def leaf(path: str, x: np.ndarray) -> Leaf:
        return Leaf(x.shape, x.dtype, lambda: events.append(("read", path)) or x)

    leaves = {path: leaf(path, x) for path, x in arrays().items()}
    stored.save_params(
        tmp_path / "params", leaves, lambda name: events.append(("written", name.replace(".", "/")))
    )
    assert [kind for kind, _ in events] == ["read", "written"] * 3
    assert all(a[1] == b[1] for a, b in zip(events[::2], events[1::2], strict=True))


CASES = [(6, 8, [3, 3]), (7, 8, [1] * 7), (4, 8, [4]), (8, 8, [4, 4]), (4, 64, [1] * 4)]


@pytest.mark.parametrize(("rows", "width", "blocks"), CASES)
def test_a_leaf_is_written_in_blocks_that_divide_its_rows(
    tmp_path: Path, monkeypatch, rows: int, width: int, blocks: list[int]
) -> None:
    """A block has at most the bytes of four rows of eight numbers here, a chunk those of two."""
    array = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    monkeypatch.setattr(stored, "BLOCK_BYTES", 4 * 8 * 4)
    monkeypatch.setattr(stored, "CHUNK_BYTES", 2 * 8 * 4)
    read: list[int] = []

    def part(index: Index) -> np.ndarray:
        read.append(index[0].stop - index[0].start)
        return array[index]

    stored.save_params(tmp_path / "a", {"x": Leaf(array.shape, array.dtype, fail, part)})
    assert sorted(read) == sorted(blocks)
    leaf = stored.stored_leaves(tmp_path / "a")["x"]
    assert np.array_equal(leaf.read(), array)
    assert np.array_equal(leaf.at((slice(1, 3), slice(2, 5))), array[1:3, 2:5])


def test_few_blocks_are_in_memory(tmp_path: Path, monkeypatch) -> None:
    """Of eight, as many as are read and written at the same time."""
    array = np.zeros((8, 16), np.float32)
    monkeypatch.setattr(stored, "BLOCK_BYTES", 16 * 4)
    alive = most = 0

    def part(index: Index) -> np.ndarray:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        time.sleep(0.02)
        alive -= 1
        return array[index]

    stored.save_params(tmp_path / "a", {"x": Leaf(array.shape, array.dtype, fail, part)})
    assert most <= stored.AHEAD


def fail() -> np.ndarray:
    raise OSError("disk gone")


def test_a_leaf_without_parts_is_read_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", 16)
    array, read = np.arange(24, dtype=np.float32).reshape(6, 4), []
    leaf = Leaf(array.shape, array.dtype, lambda: read.append(1) or array)
    stored.save_params(tmp_path / "a", {"x": leaf})
    assert read == [1]
    assert np.array_equal(stored.stored_leaves(tmp_path / "a")["x"].read(), array)


def test_a_model_is_on_the_disk_when_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(stored, "sync_files", synced.append)
    save(tmp_path / "params")
    assert synced == [tmp_path / "params"]


def test_it_is_an_ordinary_orbax_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "params")
    with ocp.StandardCheckpointer() as checkpointer:
        same(flatten(checkpointer.restore(tmp_path / "params")), arrays())


def test_leaves_come_back_one_by_one(tmp_path: Path) -> None:
    save(tmp_path / "params")
    leaves = stored.stored_leaves(tmp_path / "params")
    same({path: leaf.read() for path, leaf in leaves.items()}, arrays())


def test_a_failed_write_leaves_no_model(tmp_path: Path) -> None:
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in arrays().items()}
    leaves["connector/linear_1/bias"] = Leaf((8,), np.dtype(np.float16), fail)
    with pytest.raises(OSError, match="disk gone"):
        stored.save_params(tmp_path / "params", leaves)
    assert not (tmp_path / "params").exists()
    with pytest.raises(ConfigError, match="no parameters here"):
        stored.stored_leaves(tmp_path / "params")


def test_load_on_a_mesh_with_a_cast(tmp_path: Path, make_mesh) -> None:
    save(tmp_path / "params")
    mesh = make_mesh(fsdp=4, tensor=2)
    wanted = {p: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for p, x in abstract().items()}
    where = NamedSharding(mesh, P("tensor", "fsdp"))
    wanted["language/embedding"] = jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=where)
    with jax.set_mesh(mesh):
        loaded = stored.restore(tmp_path / "params", wanted)
    assert loaded["language/embedding"].sharding == where
    same(loaded, {path: x.astype(ml_dtypes.bfloat16) for path, x in arrays().items()})


def test_differences_are_listed_by_path(tmp_path: Path) -> None:
    save(tmp_path / "params")
    wanted = abstract(**{"language/embedding": (16, 9)})
    del wanted["connector/linear_1/bias"]
    wanted["language/head/kernel"] = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    with pytest.raises(ConfigError) as error:
        compare(str(tmp_path), wanted, stored.stored_leaves(tmp_path / "params"))
    message = str(error.value)
    assert "\n" not in message
    assert "checkpoint of another architecture" in message
    assert "missing 1 (language/head/kernel)" in message
    assert "extra 1 (connector/linear_1/bias)" in message
    assert "misshapen 1 (language/embedding is [16, 8], expected [16, 9])" in message


def test_a_part_can_be_restored(tmp_path: Path) -> None:
    save(tmp_path / "params")
    wanted = {path: x for path, x in abstract().items() if path.startswith("language")}
    loaded = stored.restore(tmp_path / "params", wanted)
    same(loaded, {path: x for path, x in arrays().items() if path in wanted})


def state(mesh, spec: P) -> tuple[dict, Moments]:
    where = NamedSharding(mesh, spec)
    params = {
        path: jax.device_put(x, where if x.ndim == 2 else NamedSharding(mesh, P()))
        for path, x in arrays().items()
    }
    whole = NamedSharding(mesh, P())
    moments = Moments(
        jax.device_put(jnp.int32(7), whole),
        {"language/embedding": params["language/embedding"] * 3},
    )
    return params, moments


def describe(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_checkpoints_restore_to_the_bit_on_another_mesh(tmp_path: Path, make_mesh) -> None:
    one, many = make_mesh(devices=1), make_mesh(fsdp=4, tensor=2)
    params, moments = state(many, P("fsdp", "tensor"))
    checkpoints = store.Checkpoints(tmp_path, Keep(2))
    assert checkpoints.latest() is None
    with jax.set_mesh(many):
        for step in (1, 5, 9):
            checkpoints.save(step, params, moments, {"seed": step})
        checkpoints.wait()
    assert checkpoints.steps() == [5, 9]
    assert checkpoints.latest() == 9
    checkpoints.close()
    other_params, other_moments = state(one, P())
    again = store.Checkpoints(tmp_path, Keep(2))
    with jax.set_mesh(one):
        restored = again.restore(9, describe(other_params), describe(other_moments))
    again.close()
    same(restored[0], arrays())
    assert isinstance(restored[1], Moments)
    assert int(restored[1].count) == 7
    embedding = np.asarray(arrays()["language/embedding"])
    assert np.array_equal(np.asarray(restored[1].mu["language/embedding"]), embedding * 3)
    assert restored[0]["language/embedding"].sharding == other_params["language/embedding"].sharding
    assert restored[2] == {"seed": 9}


def test_steps_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        (tmp_path / f"{step}").mkdir()
        (tmp_path / f"{step}" / store.manifest.FILE).touch()
    assert store.checkpoint_steps(tmp_path) == [9, 20, 100]


def test_a_run_checkpoint_is_laid_out_like_a_model(tmp_path: Path, make_mesh, caplog) -> None:
    params, moments = state(make_mesh(), P())
    checkpoints = store.Checkpoints(tmp_path, Keep(1))
    checkpoints.save(3, params, moments, {})
    checkpoints.close()
    caplog.clear()
    loaded = stored.restore(tmp_path / "checkpoints" / "3" / "params", abstract())
    same(loaded, arrays())
    assert not caplog.messages  # orbax warns of files that only a whole step has


def test_a_torn_checkpoint_is_invisible(tmp_path: Path, make_mesh) -> None:
    params, moments = state(make_mesh(), P())
    checkpoints = store.Checkpoints(tmp_path, Keep(3))
    checkpoints.save(3, params, moments, {})
    checkpoints.wait()
    torn = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    (torn / "params").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7" / "params").mkdir(parents=True)
    assert checkpoints.steps() == [3]
    assert checkpoints.latest() == 3
    checkpoints.close()


def test_moments_of_before_are_cut_to_the_layers_that_are_used(tmp_path: Path) -> None:
    """Checkpoints of before hold moments of layers that nothing reads, and of the norm behind."""
    tree = {"vision/layers": jnp.arange(12.0).reshape(4, 3), "vision/post_norm": jnp.ones(3)}
    used = {"vision/layers": tree["vision/layers"][:3]}
    with store.Checkpoints(tmp_path, Keep(1)) as checkpoints:
        checkpoints.save(4, tree, {"mu": tree}, {})
        checkpoints.wait()
        folder = checkpoints.folder / "4"
        about = store.manifest.read(folder)
        del about["frozen"]
        (folder / store.manifest.FILE).unlink()
        store.manifest.close(folder, about)
        _, moments, _ = checkpoints.restore(4, describe(tree), {"mu": describe(used)})
    assert moments.keys() == {"mu"}
    assert moments["mu"].keys() == used.keys()
    np.testing.assert_array_equal(moments["mu"]["vision/layers"], used["vision/layers"])


def test_restore_refuses_another_state(tmp_path: Path, make_mesh) -> None:
    params, moments = state(make_mesh(), P())
    checkpoints = store.Checkpoints(tmp_path, Keep(1))
    checkpoints.save(3, params, moments, {})
    checkpoints.wait()
    a, m = describe(params), describe(moments)
    more = m._replace(mu=m.mu | {p: x for p, x in a.items() if "bias" in p})
    wide, narrow = (
        jax.tree.map(lambda x, to=to: jax.ShapeDtypeStruct(x.shape, to, sharding=x.sharding), a)
        for to in (jnp.float32, jnp.float16)
    )
    with pytest.raises(ConfigError, match=r"missing 1 \(mu/connector/linear_1/bias\)"):
        checkpoints.restore(3, a, more)
    with pytest.raises(ConfigError, match=r"extra 1 \(connector/linear_1/bias\)"):
        checkpoints.restore(3, {p: x for p, x in a.items() if "bias" not in p}, m)
    with pytest.raises(ConfigError, match=r"bias is float16, expected float32"):
        checkpoints.restore(3, wide, m)
    with pytest.raises(ConfigError, match=r"embedding is float32, expected float16"):
        checkpoints.restore(3, narrow, m)
    with pytest.raises(ConfigError, match=r"no such checkpoint; there are \[3\]"):
        checkpoints.restore(4, a, m)
    checkpoints.close()
