"""Nested dicts <-> flat dicts by path, and what two of them do not share."""

from typing import NamedTuple

import numpy as np
import pytest

from mllm_jax.common.trees import differences, flatten, path_differences, unflatten

TREE = {
    "language": {"norm": {"scale": 1}, "embedding": 2},
    "connector": {"linear_1": {"kernel": 3, "bias": None}},
}
FLAT = {
    "language/norm/scale": 1,
    "language/embedding": 2,
    "connector/linear_1/kernel": 3,
    "connector/linear_1/bias": None,
}


class Pair(NamedTuple):
    left: int
    right: int


def test_both_ways_keep_values_and_order():
    assert list(flatten(TREE).items()) == list(FLAT.items())
    assert unflatten(FLAT) == TREE
    assert list(unflatten(FLAT)) == list(TREE)


@pytest.mark.parametrize("leaf", [("embed", "mlp"), [1, 2], Pair(1, 2), {1, 2}, None])
def test_what_is_no_dict_is_a_leaf(leaf):
    assert flatten({"a": {"b": leaf}, "c": leaf}) == {"a/b": leaf, "c": leaf}


def test_an_empty_dict_leaves_no_path():
    assert flatten({}) == {}
    assert flatten({"a": {}, "b": {"c": {}}, "d": 1}) == {"d": 1}


def test_another_separator():
    tree = {"data": {"streams": {"eu/es": {"weight": 2.0}}}, "seed": 0}
    assert flatten(tree, ".") == {"data.streams.eu/es.weight": 2.0, "seed": 0}


def test_the_tree_is_not_changed():
    flatten(TREE)["language/norm/scale"] = 9
    made = unflatten(FLAT)
    made["language"]["norm"]["scale"] = 9
    assert TREE["language"]["norm"]["scale"] == FLAT["language/norm/scale"] == 1


def test_differences_by_path():
    ours = {"a": np.zeros(3), "b": np.zeros((2, 1)), "d": np.zeros(())}
    theirs = {"b": np.zeros(2), "c": np.zeros(3), "d": np.ones(())}
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "missing 1 (a)",
        "extra 1 (c)",
        "misshapen 1 (b is [2], expected [2, 1])",
    ]
    assert path_differences(ours, theirs) == ["missing 1 (a)", "extra 1 (c)"]


def test_lists_are_cut_at_twenty():
    names = [f"a{i}" for i in range(23)]
    twenty = ", ".join(names[:20])
    assert path_differences(names[:20], []) == [f"missing 20 ({twenty})"]
    assert path_differences([], names) == [f"extra 23 ({twenty}, and 3 more)"]
