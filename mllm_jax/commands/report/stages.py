"""One run folder as a stage of the report: settings, metrics, shares beside targets, samples."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from mllm_jax.commands.report.damage import naming_damage
from mllm_jax.common.json_file import read_json
from mllm_jax.config.data import DataConfig
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.data.mixture.weights import record_weights
from mllm_jax.report import html
from mllm_jax.report.metrics_file import Metrics, read_metrics
from mllm_jax.report.views import Facts, Module, Share, Stage
from mllm_jax.training import run_folder, run_inputs, run_log
from mllm_jax.training.optimizer import assign, with_adapter

SAMPLES = 8  # files of samples on the page, the latest ones
SAMPLE_LETTERS = 20_000  # of one file


def read_stage(run: Path, config: Config, entry: Mapping[str, Any] | None) -> Stage:
    """Reads a run folder.

    Args:
        run: the folder.
        config: its config.yaml.
        entry: the stage's in the recipe's summary.json, once it is finished.

    Raises:
        ConfigError: no step yet, or damaged files (named).
    """
    metrics = read_metrics(run / "metrics.jsonl")
    streams, languages, tasks = _shares(run, config.data, metrics)
    return Stage(
        name=run.resolve().name,
        facts=_facts(config, metrics, run, entry),
        modules=_modules(config, entry),
        metrics=metrics,
        measure=config.data.weights,
        streams=streams,
        languages=languages,
        samples=_samples(run),
        tasks=tasks,
    )


# ---------------------------------------------------------------------------------------- settings


def _data_facts(run: Path, config: Config, metrics: Metrics) -> Facts:
    """Steps done and planned, and a digest of all that the last steps read."""
    path, planned, facts = run / run_inputs.FILE, config.train.steps, []
    if path.is_file():  # not of a run of an older version
        with naming_damage(path):
            entry = read_json(path)["inputs"][-1]
            planned, streams = entry["steps"], entry["streams"]
            examples = sum(stream["examples"] for stream in streams.values())
        digest = hashlib.blake2b(json.dumps(streams, sort_keys=True).encode(), digest_size=5)
        facts = [("data", f"{html.counted(examples, 'example')}, digest {digest.hexdigest()}")]
    return [("steps", f"{metrics.steps:,}" + (f" of {planned:,}" if planned else "")), *facts]


def _facts(config: Config, metrics: Metrics, run: Path, entry: Mapping[str, Any] | None) -> Facts:
    data, optimizer = config.data, config.optimizer
    seconds = entry["seconds"] if entry else metrics.total("step_seconds")
    rate = f"{run_log.rates(optimizer)}, {optimizer.schedule}"
    rate += f", warm-up {html.percent(optimizer.warmup_ratio)}" if optimizer.warmup_ratio else ""
    fresh = f", reinitialised: {config.init.fresh}" if config.init.fresh else ""
    speed = metrics.middle("real_tokens_per_second")
    return [
        ("time", html.duration(seconds) + ("" if entry else " in steps")),
        *_data_facts(run, config, metrics),
        (
            "batch",
            f"{data.rows:,} rows × {data.length:,} tokens, {data.image_slots} image slots a row",
        ),
        ("weights", str(config.init.weights or "random") + fresh),
        ("learning rate", rate),
        *([("NEFTune", f"alpha {noise:g}")] if (noise := optimizer.neftune_alpha) else []),
        ("number formats", f"{config.compute.compute}, parameters {config.compute.parameters}"),
        *_adapter(config),
        *_machine(run, config),
        ("seed", str(config.seed)),
        *([("speed", f"{speed:,.0f} tokens/s")] if speed is not None else []),
    ]


def _adapter(config: Config) -> Facts:
    adapter = config.adapter
    if adapter is None:
        return []
    kind = "rsLoRA" if adapter.rslora else "LoRA"
    kind = f"{kind} and DoRA" if adapter.dora else kind
    dropout = f", dropout {html.percent(adapter.dropout)}" if adapter.dropout else ""
    text = f"{kind} of {adapter.match}: rank {adapter.rank}, alpha {adapter.alpha:g}{dropout}"
    text += ", base in int8" if adapter.base == "int8" else ""
    return [("adapter", text)]


def read_machine(run: Path) -> dict[str, Any]:
    """Devices, mesh and versions of a run's latest start; empty for a run of an older version."""
    path = run / run_folder.MACHINE
    return read_json(path) if path.is_file() else {}


def _machine(run: Path, config: Config) -> Facts:
    machine = read_machine(run)
    if not machine:
        sizes = dataclasses.asdict(config.mesh)
        return [
            ("mesh", ", ".join(f"{k} {n if n > 0 else 'all others'}" for k, n in sizes.items()))
        ]
    with naming_damage(run / run_folder.MACHINE):
        several = f", {machine['processes']} processes" if machine["processes"] > 1 else ""
        mesh = ", ".join(f"{name} {size}" for name, size in machine["mesh"].items())
        return [("devices", machine["devices"] + several), ("mesh", mesh)]


