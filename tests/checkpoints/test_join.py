"""What `convert join` draws: kernels of a connector, rows of token tables."""

import jax
import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints import join
from mllm_jax.checkpoints.join import fresh_connector, grown, new_rows
from mllm_jax.checkpoints.leaves import Leaf

KERNELS = {"linear_1": (64, 256), "linear_2": (256, 256)}


def connector(dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    shapes = {
        f"connector/{name}/{part}": jax.ShapeDtypeStruct(sizes, "float32")
        for name, shape in KERNELS.items()
        for part, sizes in (("kernel", shape), ("bias", shape[1:]))
    }
    drawn = fresh_connector(shapes, dtype, seed)
    return {path: leaf.read() for path, leaf in drawn.items()}


def test_kernels_keep_the_variance_of_features():
    drawn = connector()
    for name, (inputs, outputs) in KERNELS.items():
        kernel = drawn[f"connector/{name}/kernel"]
        assert kernel.shape == (inputs, outputs) and kernel.dtype == np.float32
        np.testing.assert_allclose(kernel.std(), inputs**-0.5, rtol=0.02)
        np.testing.assert_allclose(kernel.mean(), 0, atol=0.04 * inputs**-0.5)
        assert not drawn[f"connector/{name}/bias"].any()
    assert connector("bfloat16")["connector/linear_1/kernel"].dtype == ml_dtypes.bfloat16


def test_every_parameter_draws_numbers_of_its_own():
    a, b = (join.generator(path, 0).standard_normal(9) for path in ("a", "b"))
    assert not np.allclose(a, b)
    assert not np.allclose(a, join.generator("a", 1).standard_normal(9))
    again = connector()
    for path, kernel in connector().items():
        np.testing.assert_array_equal(kernel, again[path])


@pytest.mark.parametrize("block", [7, 8192])
def test_new_rows_have_the_statistics_of_the_old(monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(join, "BLOCK", block)
    random = np.random.default_rng(0)
    mixing = random.standard_normal((6, 6)).astype(np.float32)
    old = random.standard_normal((3_000, 6), np.float32) @ mixing + np.arange(6, dtype=np.float32)
    rows = new_rows(old, 10_000, np.random.default_rng(1))
    np.testing.assert_allclose(rows.mean(0), old.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(rows.T), np.cov(old.T), atol=0.05 * np.cov(old.T).max())


@pytest.mark.parametrize("drawn_anew", [None, 5, 10])
def test_tables_grow_and_old_rows_stay(drawn_anew: int | None):
    old = np.arange(30, dtype=np.float32).reshape(10, 3)
    names = ("language/embedding", "language/head/kernel", "language/norm/scale")
    leaves = {name: Leaf(old.shape, old.dtype, lambda: old) for name in names}
    made = grown(leaves, 16, drawn_anew, seed=3)
    assert made["language/norm/scale"].read() is old
    tables = [made[name].read() for name in names[:2]]
    kept = [row for row in range(10) if row != drawn_anew]
    for name, table in zip(names, tables, strict=False):
        assert made[name].shape == table.shape == (16, 3)
        np.testing.assert_array_equal(table[kept], old[kept])
        assert len(np.unique(table, axis=0)) == 16, "no two rows are alike"
        np.testing.assert_array_equal(table, made[name].read())
    assert not np.allclose(tables[0][10:], tables[1][10:])
    if drawn_anew == 5:
        assert not np.allclose(tables[0][5], old[5])
