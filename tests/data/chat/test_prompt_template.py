"""Texts in the holes of a rendering, and what has to follow an answer."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.prompt_template import PromptTemplate, Run


def test_fill():
    form = PromptTemplate((7, ("u: ", 0), 5, (1,), 8, ("a: ", 2), 8, (3,), 8), frozenset({2, 3}), 1)
    assert form.fill(["Zer", " da?", "Katu", "Bi"]) == [
        *(7, Run("u: Zer", ()), 5, Run(" da?", ()), 8),
        *(Run("a: Katu", ((3, 7),)), 8, Run("Bi", ((0, 2),)), 8),
    ]


def test_only_a_run_that_is_trained_in_part_has_borders():
    trained = [Run("Katu", spans) for spans in [(), ((0, 4),), ((1, 4),), ((0, 2), (2, 4))]]
    assert [run.has_borders for run in trained] == [False, False, True, True]


def form(*items) -> PromptTemplate:
    return PromptTemplate(items, frozenset({0, 1}), 0)


def test_what_follows_an_answer():
    form(7, (0,), 8, ("y",), ("a: ", 1), 8).check_ends(9)
    bad = [((0,),), ((0,), (1,), 8), ((0,), 9), ((0, " "), 8), ((0, 1), 8), ((0, 2), 8)]
    for items in bad:
        with pytest.raises(ConfigError, match="special token directly after every answer"):
            form(*items).check_ends(9)
