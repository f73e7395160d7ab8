"""The report of a run or recipe as one HTML text: for phone and desk, light and dark."""

from html import escape

from mllm_jax.report import html, score_sections, stage_sections
from mllm_jax.report.views import Report, Stage

LINKS = {
    "variants": "Variants",
    "scores": "Scores",
    "comparison": "Comparison",
    "answers": "Answers",
    "loss": "Loss",
    "course": "Course",
    "shares": "Shares",
    "settings": "Settings",
    "samples": "Samples",
    "time": "Time and versions",
}


def report_page(report: Report) -> str:
    """The page's text."""
    scores, stages, name = report.scores, report.stages, ""
    for variant in report.variants:  # the last one that is evaluated has the others' answers too
        if variant.scores is not None:
            scores, name = variant.scores, variant.name
    table = score_sections.variant_scores(report.variants) if report.variants else ""
    parts = {
        "variants": score_sections.variant_table(report.variants) if report.variants else "",
        "scores": table or (score_sections.score_table(scores) if scores else ""),
        "comparison": score_sections.comparison(report.compared),
        "answers": score_sections.answer_sections(scores, name) if scores else "",
        "loss": stage_sections.losses(stages),
        "course": stage_sections.course(stages),
        "shares": stage_sections.shares(stages),
        "settings": stage_sections.settings(stages),
        "samples": stage_sections.samples(stages),
        "time": html.section("Time and versions", "", html.facts(report.facts)),
    }
    parts = {name: text for name, text in parts.items() if text}
    links = " ".join(f"<a href='#{name}'>{LINKS[name]}</a>" for name in parts)
    body = "".join(f"<div id={name}>{text}</div>" for name, text in parts.items())
    return html.document(report.title, _head(report, links) + body, "style.css")


def _head(report: Report, links: str) -> str:
    missing = "".join(f"<li>{escape(line)}</li>" for line in report.missing)
    missing = f"<ul class=missing>{missing}</ul>" if missing else ""
    return (
        f"<header><h1>{escape(report.title)}</h1><p class=soft>{escape(report.about)}</p>"
        f"{html.figures(_figures(report))}{missing}<nav>{links}</nav></header>\n"
    )


def _figures(report: Report) -> list[tuple[str, str]]:
    figures = []
    if report.scores is not None:
        for key in list(report.scores.languages)[:4]:
            group = score_sections.overall(report.scores, key)
            name = f"exact match, {html.language_name(key)}"
            figures.append((name, html.percent(group.right / group.count)))
    elif report.variants:
        figures.append(("variants", str(len(report.variants))))
    else:
        figures += _losses(report.stages[-1])
    figures.append(("parameters", _count(sum(m.parameters for m in report.stages[-1].modules))))
    figures.append(("time", html.duration(report.seconds)))
    return figures


def _losses(stage: Stage) -> list[tuple[str, str]]:
    """The last held-out loss, or else the training loss, smoothed."""
    heldout = stage.metrics.curves.get(stage_sections.HELDOUT)
    if heldout:
        return [("held-out loss", f"{heldout[-1][1]:.3f}")]
    curve = [y for _, y in stage.metrics.curves.get("loss", []) if y == y]
    last = curve[-max(1, len(curve) // 30) :]
    return [("training loss, last steps", f"{sum(last) / len(last):.3f}")] if last else []


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{parameters:,}"
