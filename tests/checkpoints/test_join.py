"""What `convert join` draws: kernels of a connector, rows of token tables."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints import join
from mllm_jax.checkpoints.join import NEW_ROWS, TABLES, fresh_connector, grown, new_rows
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


def table(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """A token table whose columns have means and covariances of their own."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)).astype(np.float32)
    noise = random.standard_normal((rows, width), np.float32) @ mixing
    return noise + np.arange(width, dtype=np.float32)


@pytest.mark.parametrize("how", NEW_ROWS)
@pytest.mark.parametrize("block", [7, 8192])
def test_new_rows_have_the_statistics_of_the_old(
    monkeypatch: pytest.MonkeyPatch, block: int, how: str
):
    """Mean and covariance of 100,000 drawn rows, within 5 standard errors."""
    monkeypatch.setattr(join, "BLOCK", block)
    scale, count = NEW_ROWS[how].scale, 100_000
    old = table(3_000, 6)
    rows = new_rows(old, count, scale, np.random.default_rng(1)).astype(np.float64)
    covariance = scale * np.cov(old.T, bias=True).astype(np.float64)
    deviation = np.sqrt(np.diag(covariance))
    error = np.abs(rows.mean(0) - old.mean(0, dtype=np.float64))
    assert np.all(error < 5 * deviation / count**0.5 + 2e-7)
    # float32 rows around means of up to 5: rounding adds (2^-23 * 4)^2 / 12 to the variances
    error = np.abs(np.cov(rows.T, bias=True) - covariance)
    assert np.all(error < 5 * np.outer(deviation, deviation) * (2 / count) ** 0.5 + 2e-14)


@pytest.mark.parametrize("columns", [slice(2, 3), slice(None)])
def test_without_a_density_all_rows_are_the_mean(columns: slice):
    """A column that is constant, or all: exactly the mean, as transformers' fallback."""
    constant = table(300, 6)
    constant[:, columns] = 7
    mean = constant.mean(0, dtype=np.float64).astype(np.float32)
    for how in NEW_ROWS.values():
        drawn = new_rows(constant, 4, how.scale, join.generator("a", 0))
        np.testing.assert_array_equal(drawn, np.tile(mean, (4, 1)))
    transformers = pytest.importorskip("transformers")
    model = llama(transformers, 6, constant)
    model.resize_token_embeddings(304)
    theirs = both(model)[0].weight.detach().numpy()[300:]
    np.testing.assert_allclose(theirs, np.tile(mean, (4, 1)), rtol=1e-6)


def llama(transformers: Any, width: int, rows: np.ndarray | None = None) -> Any:
    """A small Llama whose token table holds `rows`, or random ones."""
    torch = pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=500 if rows is None else len(rows),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    if rows is not None:
        both(model)[0].weight.data = torch.from_numpy(rows)
    return model


def test_new_rows_are_those_of_transformers():
    """Whitened by the old rows' covariance both are standard normal, of 1e-9 of its size."""
    model = llama(pytest.importorskip("transformers"), 16)
    old = [x.weight.detach().numpy().copy() for x in both(model)]
    leaves = lazily(dict(zip(TABLES, old, strict=True)))
    model.resize_token_embeddings(501, pad_to_multiple_of=1024)
    for path, before, resized in zip(TABLES, old, both(model), strict=True):
        theirs = resized.weight.detach().numpy()[500:]
        leaves = {
            name: Leaf(x.shape, x.dtype, lambda x=x: x) for name, x in zip(TABLES, old, strict=True)
        }
        ours = grown(leaves, 1024, None, 0, NEW_ROWS["transformers"])[path].read()[500:]
        assert ours.shape == theirs.shape
        covariance = np.cov(before.T.astype(np.float64), bias=True)
        whitening = np.linalg.inv(np.linalg.cholesky(1e-9 * covariance))
        for rows in (ours, theirs):
            white = (rows.astype(np.float64) - before.mean(0, dtype=np.float64)) @ whitening.T
            assert abs(white.std() - 1) < 5 * (2 * white.size) ** -0.5
            assert np.all(np.abs(white.mean(0)) < 5 * len(rows) ** -0.5)
            cross = np.cov(white.T, bias=True)[~np.eye(16, dtype=bool)]
            assert np.all(np.abs(cross) < 5 * len(rows) ** -0.5)


def lazily(arrays: Mapping[Any, np.ndarray]) -> dict[str, Leaf]:
    return {name: Leaf(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}


def both(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def test_the_heads_rows_come_from_its_own_table_or_from_the_token_table():
    tables = dict(zip(TABLES, (table(300, 6), table(400, 6, seed=1)[:300] + 50), strict=True))
    leaves = lazily(tables)
    means = {path: x.mean(0) for path, x in tables.items()}
    for how, sources in {"transformers": TABLES, "ndino": (TABLES[0], TABLES[0])}.items():
        made = grown(leaves, 320, None, 0, NEW_ROWS[how])
        for path, source in zip(TABLES, sources, strict=True):
            np.testing.assert_allclose(made[path].read()[300:].mean(0), means[source], atol=0.02)
        assert not np.array_equal(made[TABLES[0]].read()[300:], made[TABLES[1]].read()[300:])


def test_ndinos_vocabulary():
    """128,256 rows and two tokens, padded to a multiple of 64: 128,320, as its converter writes."""
    assert -(-(128_256 + 2) // join.ROWS) * join.ROWS == 128_320
    assert -(-(128_256 + 1) // join.ROWS) * join.ROWS == 128_320, "<image> alone takes no fewer"


@pytest.mark.parametrize("replaced", [None, 5, 10])
def test_tables_grow_and_old_rows_stay(replaced: int | None):
    old = table(10, 3)
    names = (*TABLES, "language/norm/scale")
    leaves = {name: Leaf(old.shape, old.dtype, lambda: old) for name in names}
    made = grown(leaves, 16, replaced, seed=3, how=NEW_ROWS["ndino"])
    assert made["language/norm/scale"].read() is old
    tables = [made[name].read() for name in names[:2]]
    kept = [row for row in range(10) if row != replaced]
    for name, found in zip(names, tables, strict=False):
        assert made[name].shape == found.shape == (16, 3)
        np.testing.assert_array_equal(found[kept], old[kept])
        assert len(np.unique(found, axis=0)) == 16, "no two rows are alike"
        np.testing.assert_array_equal(found, made[name].read())
    assert not np.allclose(tables[0][10:], tables[1][10:], rtol=1e-6)
    if replaced == 5:
        assert not np.allclose(tables[0][5], old[5])
