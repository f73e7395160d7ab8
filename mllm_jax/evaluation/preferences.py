"""Reads preference files and rates the models in them: `mllm-jax arena`.

A file is JSONL, a JSON list, CSV or Parquet. Its rows, with any further columns:

    {"model_a": "latxa", "model_b": "llama", "winner": "model_a"}     or "model_b", "tie", and
        LMArena's "tie (bothbad)" and "both_bad", which count as ties
    {"model_a": ..., "model_b": ..., "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        as LMArena's competition on Kaggle writes it
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.common.fields import Fields
from mllm_jax.common.folders import check_file
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.data.sources.shards import OPTIONS
from mllm_jax.data.sources.tables import ParquetSource
from mllm_jax.evaluation import arena
from mllm_jax.evaluation.arena import Preference, Ratings, Tally, Winner

WINNERS: dict[str, Winner] = {
    "model_a": "model_a",
    "model_b": "model_b",
    "tie": "tie",
    "tie (bothbad)": "tie",
    "both_bad": "tie",
}
_ONE_HOT: dict[str, Winner] = {
    "winner_model_a": "model_a",
    "winner_model_b": "model_b",
    "winner_tie": "tie",
}
_TRUE = ("1", "1.0", "True")  # as CSV, JSON and Parquet write it
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
FEWEST = 3  # models of a rank correlation: two always correlate
HEAD = ("model", "rating", "95 %", "comparisons", "won", "tied", "lost")


def rate_files(
    paths: Sequence[Path], benchmarks: Path | None = None, json_file: Path | None = None
) -> None:
    """Rates the models of all files together; prints the table, and writes the JSON file.

    Args:
        paths: preference files.
        benchmarks: JSON {"benchmark": {"model": number}}; each is correlated with the ratings.
        json_file: gets {"models": [...], "benchmarks": [...]}.

    Raises:
        ConfigError: a file cannot be read (line named); a rating has no finite value; a benchmark
            has fewer than three of the models.
    """
    if json_file is not None:
        check_file(json_file)
    counts = arena.tally([preference for path in paths for preference in read(path)])
    scores = {} if benchmarks is None else _read_benchmarks(benchmarks, counts.models)
    ratings = arena.rate(counts)
    models = _rows(counts, ratings)
    tree = {"models": models, "draws": arena.DRAWS - ratings.unbounded}
    values = dict(zip(counts.models, ratings.ratings, strict=True))
    if benchmarks is not None:
        tree["benchmarks"] = [_correlated(name, of, values) for name, of in scores.items()]
    if json_file is not None:
        write_json(json_file, tree)
    print(_described(tree), end="", flush=True)


def read(path: Path) -> list[Preference]:
    """The preferences of a file.

    Raises:
        ConfigError: it cannot be read, holds none, or a row (named) is not a preference.
    """
    require(not path.is_dir(), f"{path}: a folder; name the files in it")
    require(path.is_file(), f"{path}: no such file")
    suffix = path.suffix.lower()
    require(suffix in SUFFIXES, f"{path}: expected a file named {', '.join(SUFFIXES)}")
    rows = _csv_rows(path) if suffix == ".csv" else _source_rows(path, suffix)
    preferences = [_preference(row, place) for place, row in rows]
    require(len(preferences) > 0, f"{path}: no preferences")
    return preferences


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                complete = None not in row and None not in row.values()  # csv's mark of both
                require(complete, f"{place}: more or fewer cells than the first line has")
                yield place, row
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error
        except csv.Error as error:
            raise ConfigError(f"{path}: not CSV after line {reader.line_num}: {error}") from error


def _source_rows(path: Path, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    source = ParquetSource(path, OPTIONS) if suffix == ".parquet" else JsonSource(path)
    for number in range(len(source)):
        place = source.location(number)
        try:
            yield place, source[number]
        except RecordError as error:
            raise ConfigError(f"{place}: {error.reason}") from error


def _preference(row: dict[str, Any], place: str) -> Preference:
    fields = Fields(place, row)
    models = [(fields.text(name, None, 200) or "").strip() for name in ("model_a", "model_b")]
    for name, model in zip(("model_a", "model_b"), models, strict=True):
        require(bool(model), f"{place}: no {name}; expected model_a, model_b, winner")
    a, b = models
    require(a != b, f"{place}: {quoted(a, 60)} is compared with itself")
    if "winner" not in fields and any(name in row for name in _ONE_HOT):
        chosen: list[Winner] = [
            winner for name, winner in _ONE_HOT.items() if str(row.get(name)) in _TRUE
        ]
        require(
            len(chosen) == 1, f"{place}: {len(chosen)} of {', '.join(_ONE_HOT)} are 1; expected one"
        )
        return Preference(a, b, chosen[0])
    require("winner" in fields, f"{place}: no winner; expected model_a, model_b, winner")
    winner = row["winner"]
    if not (isinstance(winner, str) and winner in WINNERS):
        allowed = ", ".join(WINNERS)
        raise ConfigError(f"{place}: winner={quoted(winner, 60)}; expected one of {allowed}")
    return Preference(a, b, WINNERS[winner])


def _read_benchmarks(path: Path, models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of rated models, by benchmark."""
    scores = {}
    for name, raw in read_json(path).items():
        fields = Fields(f"{path}: {name}", raw)
        values = {model: fields.number(model, None) for model in models if model in fields}
        scores[name] = {model: value for model, value in values.items() if value is not None}
        if len(scores[name]) < FEWEST:
            near = [closest(model, set(models) - set(raw)) for model in raw if model not in models]
            hint = f"; did you mean {near[0]}?" if near and near[0] else ""
            raise ConfigError(
                f"{path}: {name}: scores of {len(scores[name])} rated models, expected at least "
                f"{FEWEST} of {', '.join(models)}{hint}"
            )
    require(len(scores) > 0, f"{path}: no benchmarks; expected {{benchmark: {{model: number}}}}")
    return scores


