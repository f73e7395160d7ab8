"""What a run reads: lengths and digests kept in its folder, compared when it is continued.

`config.yaml` says which files a run reads, not what is in them. A grown, shortened or edited file
gives other records from the next step on and, where `train.epochs` counts them, another schedule,
so a continuation is refused unless it is told to accept that.

    inputs.json        [what was read from step 0 on, what from a later step on, ...]
    data.json          what the streams held and what was left out, of the first of them
    data-from-N.json   of those from step N on
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader

FILE = "inputs.json"
SWITCH = "--accept-changed-data"


class Inputs(NamedTuple):
    """What is to be written when a run begins or continues."""

    entries: list[dict[str, Any]]  # of inputs.json; the last one is of the steps to come
    report: str | None  # name of the file for the streams' report; None: it is there
    notes: list[str]  # what is to be said


def check_tokenizer(config: Config, step: int | None, tokenizer: Any) -> None:
    """Refuses to continue a run with another tokenizer: its ids would mean other tokens.

    Args:
        config: the stage.
        step: of the last checkpoint; None where the run begins.
        tokenizer: as `load_tokenizer` gives it.

    Raises:
        ConfigError: it is not the one in RUN/model.
    """
    if step is None:
        return
    folder = Path(config.out) / "model"
    field = "init.weights" if config.init.weights else "init.tokenizer"
    require(
        _identity(load_tokenizer(folder)) == _identity(tokenizer),
        f"{field}: its tokenizer is not the one that the run began with "
        f"({folder}/tokenizer.json); put it back, or start a new run",
    )


def check(
    config: Config, step: int | None, loader: Loader, steps: int, accept: bool = False
) -> Inputs:
    """Compares what a run reads now with what it read before.

    Args:
        config: the stage.
        step: of the last checkpoint; None where the run begins.
        loader: of the stage.
        steps: of the whole run.
        accept: continue although the data changed, and note it in the run's folder.

    Raises:
        ConfigError: the data, or the number of steps that the same epochs make, changed.
    """
    now = _entry(config, step or 0, loader, steps)
    path = Path(config.out) / FILE
    if step is None:
        return Inputs([now], "data.json", [])
    if not path.is_file():
        note = f"{path} is missing (a run of an older version): whether the data are still those "
        return Inputs([now], None, [f"{note}that the run began with cannot be checked"])
    entries = _entries(path)
    changes = _changes(entries[-1], now)
    if not changes:
        return Inputs([*entries[:-1], now | {"step": entries[-1]["step"]}], None, [])
    require(
        accept,
        f"out={config.out}: the run began with other data: {'; '.join(changes[:4])}; put the data "
        f"back, start a new run, or continue with the changed data by {SWITCH}",
    )
    return Inputs([*entries, now], f"data-from-{step}.json", [f"accepted: {c}" for c in changes])


def write(run: Path, inputs: Inputs, loader: Loader) -> None:
    """Writes inputs.json, and the streams' report if they are new."""
    if inputs.report is not None:
        write_json(run / inputs.report, loader.report())
    write_json(run / FILE, {"inputs": inputs.entries})


def _entry(config: Config, step: int, loader: Loader, steps: int) -> dict[str, Any]:
    formats = sorted({stream.format for stream in config.data.streams.values()})
    return {
        "step": step,
        "epochs": config.train.epochs,
        "steps": steps,
        "streams": {s.name: {"examples": len(s), "digest": s.digest} for s in loader.streams},
        "templates": {name: _digest(TEMPLATES[name]) for name in formats},
    }


def _entries(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = read_json(path).get("inputs") or []
    try:
        for entry in entries:
            _ = entry["step"], entry["steps"], entry["epochs"], entry["templates"].items()
            _ = [(of["examples"], of["digest"]) for of in entry["streams"].values()]
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: damaged; remove it to continue unchecked") from error
    require(len(entries) > 0, f"{path}: damaged; remove it to continue unchecked")
    return entries


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = []
    for name, stream in now["streams"].items():
        was = before["streams"].get(name, {"examples": 0, "digest": ""})
        old, new = was["examples"], stream["examples"]
        if old != new:
            changes.append(f"data.streams.{name} has {new:,} examples, had {old:,}")
        elif was["digest"] != stream["digest"]:
            changes.append(f"data.streams.{name} has other content ({new:,} examples as before)")
    for name, digest in now["templates"].items():
        if before["templates"].get(name, digest) != digest:
            changes.append(f"the template of format {name} is another one")
    old, new = before["steps"], now["steps"]
    if old != new and now["epochs"] is not None and before["epochs"] == now["epochs"]:
        epochs = f"train.epochs={now['epochs']}"
        changes.append(f"{epochs} is {new:,} steps, was {old:,}, with other learning rates")
    return changes


def _identity(tokenizer: Any) -> tuple[Any, ...]:
    """What decides which ids a text gets."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return json.loads(tokenizer.backend_tokenizer.to_str()), *ids


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
