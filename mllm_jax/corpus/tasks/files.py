"""Writes the files of `corpus tasks`: one per task and language, counts, and a block of streams.

OUT/mvqa_eu.jsonl, ep_eu.jsonl, bvqa_eu.jsonl, ...   LLaVA records
OUT/streams.yaml    data.languages and data.streams for a stage file, shares by `shares`
OUT/tasks.json      records, and what was left out, by task, language and reason
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml

from mllm_jax.common import interrupts
from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_new, new_folder
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.corpus.tasks.aligned import (
    Aligned,
    check_languages,
    languages_of,
    read_all,
)
from mllm_jax.corpus.tasks.build import (
    PAIR,
    PAIRED,
    PIVOT,
    TASKS,
    Form,
    check_wordings,
    combinations,
    forms,
    make,
    missing,
)
from mllm_jax.corpus.tasks.ids import Ids
from mllm_jax.corpus.tasks.shares import task_weights
from mllm_jax.corpus.tasks.wordings import Instructions, load
from mllm_jax.data.progress import bar
from mllm_jax.data.sources.base import Source

Pair = tuple[str, str]  # task, language
EACH = 1000  # records between two safe points


class Options(NamedTuple):
    """What is made of the records."""

    tasks: Sequence[str] = TASKS
    languages: Sequence[str] = ()  # all that answers are in, when empty
    instructions: str | None = PIVOT  # None: in the language of each question
    wordings: Sequence[Path] = ()
    ignore: Collection[str] = ()
    ratio: float = 1.0  # this and what follows: of the block of streams
    without: Collection[str] = ()
    refill: bool = False
    images: str | None = None
    format: str = "llama31"
    place: Path | None = None  # of OUT, where it is not yet in its place


class Counted(NamedTuple):
    """What became of one task in one language."""

    records: int
    left_out: dict[str, int]  # reason -> records


def run(source: Source, name: str, out: Path, options: Options, as_json: bool = False) -> None:
    """Writes OUT and prints its table.

    Args:
        source: aligned records.
        name: of it, for messages.
        out: a new folder.
        options: see there.
        as_json: prints tasks.json's content instead of a table.

    Raises:
        ConfigError: a record is not valid, an id occurs twice, a language has no wordings.
    """
    check_new(out)
    place = options.place or out
    require(len(source) > 0, f"{name}: no records")
    instructions = Instructions(load(options.wordings), options.instructions)
    present = languages_of(source)
    require(len(present) > 0, f"{name}: no record has an answer")
    check_languages(options.languages, present)
    languages = list(options.languages) or present
    chosen = list(combinations(list(options.tasks), languages))
    require(
        len(chosen) > 0,
        f"--tasks {' '.join(options.tasks)} for {', '.join(languages)}: nothing to make, since "
        f"these tasks pair {PIVOT} with another language; add one, or mvqa",
    )
    for task, language in chosen:
        check_wordings(task, language, instructions)
    with new_folder(out) as folder:
        counts = _write(folder, source, name, chosen, instructions, options.ignore)
        report = {"records": len(source), "languages": languages, "tasks": _rows(counts)}
        made = sum(of.records for of in counts.values())
        require(made > 0, f"{name}: no record has the texts for any task: {_reasons(counts)}")
        write_json(folder / "tasks.json", report)
        block = _streams(place, counts, languages, options)
        (folder / "streams.yaml").write_text(block, encoding="utf-8")
    print(json.dumps(report, indent=2) if as_json else _table(report, place), flush=True)


def _write(
    folder: Path,
    source: Source,
    name: str,
    chosen: Sequence[Pair],
    instructions: Instructions,
    ignore: Collection[str],
) -> dict[Pair, Counted]:
    """Every record's tasks into their files; a file gets its name with its first record."""
    ids, records = Ids(), Counter[Pair]()
    left_out = {pair: Counter[str]() for pair in chosen}
    asked = {pair: forms(*pair) for pair in chosen}
    with ExitStack() as stack:
        files: dict[Pair, IO[str]] = {}
        progress = stack.enter_context(bar(total=len(source), desc=name, unit="record"))
        for number, record in enumerate(read_all(source, instructions, ignore)):
            if number % EACH == 0:
                interrupts.check()
            ids.add(record.id)
            for pair in chosen:
                lines, reasons = _made(record, pair[0], asked[pair], instructions)
                if lines and pair not in files:
                    path = folder / file_name(pair)
                    files[pair] = stack.enter_context(path.open("w", encoding="utf-8"))
                if lines:
                    files[pair].writelines(lines)
                records[pair] += len(lines)
                if reasons:
                    left_out[pair].update(reasons)
            progress.update()
    ids.check(lambda number: str(source[number]["id"]), source.location)
    return {pair: Counted(records[pair], dict(sorted(left_out[pair].items()))) for pair in chosen}


