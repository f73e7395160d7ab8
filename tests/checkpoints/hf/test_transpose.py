"""Copies of transposed matrices in blocks: the same bits as numpy's."""

import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints.hf.transpose import copy_into

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32), np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((37, 1061), (1, 0)),  # more than a block each way, and no multiple of one
        ((4, 6, 40), (2, 0, 1)),  # "(NH)D->DNH"
        ((40, 4, 6), (1, 2, 0)),  # "D(NH)->NHD"
        ((8, 3, 5, 5), (2, 3, 1, 0)),  # "DCpq->pqCD": no two axes fold
        ((7, 9), (0, 1)),
        ((11,), (0,)),
        ((0, 3), (1, 0)),
    ],
)
def test_equals_numpy(dtype: np.dtype, shape: tuple[int, ...], axes: tuple[int, ...]):
    words = np.random.default_rng(0).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    view = words.view(dtype)[..., 0].transpose(axes)
    out = np.empty(view.shape, dtype)
    copy_into(out, view)
    assert out.tobytes() == view.tobytes()  # NaNs included
    cut = (slice(1, None),) * view.ndim
    part = np.empty(view[cut].shape, dtype)
    copy_into(part, view[cut])
    assert part.tobytes() == view[cut].tobytes()
