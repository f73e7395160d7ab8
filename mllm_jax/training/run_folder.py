"""The folder of a run: what is checked before it is touched, what is written at start and end.

config.yaml     the stage as resolved, itself valid input
model/          config.yaml, tokenizer, processor, chat template: with a checkpoint's params this is
                a model folder
inputs.json     lengths and digests of what is read (run_inputs); data.json: what the streams held
machine.json    devices, mesh and versions of the latest start
frozen/         the parameters that are not trained, as they came
metrics.jsonl   tensorboard/   checkpoints/<step>/
"""

import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from mllm_jax.checkpoints.hf import (
    files as hf_files,
)
from mllm_jax.checkpoints.hf import (
    unread as hf_unread,
)
from mllm_jax.checkpoints.hf.processor import write_processor
from mllm_jax.checkpoints.open_model import ModelSource, open_model
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.common import interrupts
from mllm_jax.common.errors import quoted, require
from mllm_jax.common.folders import exclusive, in_use
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.patterns import matches
from mllm_jax.common.trees import flatten
from mllm_jax.common.versions import versions
from mllm_jax.config import loading
from mllm_jax.config.adapter import is_adapter
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import Config, FolderConfig, InitConfig
from mllm_jax.data.chat.templates import END_TOKENS, PLAIN_FORMATS, TEMPLATES
from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture.order import VERSION as ORDER
from mllm_jax.distributed import processes
from mllm_jax.models.mllm import NEWLINE

# what may differ between a run and its continuation, and is said then; `train.steps` stretches the
# schedule, everything else that decides which numbers come out of a step must stay
FREE = ("train.", "mesh.", "out", "init.", "compute.compiler_flags")
FREE += tuple(f"data.{n}" for n in ("threads", "workers", "prefetch", "index", "image_cache"))
MACHINE = "machine.json"
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

Resume = bool | Literal["auto"]


class Beginning(NamedTuple):
    """How a run begins."""

    resume: bool  # in a folder that a run has made
    step: int | None  # of the last checkpoint; None: from the weights
    notes: list[str]  # what is to be said of it


@contextmanager
def alone(config: Config, resume: Resume) -> Iterator[None]:
    """Around a run: no other start works in its folder, of several processes' the first holds it.

    Raises:
        ConfigError: another one does.
    """
    again = "start the same command again" if resume == "auto" else "continue with --resume"
    with ExitStack() as stack:
        stack.enter_context(interrupts.advising(again))
        if processes.is_first():
            stack.enter_context(exclusive(Path(config.out)))
        yield


def check(config: Config, resume: Resume) -> Beginning:
    """Refuses a folder that is in use, or the continuation of something else; writes nothing.

    Args:
        config: the stage.
        resume: continue the run in the folder, from step 0 if it was stopped before its first
            checkpoint; "auto": if there is one.

    Returns:
        Where the run begins, and what differs from the run that is continued, and may.

    Raises:
        ConfigError: a fresh run into a folder that is not empty; a resume without a run, or with
            another config.
    """
    run = Path(config.out)
    if resume == "auto":
        resume = (run / "config.yaml").is_file()
    if not resume:
        require(
            not in_use(run),
            f"out={config.out}: exists and is not empty; give another folder, or --resume to "
            "continue it",
        )
        return Beginning(False, None, [])
    require(
        (run / "config.yaml").is_file(),
        f"out={config.out}: no run to resume (config.yaml is missing)",
    )
    before = loading.load(Config, run / "config.yaml")
    differ = {
        k: f"{k} was {quoted(old)}, is {quoted(new)}"
        for k, (old, new) in differences(before, config).items()
    }
    last = max(checkpoint_steps(run / "checkpoints"), default=None)
    free = {key for key in differ if key.startswith(FREE) or _lies_ahead(key, last or 0)}
    changed = [change for key, change in differ.items() if key not in free]
    require(
        not changed,
        f"out={config.out}: cannot continue with another config: {'; '.join(changed[:5])}; put it "
        "back, or start a new run",
    )
    if last is not None and last < (config.train.steps or last + 1):  # steps are left to plan
        _check_order(run)
    notes = [change for key, change in differ.items() if key in free]
    if differ.keys() & {"train.steps", "train.epochs"}:
        notes.append(
            "the learning rates now follow another length; to keep them, stop, and continue with "
            "the train options that the run began with"
        )
    if last is None:
        notes.append("the run was stopped before its first checkpoint; it begins again")
    return Beginning(True, last, notes)


def _check_order(run: Path) -> None:
    """Refuses a run whose next steps would read other records than it would have read."""
    data = run / "data.json"
    version = read_json(data).get("order", 1) if data.is_file() else 1
    require(
        version == ORDER,
        f"out={run}: its batches were planned in order {version}, this version plans in order "
        f"{ORDER}: finish it with the version that began it, or start a new run from its weights "
        f"(init.weights={run})",
    )