def _made(
    record: Aligned, task: str, asked: Sequence[Form], instructions: Instructions
) -> tuple[list[str], list[str]]:
    """Lines of a file, and why others are missing."""
    lines, reasons = [], []
    for form in asked:
        reason = missing(record, form)
        if reason is None:
            made = make(record, form, instructions, task)
            lines.append(json.dumps(made, ensure_ascii=False) + "\n")
        else:
            reasons.append(reason)
    return lines, reasons


def file_name(pair: Pair) -> str:
    """`mvqa_eu.jsonl`."""
    task, language = pair
    return f"{task}_{language}.jsonl"


def _rows(counts: dict[Pair, Counted]) -> list[dict[str, Any]]:
    return [
        {
            "task": pair[0],
            "language": pair[1],
            "file": file_name(pair) if of.records else None,
            "records": of.records,
            "left_out": of.left_out,
        }
        for pair, of in counts.items()
    ]


def _reasons(counts: dict[Pair, Counted]) -> str:
    total = Counter[str]()
    for of in counts.values():
        total.update(of.left_out)
    return _listed(total)


def _listed(left_out: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items())


def _table(report: dict[str, Any], out: Path) -> str:
    rows = [
        (
            row["task"],
            row["language"],
            f"{row['records']:,}",
            f"{sum(row['left_out'].values()):,}",
            _listed(row["left_out"]),
        )
        for row in report["tasks"]
    ]
    table = markdown_table(("task", "language", "records", "left out", "why"), rows)
    of = f"{report['records']:,} aligned records in {', '.join(report['languages'])}"
    return f"{table}\n{of}\nstreams of a stage file: {out / 'streams.yaml'}"


def _streams(
    out: Path, counts: dict[Pair, Counted], languages: Sequence[str], options: Options
) -> str:
    """A block for a stage file, by `shares` where English is among the languages.

    `epochs` of each stream: all of English's MVQA, of the others as many records as their weight
    says, however many there are. So a stage that leaves streams out has fewer steps.
    """
    english = counts.get(("mvqa", PIVOT), Counted(0, {})).records
    weights: dict[Pair, float] = {}
    if english:
        weights = task_weights(
            options.tasks, languages, options.ratio, options.without, options.refill
        )
    images = {} if options.images is None else {"images": options.images}
    streams = {
        file_name(pair).removesuffix(".jsonl"): {
            "path": str(out / file_name(pair)),
            **images,
            "format": options.format,
            "task": pair[0],
            **({"pairs": PAIR} if pair[0] == PAIRED else {}),
            "epochs": round(weights[pair] * english / of.records, 7) if weights else 1.0,
        }
        for pair, of in counts.items()
        if of.records and (pair in weights or not weights)
    }
    # the other half of a pair of languages may be one that is not asked for by itself
    bilingual = {"bvqa", PAIRED} & set(options.tasks)
    answered = list(dict.fromkeys([*languages, PIVOT])) if bilingual else languages
    tree = {"languages": list(answered), "streams": streams}
    head = f"# for the section `data` of a stage: other languages = {options.ratio:g} x English\n"
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=200)
