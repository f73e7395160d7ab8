"""A block that imports what would load another module finds none."""

import importlib
import sys

import pytest

from mllm_jax.common.imports import without


def test_the_module_is_absent_in_the_block_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(ImportError), without("this"):
        importlib.import_module("this")
    assert "this" not in sys.modules


def test_one_that_is_loaded_stays():
    loaded = sys.modules["json"]
    with without("json"):
        assert importlib.import_module("json") is loaded
    assert sys.modules["json"] is loaded
