"""Check, begin and describe a run before its first step: what the loop calls once.

check_samples, check_source -> begin_folder -> describe -> origin -> open_writer
"""

from pathlib import Path

import jax

from mllm_jax.checkpoints.open_model import ModelSource
from mllm_jax.common.errors import require
from mllm_jax.common.log import Log
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.heldout import HeldOut
from mllm_jax.data.loader import Loader
from mllm_jax.distributed import processes, sharding
from mllm_jax.models import mllm
from mllm_jax.training import run_folder, run_inputs, run_log, weights_biases
from mllm_jax.training.evaluation import Sampler
from mllm_jax.training.setup import TrainSetup
from mllm_jax.training.writer import MetricsWriter, NoWriter


def check_samples(config: Config, sampler: Sampler | None) -> None:
    """Refuses sample answers where they cannot be made. Raises ConfigError."""
    evaluate = config.train.evaluate
    if evaluate is None or evaluate.samples == 0:
        return
    option = f"train.evaluate.samples={evaluate.samples}"
    require(
        sampler is not None,
        f"{option}: pass sampler=mllm_jax.generation.samples.sampler to train, or set 0",
    )
    require(
        jax.process_count() == 1,
        f"{option}: sample answers are written by runs of one process only; set 0",
    )


def check_source(config: Config, source: ModelSource | None) -> None:
    """Refuses weights of another architecture than the config's. Raises ConfigError."""
    if source is None:
        return
    connector = ("connector.kind", "connector.bias")  # a fresh connector may be of another kind
    drawn_anew = run_folder.is_fresh(config.init, "connector/linear_1/kernel")
    differences = run_folder.model_differences(source.config.model, config.model)
    differ = [
        f"{key} is {theirs!r}, the config says {ours!r}"
        for key, (theirs, ours) in differences.items()
        if not (drawn_anew and key in connector)
    ]
    option = f"init.weights={config.init.weights!r}"
    require(not differ, f"{option} is of another architecture: {'; '.join(differ[:8])}")


def begin_folder(
    config: Config,
    source: ModelSource | None,
    loader: Loader,
    steps: int,
    begin: run_folder.Beginning,
    inputs: run_inputs.Inputs,
) -> Path:
    """The first thing that is written, by process 0, when all processes have checked theirs."""
    processes.barrier("checked")
    if processes.is_first():
        run = run_folder.prepare(config, source, loader, steps, fresh=begin.step is None)
        run_inputs.write(run, inputs, loader)
    processes.barrier("prepared")
    return Path(config.out)


def describe(
    log: Log,
    config: Config,
    setup: TrainSetup,
    loader: Loader,
    heldout: HeldOut | None,
    steps: int,
    begin: run_folder.Beginning,
    inputs: run_inputs.Inputs,
    attention: str,
) -> None:
    """Logs what the run consists of, and notes its machine; not before every check has passed.

    `attention` is the line of `run_log.attention`, which is such a check.
    """
    for note in [*begin.notes, *inputs.notes]:
        log(f"resume: {note}")
    log(run_log.devices(setup.mesh))
    if processes.is_first():
        run_folder.write_machine(Path(config.out), setup.mesh)
    if warning := sharding.slow_links(setup.mesh):
        log(warning)
    for line in run_log.data(config, loader, steps):
        log(line)
    if heldout is not None:
        log(run_log.heldout(config, heldout))
    log(run_log.parameters(setup.abstract))
    log(attention)
    log(f"learning rate: {run_log.rates(config.optimizer)}, {config.optimizer.schedule}")
    if config.optimizer.neftune_alpha:
        log(run_log.noise(config))
    if config.optimizer.pairs.acts:
        log(run_log.pairs(config.optimizer.pairs))
    log(run_log.begin(config, begin.step, steps))


def origin(config: Config, begin: run_folder.Beginning, source: ModelSource | None) -> str:
    """Where the parameters came from."""
    if begin.step is not None:
        return f"restored from checkpoint {begin.step}"
    if source is None:
        return f"random, seed {config.seed}"
    drawn = f", {config.init.fresh} reinitialised" if config.init.fresh else ""
    if config.model.grids is not None and source.config.model.grids is None:
        drawn += f", {mllm.NEWLINE} new, drawn with seed {config.seed}"
    return f"read from {config.init.weights}{drawn}"


def open_writer(config: Config, steps: int, resume_step: int | None) -> MetricsWriter | NoWriter:
    """What takes the run's metrics: process 0 writes them, the others nothing."""
    if not processes.is_first():
        return NoWriter()
    run, section, wandb = Path(config.out), config.train.wandb, None
    if section is not None:
        wandb = weights_biases.WandbRun(section, run, loading.to_dict(config))
    return MetricsWriter(run, steps, resume_step, config.train.log_every, wandb=wandb)
