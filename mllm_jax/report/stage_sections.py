"""Sections about training: losses, the course of other numbers, settings, shares, samples."""

from collections.abc import Mapping, Sequence
from html import escape

from mllm_jax.report import html
from mllm_jax.report.charts import Axes, Curve, figure
from mllm_jax.report.views import Module, Share, Stage

HELDOUT = "heldout/loss"
Points = Sequence[tuple[float, float]]


def losses(stages: Sequence[Stage]) -> str:
    """Training and held-out loss per language, a pair of charts for every stage."""
    names = list(dict.fromkeys(share.name for stage in stages for share in stage.languages))
    axes, charts = Axes("step", "loss per token"), []
    for stage in stages:
        before = f"{stage.name}, " if len(stages) > 1 else ""
        charts.append(figure(f"{before}training", _training(stage, names), axes))
        if tasks := stage.metrics.under("loss/task/"):
            curves = [Curve(name, points, noisy=True) for name, points in tasks.items()]
            charts.append(figure(f"{before}training by task", curves, axes))
        if heldout := _heldout(stage, names):
            charts.append(figure(f"{before}held out", heldout, axes))
        if streams := _heldout_streams(stage):
            charts.append(figure(f"{before}held out by stream", streams, axes))
    note = "In nats per trained token; every step faint, the running mean strong."
    if not any(_heldout(stage, names) for stage in stages):
        note += " No held-out loss was measured during training."
    return html.section("Loss", note, f"<div class=charts>{''.join(charts)}</div>")


def course(stages: Sequence[Stage]) -> str:
    """Learning rate, gradient norm, speed, waiting and padding over the steps."""
    grids = [f"<div class=charts>{_small_charts(stage)}</div>" for stage in stages]
    parts = [
        _folded(stage.name, grid, n == len(stages) - 1)
        for n, (stage, grid) in enumerate(zip(stages, grids, strict=True))
    ]
    body = grids[0] if len(stages) == 1 else "".join(parts)
    return html.section("Course of the training", "Speed, waiting and norms of every step.", body)


def shares(stages: Sequence[Stage]) -> str:
    """What was read of every stream and language, beside its target."""
    parts = []
    for stage in stages:
        measure = stage.measure
        head = ("target", "records", "tokens", "trained tokens", "count")
        body = html.table(("stream", *head), _share_rows(stage.streams, measure), "shares")
        rows = _share_rows(stage.languages, measure, languages=True)
        body += html.table(("language", *head), rows, "shares")
        if stage.tasks:
            body += html.table(("task", *head), _share_rows(stage.tasks, measure), "shares")
        parts.append(_titled(stage, stages, body))
    note = (
        "Of all steps so far. The mark on a bar is the target that the config gives; image "
        "positions count as tokens. Count is the number of records."
    )
    if any(share.target is None for stage in stages for share in stage.languages):
        note += " A language has no target where a stream holds several."
    return html.section("Shares", note, "".join(parts))


def settings(stages: Sequence[Stage]) -> str:
    """A card for every stage: settings, and what it trains."""
    compared = any(module.after for stage in stages for module in stage.modules)
    note = "“Before, after” are fingerprints of a module's weights; frozen ones keep theirs."
    cards = "".join(map(_stage_card, stages))
    heading = "Stages" if len(stages) > 1 else "Settings"
    return html.section(heading, note if compared else "", f"<div class=cards>{cards}</div>")


def samples(stages: Sequence[Stage]) -> str:
    """Answers written during training, the latest first; empty where there are none."""
    parts = []
    for stage in stages:
        items = "".join(
            _folded(when, f"<pre dir=auto>{escape(text)}</pre>", n == 0)
            for n, (when, text) in enumerate(stage.samples)
        )
        if items:
            parts.append(_titled(stage, stages, items))
    note = "Answers to held-out records, written during the training; the latest first."
    return html.section("Samples", note, "".join(parts)) if parts else ""


# ------------------------------------------------------------------------------------------ charts


def _titled(stage: Stage, stages: Sequence[Stage], body: str) -> str:
    heading = f"<h3>{escape(stage.name)}</h3>" if len(stages) > 1 else ""
    return f"<div class=stage>{heading}{body}</div>"


