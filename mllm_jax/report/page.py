"""A recipe's folder -> OUT/report.html: one file with everything inside, for phone and desk.

Reads summary.json (stages, times, modules, versions), the stages' metrics.jsonl, and evaluation/.
The page needs no script and no network.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.common.folders import whole_file
from mllm_jax.report import html
from mllm_jax.report.charts import line_chart

KINDS = {
    "number": "Which number",
    "parity": "Even or odd",
    "sum": "Sum of the digits",
    "larger": "Larger digit",
}
SHOWN = 3  # answers of every kind and language on the page
MISSES = 12  # wrong answers on the page

Answer = dict[str, Any]
Line = dict[str, Any]
Stage = tuple[dict[str, Any], list[Line]]  # of summary.json, and its lines of metrics


def build_report(out: str | Path, title: str = "What the model has learnt") -> Path:
    """Writes OUT/report.html about a finished recipe.

    Args:
        out: the recipe's folder.
        title: headline of the page.

    Returns:
        The file.

    Raises:
        ConfigError: a file that the page needs is missing.
    """
    out = Path(out)
    summary = _read(out / "summary.json")
    lines = [_read_lines(out / stage["run"] / "metrics.jsonl") for stage in summary["stages"]]
    stages = list(zip(summary["stages"], lines, strict=True))
    scores = _read(out / "evaluation" / "scores.json")["languages"]
    answers = _read_lines(out / "evaluation" / "answers.jsonl")
    body = [
        _head(title, summary, scores, len(answers)),
        _scores(scores, answers),
        _answers(answers),
        _curves(stages),
        html.section(
            "Stages",
            "“Before, after” are fingerprints of a module's weights; frozen ones keep theirs.",
            f"<div class=cards>{''.join(_stage(*stage) for stage in stages)}</div>",
        ),
        _versions(summary),
    ]
    page = html.document(title, "".join(body), "style.css")
    with whole_file(out / "report.html") as beside:  # its name says that all is finished
        beside.write_text(page, encoding="utf-8")
    return out / "report.html"


def kind_of(answer: Answer) -> str:
    """What a question asks, from its id "<kind>-<language>-<count>"; "question" for other ids."""
    found = re.fullmatch(rf"(.+)-{re.escape(answer['language'])}-\d+", str(answer["id"]))
    return found[1] if found else "question"


# ----------------------------------------------------------------------------------- what came out


def _head(title: str, summary: dict[str, Any], scores: dict[str, Any], count: int) -> str:
    stages = summary["stages"]
    seconds = sum(stage["seconds"] for stage in stages) + sum(summary["seconds"].values())
    figures = [
        *(
            (f"exact match, {html.language_name(key)}", html.percent(of["exact_match"]))
            for key, of in scores.items()
        ),
        ("parameters", f"{sum(m['parameters'] for m in stages[-1]['modules']):,}"),
        ("from data to answers", html.duration(seconds)),
    ]
    text = (
        f"{count:,} questions in {' and '.join(map(html.language_name, scores))} it never saw, "
        f"answered after {len(stages)} stages of training: "
        f"{' → '.join(stage['name'] for stage in stages)}."
    )
    return (
        f"<header><h1>{escape(title)}</h1><p class=soft>{escape(text)}</p>"
        f"{html.figures(figures)}</header>\n"
    )


def _scores(scores: dict[str, Any], answers: Sequence[Answer]) -> str:
    tally: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for answer in answers:
        tally[kind_of(answer), answer["language"]].append(bool(answer["correct"]))
    kinds = list(dict.fromkeys(kind for kind, _ in tally))
    rows = [
        html.row(KINDS.get(kind, kind), (_score(tally[kind, key]) for key in scores))
        for kind in kinds
    ]
    if len(kinds) > 1:
        every = ([right for kind in kinds for right in tally[kind, key]] for key in scores)
        rows.append(html.row("All", map(_score, every), css="all"))
    rows += [
        html.row(
            f"{key} per answer token".capitalize(), (f"{of[key]:.3f}" for of in scores.values())
        )
        for key in ("loss", "perplexity")
    ]
    return html.section(
        "Scores",
        "Exact match on held-out questions: case and final punctuation are ignored.",
        html.table(["Question", *map(html.language_name, scores)], rows, css="scores"),
    )


def _score(right: Sequence[bool]) -> str:
    if not right:
        return "–"
    share = sum(right) / len(right)
    return (
        f"{html.percent(share)} <small>{sum(right)} of {len(right)}</small>"
        f"<span class=bar aria-hidden=true><i style='width:{100 * share:.1f}%'></i></span>"
    )


def _answers(answers: Sequence[Answer]) -> str:
    groups: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[kind_of(answer), answer["language"]].append(answer)
    first = [answer for group in groups.values() for answer in group[:SHOWN]]
    shown = {id(answer) for answer in first}
    misses = [answer for answer in answers if not answer["correct"] and id(answer) not in shown]
    misses = misses[:: max(1, len(misses) // MISSES)][:MISSES]
    note = f"The first {SHOWN} questions of every kind and language, as they come."
    text = html.section("Held-out pictures", note, _cards(first))
    if misses:
        note = "Some of the other wrong answers."
        text += html.section("Where it goes wrong", note, _cards(misses))
    return text


def _cards(answers: Iterable[Answer]) -> str:
    return f"<div class=cards>{''.join(map(_card, answers))}</div>"


def _card(answer: Answer) -> str:
    pictures = "".join(html.picture(Path(path)) for path in answer["images"])
    right = bool(answer["correct"])
    mark = "<p class='mark right'>✓ right</p>" if right else "<p class='mark wrong'>✗ wrong</p>"
    language = f"lang='{escape(answer['language'], quote=True)}'"
    question = answer["question"].replace("<image>", "").strip()
    return (
        f"<article class='card answer{'' if pictures else ' text'}{'' if right else ' miss'}'>"
        + (f"<div>{pictures}</div>" if pictures else "")
        + f"<div><p class=ask {language}>{escape(question)}</p>"
        f"<p class=say {language}>{escape(answer['answer']) or '(nothing)'}</p>"
        f"<p class=truth><span class=soft>truth:</span> "
        f"<span {language}>{escape(answer['truth'])}</span></p>{mark}</div></article>"
    )


# ----------------------------------------------------------------------------------- how it came


def _curves(stages: Sequence[Stage]) -> str:
    prefix = "loss/language/"
    found = (key for _, lines in stages for line in lines for key in line if key.startswith(prefix))
    names = [key.removeprefix(prefix) for key in dict.fromkeys(found)]
    legend = "".join(
        f"<li class=c{n % 6}><i></i>{escape(html.language_name(name))} ({escape(name)})</li>"
        for n, name in enumerate(names)
    )
    charts = []
    for stage, lines in stages:
        curves = {
            name: [
                (line["step"] + 1.0, line[prefix + name])
                for line in lines
                if line.get(prefix + name) is not None
            ]
            for name in names
        }
        chart = line_chart(curves, "step", "loss per trained token")
        charts.append(f"<figure class=card><h3>{escape(stage['name'])}</h3>{chart}</figure>")
    return html.section(
        "Loss",
        "Per language, on a logarithmic scale: every step faint, the running mean strong.",
        f"<ul class=legend>{legend}</ul><div class=charts>{''.join(charts)}</div>",
    )


def _stage(stage: dict[str, Any], lines: Sequence[Line]) -> str:
    settings = stage["settings"]
    size = f"{settings['rows']} rows × {settings['length']:,} tokens"
    pairs = [
        ("time", html.duration(stage["seconds"])),
        ("steps", f"{len(lines):,} of {size}"),
        ("learning rate", f"{settings['learning_rate']:g}, {settings['schedule']}"),
    ]
    if lines:
        speed = sorted(line["real_tokens_per_second"] for line in lines)[len(lines) // 2]
        prefix = "share_records/stream/"
        shares = [
            f"{key.removeprefix(prefix)} {html.percent(share)}"
            for key, share in lines[-1].items()
            if key.startswith(prefix)
        ]
        pairs += [("speed", f"{speed:,.0f} tokens/s"), ("records", ", ".join(shares))]
    rows = [
        html.row(
            m["module"],
            (
                f"{m['parameters']:,}",
                escape(m["trained"]),
                f"<code>{escape(m['before'])}<br>{escape(m['after'])}</code>",
            ),
        )
        for m in stage["modules"]
    ]
    modules = html.table(("module", "parameters", "trained", "before, after"), rows)
    return (
        f"<article class='card stage'><h3>{escape(stage['name'])}</h3>"
        f"{html.facts(pairs)}{modules}</article>"
    )


def _versions(summary: dict[str, Any]) -> str:
    training = sum(stage["seconds"] for stage in summary["stages"])
    seconds = {"training": training, **summary["seconds"]}
    pairs = [
        *((name, html.duration(value)) for name, value in seconds.items()),
        ("device", summary["device"]),
        *summary["versions"].items(),
    ]
    return html.section("Time and versions", "Wall-clock time on one machine.", html.facts(pairs))


# ----------------------------------------------------------------------------------- files


def _read(path: Path) -> Any:
    require(path.is_file(), f"{path}: no such file; the page is built from a finished recipe")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_lines(path: Path) -> list[Any]:
    require(path.is_file(), f"{path}: no such file; the page is built from a finished recipe")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
