"""Formats tables that read well on a terminal and as Markdown."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table with aligned columns, the first to the left, the others to the right.

    Without `numbers` in it, cells are as long as their texts: aligned prose would be mostly spaces.
    """
    if not numbers:
        lines = (head, ["-"] * len(head), *rows)
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    widths = [max(2, *map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (head, rule, *rows)) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    joined = " | ".join(
        (
            cells[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
        )
    )
    return f"| {joined} |"