def _rows(counts: Tally, ratings: Ratings) -> list[dict[str, Any]]:
    """A row a model, the best first."""
    ties = counts.ties + counts.ties.T
    rows = [
        {
            "model": model,
            "rating": float(ratings.ratings[i]),
            "low": float(ratings.low[i]),
            "high": float(ratings.high[i]),
            "count": int(counts.wins[i].sum() + counts.wins[:, i].sum() + ties[i].sum()),
            "won": int(counts.wins[i].sum()),
            "tied": int(ties[i].sum()),
            "lost": int(counts.wins[:, i].sum()),
        }
        for i, model in enumerate(counts.models)
    ]
    return sorted(rows, key=lambda row: -row["rating"])


def _correlated(
    name: str, scores: dict[str, float], ratings: dict[str, float]
) -> dict[str, str | int | float | None]:
    result = arena.spearman(list(scores.values()), [ratings[model] for model in scores])
    rho, p = (None, None) if result is None else result
    return {"benchmark": name, "count": len(scores), "spearman": rho, "p": p}


def _described(tree: dict[str, Any]) -> str:
    rows = [
        (
            row["model"],
            f"{row['rating']:.1f}",
            f"[{row['low']:.1f}, {row['high']:.1f}]",
            *(f"{row[name]:,}" for name in ("count", "won", "tied", "lost")),
        )
        for row in tree["models"]
    ]
    text = markdown_table(HEAD, rows)
    if left_out := arena.DRAWS - tree["draws"]:
        text += f"\nIntervals are from {tree['draws']:,} resamples; in {left_out:,} others a model "
        text += "always wins or loses.\n"
    if "benchmarks" in tree:
        lines = [
            (
                row["benchmark"],
                str(row["count"]),
                "-" if row["spearman"] is None else f"{row['spearman']:.3f}",
                "-" if row["p"] is None else f"{row['p']:.4f}",
            )
            for row in tree["benchmarks"]
        ]
        text += "\n" + markdown_table(("benchmark", "models", "Spearman", "p"), lines)
    return text
