"""Nested dicts <-> flat dicts by path."""

from typing import NamedTuple

import pytest

from mllm_jax.common.trees import flatten, unflatten

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
