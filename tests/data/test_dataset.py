"""The rows of a run as a random access source; as a dataset: tests/training/test_mixture.py."""

import numpy as np
import pytest

from mllm_jax.config.data import StreamConfig
from mllm_jax.data.dataset import PackedRows, row_dataset
from mllm_jax.data.loader import Loader


def test_a_source_has_the_rows_of_the_run_and_no_others(write, make_data, model, tokenizer):
    text = str(write("a.txt", "Zer da hau?\nTxakur bat.\nUme bi.\n"))
    stream = StreamConfig(path=text, kind="text", language="eu")
    loader = Loader(make_data({"text": stream}, pack=False), model, tokenizer, seed=0)
    source = PackedRows(loader, 6)
    assert len(source) == 6
    np.testing.assert_array_equal(source[5].tokens, loader.batch(1).batch.tokens[1])
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"row {index}: the run has rows 0 to 5"):
            source[index]
    assert len(row_dataset(loader, 2, 4)) == 8
