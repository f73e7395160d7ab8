"""Saves in the background: the state at the save to the bit; errors reach the run; a full disk."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.retention import Keep
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common.errors import RunError, notes
from tests.support import disks

MB = 2**18  # 1 MB of float32 numbers


def describe(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def tree(numbers: int = 1000, value: float = 0.0) -> dict:
    return {"language/embedding": jnp.full((numbers,), value, jnp.float32)}


def incompressible(numbers: int) -> dict:
    words = np.random.default_rng(0).standard_normal(numbers, np.float32)
    return {"language/embedding": jnp.asarray(words)}


@pytest.mark.parametrize("axes", [{"devices": 1}, {"data": 8}, {"fsdp": 8}], ids=str)
def test_steps_go_on_while_the_state_of_the_save_is_written(tmp_path, make_mesh, axes):
    """Each step donates its state to the next; what lies on the disk is the state at the save."""
    mesh = make_mesh(**axes)
    where = NamedSharding(mesh, P("fsdp"))
    step = jax.jit(lambda x: jax.tree.map(lambda a: a * 3 + 1, x), donate_argnums=0)
    start = np.arange(8 * MB, dtype=np.uint32).reshape(8, MB)
    now = {"language/embedding": jax.device_put(start, where)}
    shapes, expected = describe(now), start
    with jax.set_mesh(mesh), Checkpoints(tmp_path, Keep(9)) as checkpoints:
        for number in range(1, 4):
            now, expected = step(now), expected * 3 + 1
            checkpoints.save(number, now, now, {})
            under_way = checkpoints.latest() != number
            for _ in range(5):
                now, expected = step(now), expected * 3 + 1
            assert under_way  # `save` had not waited for the disk
        checkpoints.wait()
        expected = start
        for number in range(1, 4):
            expected = expected * 3 + 1
            for part in checkpoints.restore(number, shapes, shapes)[:2]:
                assert np.array_equal(part["language/embedding"], expected)
            expected = expected * 3**5 + (3**5 - 1) // 2


def test_the_last_ones_the_multiples_and_the_best_stay(tmp_path):
    keep = Keep(last=2, every=4, best=1)
    with Checkpoints(tmp_path, keep) as checkpoints:
        for step, loss in enumerate((5.0, 4.0, 1.0, 3.0, 2.0, 2.5, 2.2), 1):
            checkpoints.save(step, tree(), tree(), {}, loss)
    assert checkpoints.steps() == [3, 4, 6, 7]
    assert manifest.read(checkpoints.folder / "3")["loss"] == 1.0
    assert {path.name for path in checkpoints.folder.iterdir()} == {"3", "4", "6", "7"}


def test_a_checkpoint_is_deleted_under_another_name(tmp_path, monkeypatch):
    """A run that is killed meanwhile leaves no half of it under its own."""
    remove, removed = shutil.rmtree, []
    with Checkpoints(tmp_path, Keep(1)) as checkpoints:
        checkpoints.save(4, tree(), tree(), {})
        checkpoints.save(8, tree(), tree(), {})
        monkeypatch.setattr(shutil, "rmtree", lambda path: removed.append(path) or remove(path))
        checkpoints.wait()
    assert [path.name for path in removed] == ["4.deleted"]
    assert checkpoints.steps() == [8]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, Keep(2)) as checkpoints:
        checkpoints.save(4, tree(value=1.0), tree(), {})
        checkpoints.save(4, tree(value=2.0), tree(), {})
        shapes = describe(tree())
        saved = checkpoints.restore(4, shapes, shapes)[0]["language/embedding"]
    assert np.array_equal(saved, np.ones(1000))


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    with Checkpoints(tmp_path, Keep(2)) as checkpoints:
        checkpoints.save(4, tree(), tree(), {})
    for name in ("8.orbax-checkpoint-tmp", "2.deleted"):
        (checkpoints.folder / name / "params").mkdir(parents=True)
    with Checkpoints(tmp_path, Keep(2)):
        assert [path.name for path in checkpoints.folder.iterdir()] == ["4"]


def test_an_error_of_the_run_is_not_hidden_by_the_last_save(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "close", partial(fail, "no seal"))

    def run() -> None:
        with Checkpoints(tmp_path, Keep(2)) as checkpoints:
            checkpoints.save(4, tree(), tree(), {})
            raise KeyError("first")

    with pytest.raises(KeyError, match="first") as error:
        run()
    assert "saving step 4 failed: OSError: no seal" in notes(error.value)[0]


def fail(words, *_):
    raise OSError(words)


@pytest.mark.parametrize("call", ["wait", "check", "save", "close"])
def test_a_failure_in_the_background_is_raised_by_the_next_call(
    tmp_path, monkeypatch, capfd, call: str
):
    checkpoints = Checkpoints(tmp_path, Keep(2))
    checkpoints.save(4, tree(), tree(), {})
    checkpoints.wait()
    monkeypatch.setattr(manifest, "close", partial(fail, "no seal"))
    checkpoints.save(8, tree(), tree(), {})
    with pytest.raises(RunError) as error:
        {
            "wait": checkpoints.wait,
            "check": partial(check_for_a_minute, checkpoints),
            "save": partial(checkpoints.save, 12, tree(), tree(), {}),
            "close": checkpoints.close,
        }[call]()
    words = f"{checkpoints.folder}: saving step 8 failed: OSError: no seal ("
    assert str(error.value).startswith(words)
    assert str(error.value).endswith("checkpoint 4 is intact; continue with --resume")
    assert "\n" not in str(error.value)
    assert os.listdir(checkpoints.folder) == ["4"]
    if call != "close":
        checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err  # one line is enough


def check_for_a_minute(checkpoints: Checkpoints) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        checkpoints.check()


def soon(true: Callable[[], bool]) -> bool:
    """Whether something becomes true: threads that still write hold the space of deleted files."""
    until = time.monotonic() + 60
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    with disks.small_disk(tmp_path, megabytes=24) as disk:
        yield disk


def test_a_full_disk_leaves_the_old_checkpoint_and_is_said_in_one_line(small_disk, capfd):
    shapes = describe(tree())
    checkpoints = Checkpoints(small_disk, Keep(1))
    checkpoints.save(1, tree(value=7.0), tree(), {})
    checkpoints.wait()
    large = incompressible(32 * MB)
    checkpoints.save(2, large, large, {})  # twice 32 MB
    with pytest.raises(RunError) as error:
        checkpoints.wait()
    message = str(error.value)
    assert message.startswith(f"{checkpoints.folder}: saving step 2 failed: the disk is full (")
    assert message.endswith("MB free); checkpoint 1 is intact; continue with --resume")
    assert "\n" not in message
    assert "Traceback" not in capfd.readouterr().err
    checkpoints.close()
    assert os.listdir(checkpoints.folder) == ["1"]
    assert soon(lambda: shutil.disk_usage(small_disk).free > 20e6)  # nothing of the torn save
    with Checkpoints(small_disk, Keep(1)) as again:
        assert again.verified("fail") == 1
        saved = again.restore(1, shapes, shapes)[0]["language/embedding"]
        assert np.array_equal(saved, np.full(1000, 7.0))
        fits = incompressible(MB)
        again.save(2, fits, tree(), {})
    assert again.steps() == [2]
