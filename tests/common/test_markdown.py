"""Tables: numbers aligned for a terminal, prose as it is."""

from mllm_jax.common.markdown import markdown_table

ROWS = [["eu", "12"], ["gl", "3"]]


def test_numbers_are_aligned_to_the_right():
    table = "| name |  n |\n| ---- | -: |\n| eu   | 12 |\n| gl   |  3 |\n"
    assert markdown_table(["name", "n"], ROWS) == table


def test_prose_is_not_padded():
    table = "| name | n |\n| - | - |\n| eu | 12 |\n| gl | 3 |\n"
    assert markdown_table(["name", "n"], ROWS, numbers=False) == table
