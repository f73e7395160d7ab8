"""Texts in the holes of a rendering, and what has to follow an answer."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.prompt_template import PromptTemplate, Rules, Run, Trained, mark


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


ITEMS = (7, 8, ("user",), 9, ("q ", 0), 7, 8, ("assistant",), 9, ("\n\n", 1, "\nx ", 2, "\n"), 7)


@pytest.mark.parametrize(
    ("rules", "first", "header", "last"),
    [
        (Rules(), "", "", ""),
        (Rules(lead=" "), "", "", " "),
        (Rules(newline=True), "", "", "\n;\n"),
        (Rules(newline=True, lead=" "), "", "", "\n; ;\n"),
        (Rules(headers=True), "", "assistant", "\n\n;\nx "),
    ],
)
def test_what_of_the_templates_text_is_trained(rules, first, header, last):
    marked = mark(ITEMS, frozenset({1, 2}), rules, image_token=5)
    trained = [
        ";".join(part for part in item if isinstance(part, Trained))
        for item in marked
        if isinstance(item, tuple)
    ]
    assert trained == [first, first, header, last]
    texts = ["?", "A", "B"]
    filled = PromptTemplate(marked, frozenset(), 0).fill(texts)
    plain = PromptTemplate(ITEMS, frozenset(), 0).fill(texts)
    assert [getattr(item, "text", item) for item in filled] == [
        getattr(item, "text", item) for item in plain
    ]


def test_neighbouring_spans_are_one():
    marked = mark(ITEMS, frozenset({1, 2}), Rules(newline=True), image_token=5)
    run = PromptTemplate(marked, frozenset({1, 2}), 0).fill(["?", "A", "B"])[9]
    assert run == Run("\n\nA\nx B\n", ((2, 4), (6, 8)))


def test_a_line_break_ends_an_answer_where_it_is_trained():
    marked = mark(((0, "\n", 1, "\n"), 9), frozenset({0, 1}), Rules(newline=True), 9)
    PromptTemplate(marked, frozenset({0, 1}), 0).check_ends(9)
