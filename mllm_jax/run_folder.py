"""The folder of a run: what is checked before it is touched, what is written at the start and at the end.

config.yaml     the stage as resolved, itself valid input
model/          config.yaml, tokenizer, processor, chat template: with a checkpoint's params this is a model folder
data.json       what the streams held and what was left out
metrics.jsonl   tensorboard/   checkpoints/<step>/
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from mllm_jax import config_file
from mllm_jax.checkpoints import hf_files
from mllm_jax.checkpoints.folder import ModelSource
from mllm_jax.config import Config, FolderConfig, InitConfig
from mllm_jax.data.loader import Loader
from mllm_jax.data.templates import END_TOKENS, TEMPLATES
from mllm_jax.errors import require

# what may differ between a run and its continuation: nothing that decides which numbers come out of a step
FREE = ("train.", "mesh.", "data.threads", "data.prefetch", "out", "init.")


def check(config: Config, resume: bool) -> None:
    """Refuses, before anything is written, a folder that is in use, or a continuation of something else.

    Raises:
        ConfigError: a fresh run into a folder that is not empty; a resume without a run, or with another config.
    """
    run = Path(config.out)
    if not resume:
        empty = not run.exists() or (run.is_dir() and not any(run.iterdir()))
        require(
            empty,
            f"out={config.out}: exists and is not empty; give another folder, or --resume to continue it",
        )
        return
    require(
        (run / "config.yaml").is_file(),
        f"out={config.out}: no run to resume (config.yaml is missing)",
    )
    before = flat(config_file.load(Config, run / "config.yaml"))
    now = flat(config)
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    ]
    require(
        not changed,
        f"out={config.out}: cannot continue with another config: {'; '.join(changed[:5])}; put it back, or start a new run",
    )


def prepare(config: Config, source: ModelSource | None, loader: Loader, resume: bool) -> Path:
    """Writes what a run folder holds besides metrics and checkpoints; returns the folder."""
    run, model = Path(config.out), Path(config.out) / "model"
    run.mkdir(parents=True, exist_ok=True)
    config_file.dump(config, run / "config.yaml")
    (run / "data.json").write_text(
        json.dumps(loader.report(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if resume:
        return run
    model.mkdir()
    hf_files.copy_files(source.files if source else Path(config.init.tokenizer or ""), model)
    _write_generation_config(model)
    if config.model.patches:
        hf_files.write_processor(model, config.model, config.data.image_fit)
    if template := chat_template(config):
        (model / hf_files.TEMPLATE).write_text(template, encoding="utf-8")
    folder = FolderConfig(
        config.model,
        config.compute.parameters,
        languages=config.data.languages,
        base_models=_bases(config, source),
    )
    config_file.dump(folder, model / "config.yaml")
    return run


def finish(run: Path, line: dict[str, Any] | None) -> None:
    """Notes the realised mixture (shares of trained tokens) for the model card."""
    path = run / "model" / "config.yaml"
    prefix = "share_trained/stream/"
    shares = {
        name.removeprefix(prefix): value
        for name, value in (line or {}).items()
        if name.startswith(prefix)
    }
    if shares:
        config_file.dump(
            dataclasses.replace(config_file.load(FolderConfig, path), shares=shares), path
        )


def chat_template(config: Config) -> str | None:
    """The template that the trained model expects: that of the heaviest stream of conversations.

    Captions in `plain` format have no turns to answer, so a stage of captions alone keeps the template it came with.
    """
    chats = [stream for stream in config.data.streams.values() if stream.format != "plain"]
    return TEMPLATES[max(chats, key=lambda stream: stream.weight).format] if chats else None


def is_fresh(init: InitConfig, path: str) -> bool:
    """Whether `init.fresh` has this parameter drawn anew."""
    return init.fresh is not None and re.fullmatch(init.fresh, path) is not None


def flat(section: Any) -> dict[str, Any]:
    """A config section as {"data.length": 2048, ...}."""

    def walk(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {where: value}
        parts = [walk(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}

    return walk(config_file.to_dict(section), "")


def _write_generation_config(model: Path) -> None:
    """Generation stops at what the formats train as the end of an answer, whatever the backbone's files say."""
    known, ids = hf_files.tokens(model), hf_files.special_ids(model)
    ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
    ends = list(dict.fromkeys([*ends, *(known[token] for token in END_TOKENS if token in known)]))
    ids["eos_token_id"] = [end for end in ends if end is not None]
    path = model / "generation_config.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept |= {key: value for key, value in ids.items() if value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _bases(config: Config, source: ModelSource | None) -> tuple[str, ...]:
    if source is None:
        return ()
    return source.config.base_models or (str(config.init.weights),)
