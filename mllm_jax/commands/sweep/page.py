"""OUT/results.html: figures, table and pairs of a sweep, and what its runs are."""

from collections.abc import Iterator, Sequence
from html import escape

from mllm_jax.commands.sweep.figures import Chart, bars_note
from mllm_jax.commands.sweep.scores import Scored
from mllm_jax.config.sweep import SweepConfig
from mllm_jax.evaluation.comparison import Comparison
from mllm_jax.evaluation.comparison_table import probability
from mllm_jax.evaluation.significance import ALPHA
from mllm_jax.report import charts, html

SCORES = (
    "Match: exact match in percent, with its 95 % interval. Loss: of true answers, nats a token. "
    "In language: percent of the answers whose language is known."
)
PAIRS = ("runs", "language", "first", "second", "difference [95 %]", "p", "p (Holm)")


def page(
    sweep: SweepConfig,
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    notes: Sequence[str],
    figures: Sequence[Chart],
    rows: Sequence[Scored],
    pairs: Sequence[Comparison],
    compared: int,
) -> str:
    """The page's text.

    Args:
        sweep: the sweep file.
        head, cells: of the table.
        notes: lines about what is not known.
        figures: what they show.
        rows: that are finished.
        pairs: of runs that differ in one axis.
        compared: over how many comparisons their p is corrected.
    """
    drawn = "".join(charts.figure(one.heading, one.curves, one.axes) for one in figures)
    missing = "".join(f"<li>{escape(note)}</li>" for note in notes)
    counts = [("runs", f"{len(rows):,}"), ("axes", f"{len(sweep.grid):,}")]
    parts = [
        f"<header><h1>Sweep of {escape(sweep.recipe)}</h1>{html.figures(counts)}"
        f"{f'<ul class=missing>{missing}</ul>' if missing else ''}</header>\n",
    ]
    if drawn:
        parts.append(html.section("Figures", bars_note(sweep), f"<div class=charts>{drawn}</div>"))
    lines = (html.row(name, map(escape, rest)) for name, *rest in cells)
    parts.append(html.section("Scores", SCORES, html.table(head, lines, "shares")))
    if pairs:
        note = (
            f"Runs that differ in one axis; * is p < {ALPHA} after Holm's correction over all "
            f"{compared:,} comparisons. pairs.json has every pair."
        )
        parts.append(html.section("Pairs", note, html.table(PAIRS, map(_pair, pairs), "shares")))
    parts.append(html.section("Overrides", "", html.facts(_overrides(rows))))
    return html.document(f"Sweep of {sweep.recipe}", "".join(parts), "style.css")


def _pair(pair: Comparison) -> str:
    known = pair.low is not None and pair.high is not None
    interval = f" [{pair.low:+.1f}, {pair.high:+.1f}]" if known else ""
    star = " *" if pair.p_holm < ALPHA else ""
    cells = (
        html.language_name(pair.language),
        f"{pair.score_a:.1f}",
        f"{pair.score_b:.1f}",
        f"{pair.difference:+.1f}{interval}",
        probability(pair.p),
        f"{probability(pair.p_holm)}{star}",
    )
    return html.row(f"{pair.a}, {pair.b}", map(escape, cells))


def _overrides(rows: Sequence[Scored]) -> Iterator[tuple[str, str]]:
    for one in rows:
        run = one.row.run
        text = ", ".join(f"{key} {'null' if value is None else value}"
                         for key, value in run.overrides.items())  # fmt: skip
        yield one.row.name, f"model {run.model}" if run.model else text or "none"
