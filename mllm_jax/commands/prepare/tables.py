"""Everything a run reads is fetched, read once and indexed; then all is offline.

    hub set -> folder -> rows read, images decoded, conversations tokenised -> index beside the data
            -> rows of all steps counted -> a table of what there is

What cannot be read is named in the index's faults.jsonl, with its reason; more of it than the
config allows ends in one line. Run again, it continues from where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.commands.recipe.checks import source_files
from mllm_jax.commands.recipe.files import build_stages, load_recipe
from mllm_jax.common.errors import ConfigError, one_line
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.stream import StreamIndex, report
from mllm_jax.data.mixture.plan import Plan
from mllm_jax.data.sources.hub import fetch
from mllm_jax.data.tokenizer_report import ENGLISH, Row, base_language, pair, table
from mllm_jax.training.heldout import open_heldout
from mllm_jax.training.run_folder import tokenizer_folder

SAMPLE = 32  # windows of the mixture in which ways of packing are compared
PARALLEL = 100_000  # records of a stream, from its first on, among which translations are sought


def run(config: Config, workers: int, json_file: str | Path | None = None) -> dict[str, Any]:
    """Prepares the data of a stage.

    Args:
        config: the stage.
        workers: processes that read, decode and tokenise.
        json_file: where the report is also written.

    Returns:
        The report: what each stream holds, by its name.

    Raises:
        ConfigError: a path or a record is wrong, or more cannot be read than a stream allows.
        RunError: the network or a worker process failed.
    """
    if json_file is not None:
        check_file(json_file)
    report = _prepare(config, tokenizer_folder(config.init), workers)
    if json_file is not None:
        write_json(Path(json_file), report)
    return report


def run_recipe(
    path: Path,
    workers: int,
    json_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Prepares the data of all stages of a recipe; none of them needs to be trained.

    Args:
        path: the recipe file.
        workers, json_file: as in `run`.
        overrides, only: as `mllm-jax recipe` takes them.

    Returns:
        {"stages": {name of a stage: its report}}.

    Raises:
        ConfigError: as `run`, with the stage's name; a stage file is wrong.
        RunError: as `run`.
    """
    if json_file is not None:
        check_file(json_file)
    recipe = load_recipe(path, overrides)
    stages = build_stages(recipe, Path(recipe.config.out))
    files, reports = source_files(stages), {}
    for name in (recipe.tree.only(only) if only else recipe.tree).files:
        config = stages[name]
        print(f"stage {name}:", flush=True)
        try:
            reports[name] = _prepare(config, files, workers)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    if json_file is not None:
        write_json(Path(json_file), {"stages": reports})
    return {"stages": reports}


def _prepare(config: Config, files: Path, workers: int) -> dict[str, Any]:
    """One stage's data, read with the tokenizer in the folder `files`; prints the table."""
    data, tokenizer = config.data, load_tokenizer(files)
    more = config.train.evaluate.streams if config.train.evaluate else {}
    for name, stream in [*data.streams.items(), *more.items()]:
        fetch(name, stream)
    mixture = Mixture(data, config.model, tokenizer, workers=workers, decode=True)
    streams = open_streams(mixture)
    plan = Plan([stream.units for stream in streams], data, config.seed)
    if config.train.epochs is not None:
        end = plan.end_after(config.train.epochs)
        steps = end.steps
        print(
            f"train.epochs={config.train.epochs}: {end.examples:,} examples in {steps:,} steps; "
            f"{end.empty_rows} rows of the last batch stay empty"
        )
    else:
        steps = config.train.steps or 0
    plan.count(steps)
    reports = {s.name: _report(s, data.languages) for s in streams}
    for name, stream in data.streams.items():
        reports[name] |= {} if stream.task is None else {"task": stream.task}
    print(_table(reports))
    if any(of["near_duplicates"] for of in reports.values()):
        print("alike: images that look like an earlier one of their stream, by a perceptual hash")
    for stream in streams:
        if stream.pairing is not None:
            print(f"{stream.name}: {stream.pairing.described}")
    print(_tokenizer(reports, streams, data.languages))
    print(_fill(plan.fill(SAMPLE)))
    shares = dict(zip(data.streams, plan.shares(steps), strict=True))
    options = {"workers": workers, "decode": True}
    heldout = open_heldout(config, tokenizer, streams, shares, **options)
    if heldout is not None:
        print("held-out (train.evaluate):")
        print(_table({s.name: _report(s, data.languages) for s in heldout.streams}))
    for stream in streams:
        for note in stream.notes:
            print(one_line(f"data.streams.{stream.name}: {note}"))
    return reports


def _fill(fill: dict[str, tuple[float, float]]) -> str:
    rows = [(way, f"{tokens:.1%}", f"{slots:.1%}") for way, (tokens, slots) in fill.items()]
    return markdown_table(("rows", "useful tokens", "image slots used"), rows)


def _report(stream: StreamIndex, languages: tuple[str, ...]) -> dict[str, Any]:
    counts = report(stream, languages)._asdict()
    return counts | {"near_duplicates": near_duplicates(stream.hashes), "notes": stream.notes}


def near_duplicates(hashes: np.ndarray) -> int:
    """Images that look like an earlier one of the stream: the same perceptual hash.

    Not counted where it is 0, as it is for every image of one colour.
    """
    some = hashes[hashes != 0]
    return len(some) - len(np.unique(some))


HEAD = ("stream", "records", "used", "left out", "over-long", "images", "alike", "tokens")
HEAD += ("trained", "unread")
KEYS = 8  # unread keys that the table names; the JSON names all


def _table(reports: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, of in reports.items():
        faults = ", ".join(f"{count} {code}" for code, count in of["faults"].items())
        counts = (
            f"{of['records']:,}",
            f"{of['used']:,}",
            faults or "0",
            f"{sum(of['dropped'].values()):,}",
            f"{of['images']:,}",
            f"{of['near_duplicates']:,}",
            f"{of['tokens']:,}",
            f"{of['trained_share']:.1%}",
            _unread(of["unread"]),
        )
        rows.append((name, *counts))
    if any("task" in of for of in reports.values()):
        tasks = (of.get("task", "") for of in reports.values())
        rows = [(*row, task) for row, task in zip(rows, tasks, strict=True)]
        return markdown_table((*HEAD, "task"), rows)
    return markdown_table(HEAD, rows)


def _unread(counts: dict[str, int]) -> str:
    """Keys that nothing read: source (300), meta (300)."""
    named = [f"{name} ({count:,})" for name, count in list(counts.items())[:KEYS]]
    more = [f"{len(counts) - KEYS} more"] if len(counts) > KEYS else []
    return ", ".join(named + more)


def _tokenizer(
    reports: dict[str, dict[str, Any]], streams: list[StreamIndex], languages: tuple[str, ...]
) -> str:
    """The table of how each stream's text is split; adds premiums to the reports."""
    english: dict[tuple[str, ...], int] = {}
    for code, language in enumerate(languages):
        if base_language(language) == ENGLISH:
            for stream in streams:
                english = stream.named_tokens(code, PARALLEL) | english
    rows = []
    for stream in streams:
        premiums = reports[stream.name]["premium_over_english"] = {}
        for language, counts in stream.text_counts(languages).items():
            if base_language(language) == ENGLISH:
                rows.append(Row(stream.name, language, counts, None))
                continue
            named = stream.named_tokens(languages.index(language), PARALLEL) if english else {}
            parallel = pair(named, english)
            if parallel.premium is not None:
                premiums[language] = {"premium": parallel.premium, "texts": parallel.texts}
            rows.append(Row(stream.name, language, counts, parallel))
    return table(rows)