def prepare(
    config: Config, source: ModelSource | None, loader: Loader, steps: int, fresh: bool
) -> Path:
    """Writes what a run folder holds besides metrics and checkpoints; returns the folder.

    Args:
        config, source, loader: of the stage.
        steps: of the whole run.
        fresh: no step has been saved: the model's files are written (again).
    """
    run, model = Path(config.out), Path(config.out) / "model"
    run.mkdir(parents=True, exist_ok=True)
    loading.dump(config, run / "config.yaml")
    if not fresh:
        return run
    if model.is_dir():
        shutil.rmtree(model)  # half written by a run that was killed
    model.mkdir()
    hf_files.copy_files(source.files if source else Path(config.init.tokenizer or ""), model)
    hf_unread.write_unread(model, source.unread if source else {})
    hf_files.add_end_tokens(model, END_TOKENS)  # where what was trained as an answer ends
    if config.model.patches:
        write_processor(model, config.model, config.data.image_fit)
    if template := chat_template(config.data.streams, loader.shares(steps)):
        (model / hf_files.TEMPLATE).write_text(template, encoding="utf-8")
    folder = FolderConfig(
        config.model,
        config.compute.parameters,
        languages=config.data.languages,
        base_models=_bases(config, source),
        adapter=config.adapter,
    )
    loading.dump(folder, model / "config.yaml")
    return run


def write_machine(run: Path, mesh: Mesh) -> None:
    """Notes what a run computes on and by which versions, for its report."""
    machine = {
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "versions": versions(*LIBRARIES),
    }
    write_json(run / MACHINE, machine)


def tokenizer_folder(init: InitConfig) -> Path:
    """Where a stage's tokenizer is: beside the weights it begins with, or by itself.

    Raises:
        ConfigError: the weights are no model.
    """
    return open_model(init.weights).files if init.weights else Path(init.tokenizer or "")


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
        loading.dump(dataclasses.replace(loading.load(FolderConfig, path), shares=shares), path)


def chat_template(streams: dict[str, StreamConfig], shares: dict[str, float]) -> str | None:
    """The template that the trained model expects: that of the conversations it saw most often.

    Captions in `plain` format and documents have no turns to answer, so a stage of these alone
    keeps the template it came with.

    Args:
        streams: of the stage.
        shares: stream -> share of the records over all steps of the run, whatever weights, epochs,
            token weights, temperature or changes it comes from; the first of equal ones is taken.
    """
    name = main_format(streams, shares)
    return None if name is None else TEMPLATES[name]


def main_format(streams: dict[str, StreamConfig], shares: dict[str, float]) -> str | None:
    """The format of the conversations that a run sees most often; None where there are none.

    Args:
        streams, shares: as for `chat_template`.
    """
    chats = [
        name for name, of in streams.items() if of.format not in PLAIN_FORMATS and not of.is_text
    ]
    return streams[max(chats, key=shares.__getitem__)].format if chats else None


def is_fresh(init: InitConfig, path: str) -> bool:
    """Whether `init.fresh` has this parameter reinitialised."""
    return init.fresh is not None and matches(init.fresh, path, "init.fresh")


def model_differences(weights: ModelConfig, stage: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Where a stage's model is another one than its weights'; `grids` may be added to it."""
    if weights.grids is None:
        stage = dataclasses.replace(stage, grids=None)
    return differences(weights, stage)


def drawn_paths(config: Config, paths: Iterable[str], weights: ModelConfig) -> set[str]:
    """The parameters that the weights do not give a stage.

    Args:
        config: the stage.
        paths: of all its parameters.
        weights: the model of `init.weights`. Where it has no `grids` and the stage has, the newline
            vector is new. Its adapters are merged into its matrices.
    """
    new = {NEWLINE} if weights.grids is None and config.model.grids is not None else set()
    return {
        path for path in paths if path in new or is_adapter(path) or is_fresh(config.init, path)
    }


def _lies_ahead(key: str, step: int) -> bool:
    """Whether an option is a change of the mixture's weights that no step has seen yet."""
    match = re.match(r"data\.changes\.(\d+)\.", key)
    return match is not None and int(match[1]) >= step


def differences(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Where two config sections differ: {"data.length": (2048, 4096), ...}; None where absent."""
    old, new = flat(before), flat(now)
    pairs = {key: (old.get(key), new.get(key)) for key in (old | new)}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def flat(section: Any) -> dict[str, Any]:
    """A config section as {"data.length": 2048, ...}."""
    return flatten(loading.to_dict(section), ".")


def _bases(config: Config, source: ModelSource | None) -> tuple[str, ...]:
    if source is None:
        return ()
    return source.config.base_models or (str(config.init.weights),)