def _folded(heading: str, body: str, is_open: bool) -> str:
    css = " open" if is_open else ""
    return f"<details{css}><summary>{escape(heading)}</summary>{body}</details>"


def _training(stage: Stage, names: Sequence[str]) -> list[Curve]:
    of = stage.metrics.under("loss/language/")
    # every language keeps its colour in all charts, also in a stage that does not have it
    curves = [_curve(name, of.get(name, []), noisy=True) for name in names]
    if not any(curve.points for curve in curves):
        curves = [Curve("all", stage.metrics.curves.get("loss", []), noisy=True)]
    return curves


def _heldout(stage: Stage, names: Sequence[str]) -> list[Curve]:
    """Per language, or of all records where no language is told apart; empty if not measured."""
    of = stage.metrics.under(f"{HELDOUT}/language/")
    if of:
        return [_curve(name, of.get(name, []), dots=True) for name in names]
    points = stage.metrics.curves.get(HELDOUT, [])
    return [Curve("all", points, dots=True)] if points else []


def _heldout_streams(stage: Stage) -> list[Curve]:
    of = stage.metrics.under(f"{HELDOUT}/stream/")
    return [Curve(name, points, dots=True) for name, points in of.items()]


def _curve(name: str, points: Points, noisy: bool = False, dots: bool = False) -> Curve:
    return Curve(name, points, noisy, dots, html.language_and_code(name))


def _small_charts(stage: Stage) -> str:
    curves = stage.metrics.curves
    rates = stage.metrics.under("learning_rate/")
    parts = [
        figure("Learning rate", _rates(rates), Axes("step", "learning rate", "zero")),
        _single(curves, "grad_norm", "Gradient norm", Axes("step", "norm before clipping", "auto")),
        _single(curves, "real_tokens_per_second", "Speed", Axes("step", "tokens per s", "zero")),
        _single(curves, "data_wait_share", "Waiting for data", Axes("step", "of a step", "share")),
        _single(curves, "padding_share", "Padding", Axes("step", "of all positions", "share")),
        _single(curves, "mfu", "Model FLOPs utilisation", Axes("step", "of the peak", "share")),
    ]
    return "".join(parts)


def _rates(rates: Mapping[str, Points]) -> list[Curve]:
    """One curve for parts that share a schedule."""
    groups: dict[tuple, list[str]] = {}
    for name, points in rates.items():
        groups.setdefault(tuple(points), []).append(name)
    return [Curve(", ".join(names), points) for points, names in groups.items()]


def _single(curves: Mapping[str, Points], key: str, heading: str, axes: Axes) -> str:
    if key not in curves:
        return ""
    return figure(heading, [Curve(heading, curves[key], noisy=True)], axes)


# ------------------------------------------------------------------------------------------ tables


def _share_rows(shares: Sequence[Share], measure: str, languages: bool = False) -> list[str]:
    return [
        html.row(
            html.language_and_code(share.name) if languages else share.name,
            (
                "–" if share.target is None else html.percent(share.target),
                html.bar(share.records, share.target if measure == "records" else None),
                html.bar(share.tokens, share.target if measure == "tokens" else None),
                html.bar(share.trained),
                f"{share.count:,}",
            ),
        )
        for share in shares
    ]


def _stage_card(stage: Stage) -> str:
    compared = any(module.after for module in stage.modules)
    head = ("module", "parameters", "trained", *(["before, after"] if compared else []))
    rows = [html.row(m.name, _module_cells(m, compared)) for m in stage.modules]
    table = html.table(head, rows) if rows else ""
    return (
        f"<article class='card stage'><h3>{escape(stage.name)}</h3>"
        f"{html.facts(stage.facts)}{table}</article>"
    )


def _module_cells(module: Module, compared: bool) -> list[str]:
    trained = f"{module.trained:,}" if module.trained else "none"
    cells = [f"{module.parameters:,}", "all" if module.trained == module.parameters else trained]
    if compared:
        cells.append(f"<code>{escape(module.before)}<br>{escape(module.after)}</code>")
    return cells