def _modules(config: Config, entry: Mapping[str, Any] | None) -> list[Module]:
    """Parameters of each module and how many of them are trained; no weights are read."""
    shapes = conversions.abstract(config.model, config.adapter)
    parts = with_adapter(config.optimizer.parts, config.adapter)
    owner = assign(shapes, parts)
    compared = {of["module"]: of for of in entry["modules"]} if entry else {}
    modules = []
    for name in dict.fromkeys(path.split("/")[0] for path in shapes):
        sizes = {p: x.size for p, x in shapes.items() if p.split("/")[0] == name}
        trained = sum(n for p, n in sizes.items() if parts[owner[p]].train)
        prints = compared.get(name, {"before": "", "after": ""})
        modules.append(
            Module(name, sum(sizes.values()), trained, prints["before"], prints["after"])
        )
    return modules


# ------------------------------------------------------------------------------------------ shares


@dataclasses.dataclass
class _Counted:
    """What a run's data.json says of a stream, as `weights.record_weights` asks for it."""

    used: int
    sizes: Float64[np.ndarray, "1"]  # tokens of the mean example
    tiles: Float64[np.ndarray, "1"]
    languages: tuple[str, ...]
    of_unit: float  # records

    def __len__(self) -> int:
        return self.used


def _shares(run: Path, data: DataConfig, metrics: Metrics) -> tuple[list[Share], ...]:
    """Streams, languages and tasks with their targets."""
    targets, by_language = stream_targets(run, data, metrics.steps)
    streams = [_share(metrics, "stream", name, targets.get(name)) for name in data.streams]
    languages = [
        _share(metrics, "language", name, by_language.get(name)) for name in data.languages
    ]
    of_tasks: dict[str, float | None] = {}
    for task, stream in zip(data.task_of_streams, streams, strict=True):
        if task is not None:
            before = of_tasks.get(task, 0.0)
            sums = None not in (before, stream.target)
            of_tasks[task] = before + stream.target if sums else None  # type: ignore[operator]
    tasks = [_share(metrics, "task", name, target) for name, target in of_tasks.items()]
    return streams, languages, tasks


def stream_targets(
    run: Path, data: DataConfig, steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares that the config asks for over the first steps, of records or, by weights, of tokens.

    Args:
        run: the folder, whose data.json says how long examples are.
        data: the section.
        steps: done; the weights may change on the way.

    Returns:
        {stream: share}, {language: share}; the second is empty where a stream holds several
        languages, both are where the run has no such data.json.
    """
    path = run / "data.json"
    streams = read_json(path).get("streams", {}) if path.is_file() else {}
    if any(name not in streams for name in data.streams):
        return {}, {}
    with naming_damage(path):
        counted = [_counted(streams[name], data, name) for name in data.streams]
    sections = [(0, dataclasses.replace(data, changes={})), *data.weight_changes()]
    starts = [min(step, steps) for step, _ in sections]
    shares = np.zeros(len(counted))
    for (_, section), taken in zip(sections, np.diff([*starts, steps]), strict=True):
        weights = np.array(record_weights(counted, section))
        if data.weights == "tokens":
            weights *= [stream.sizes[0] for stream in counted]
        elif not data.by_epochs:  # a pair is one to the weights
            weights *= [stream.of_unit for stream in counted]
        shares += taken / steps * weights / weights.sum()
    targets = dict(zip(data.streams, shares.tolist(), strict=True))
    if any(len(stream.languages) != 1 for stream in counted):
        return targets, {}
    languages = dict.fromkeys(data.languages, 0.0)
    for stream, share in zip(counted, targets.values(), strict=True):
        languages[stream.languages[0]] += share
    return targets, languages


def _counted(of: Mapping[str, Any], data: DataConfig, name: str) -> _Counted:
    mean = np.array([of["tokens"] / max(of["used"], 1)])
    # runs of before counted images, each of which was one tile
    tiles = np.array([of.get("tiles", of["images"]) / max(of["used"], 1)])
    declared = data.streams[name].language
    # records may name languages of their own, beside the stream's
    # runs of before counted words alone
    counted = of.get("tokens_per_character", of["tokens_per_word"])
    languages = tuple(counted) or ((declared,) if declared else ())
    pairs = of.get("paired", {}).get("pairs", 0)  # runs of before had none
    return _Counted(of["used"], mean, tiles, languages, of["used"] / max(of["used"] - pairs, 1))


def _share(metrics: Metrics, kind: str, name: str, target: float | None) -> Share:
    totals = metrics.totals
    records, tokens, trained = (
        totals.get(f"share_{what}/{kind}/{name}", 0.0) for what in ("records", "tokens", "trained")
    )
    count = int(totals.get(f"total_records/{kind}/{name}", 0))
    return Share(name, target, records, tokens, trained, count)


# ----------------------------------------------------------------------------------------- samples


def _samples(run: Path) -> list[tuple[str, str]]:
    """The latest files of samples/step-<n>.txt, as ("step n", text)."""
    files = {}
    for path in (run / "samples").glob("step-*.txt"):
        if match := re.fullmatch(r"step-0*(\d+)\.txt", path.name):
            files[int(match[1])] = path
    latest: Sequence[int] = sorted(files, reverse=True)[:SAMPLES]
    return [(f"step {step:,}", _text(files[step])) for step in latest]


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if len(text) <= SAMPLE_LETTERS else f"{text[:SAMPLE_LETTERS]} …"
