"""Train one stage: load, plan, fill, compile; then the loop."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints.frozen import FrozenParams
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.retention import Keep, Mean
from mllm_jax.checkpoints.store import Checkpoints
from mllm_jax.common import interrupts
from mllm_jax.common.errors import Preempted
from mllm_jax.common.hardware import peak_rate
from mllm_jax.common.log import Log
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.distributed import processes, sharding
from mllm_jax.distributed.processes import Stop
from mllm_jax.distributed.watchdog.heartbeat import waits_for
from mllm_jax.training import (
    flops,
    long_rows,
    metrics,
    run_folder,
    run_inputs,
    run_log,
    state,
    step,
    weights_biases,
)
from mllm_jax.training.evaluation import Evaluation, Sampler
from mllm_jax.training.heldout import open_heldout
from mllm_jax.training.restore import first_params, first_state, restore_state
from mllm_jax.training.setup import TrainSetup, compile_train_step, make_setup, shard_batch
from mllm_jax.training.start import (
    begin_folder,
    check_samples,
    check_source,
    describe,
    open_writer,
    origin,
)
from mllm_jax.training.writer import MetricsWriter, NoWriter


def train(
    config: Config,
    resume: run_folder.Resume = False,
    devices: Sequence[Any] | None = None,
    accept_changed_data: bool = False,
    sampler: Sampler | None = None,
) -> Path:
    """Runs one stage and returns its run folder, which is a model from the first checkpoint on.

        run = train(load_config("align.yaml"))

    Args:
        config: the stage.
        resume: continue from the last checkpoint in `config.out`; batches and losses are those of
            an undisturbed run. "auto": if a run has begun there.
        devices: the mesh's devices; all there are when None.
        accept_changed_data: continue although the streams hold other records than before.
        sampler: what answers `train.evaluate.samples`: `generation.samples.sampler`.

    Raises:
        ConfigError: bad input, before anything is written.
        Diverged: a loss that is not finite; names the step and the last good checkpoint.
        Preempted: SIGTERM came to a process of the run; the step is finished and saved.
    """
    with run_folder.alone(config, resume):
        return _train(config, resume, devices, accept_changed_data, sampler)


def _train(
    config: Config,
    resume: run_folder.Resume,
    devices: Sequence[Any] | None,
    accept_changed_data: bool,
    sampler: Sampler | None,
) -> Path:
    log, begin = Log(), run_folder.check(config, resume)
    check_samples(config, sampler)
    weights_biases.check(config.train.wandb)
    mesh = sharding.make_mesh(config.mesh.axes, devices)
    source = open_model(config.init.weights) if config.init.weights else None
    step.check_rows(mesh, config.data.rows, config.train.microbatches)
    long_rows.check(config, mesh)
    check_source(config, source)
    tokenizer = load_tokenizer(source.files if source else config.init.tokenizer or "")
    run_inputs.check_tokenizer(config, begin.step, tokenizer)
    several = jax.process_count() > 1
    share = sharding.rows_here(mesh, config.data.rows) if several else None
    pairs = config.optimizer.pairs.acts
    loader = Loader(config.data, config.model, tokenizer, config.seed, share, pairs)
    steps = config.train.steps or loader.steps(config.train.epochs or 0)
    inputs = run_inputs.check(config, begin.step, loader, steps, accept_changed_data)
    heldout = open_heldout(config, tokenizer, loader.streams, loader.shares(steps), mesh)
    images = config.data.image_slots > 0
    setup = make_setup(
        *(config.model, config.compute, config.optimizer, mesh, steps, images),
        adapter=config.adapter,
        segments=config.data.segments,
    )
    attention = run_log.attention(config, setup)
    start = log.seconds
    first = first_params(setup, source, config) if begin.step is None else None
    seconds = log.seconds - start
    run = begin_folder(config, source, loader, steps, begin, inputs)
    describe(log, config, setup, loader, heldout, steps, begin, inputs, attention)
    keep = Keep(config.train.keep, config.train.keep_every, config.train.keep_best)
    checkpoints, frozen = Checkpoints(run, keep), FrozenParams(run)
    start = log.seconds
    if first is not None:
        now = first_state(setup, first, frozen)
    else:
        now = restore_state(setup, checkpoints, frozen, source, config)
    jax.block_until_ready(now)
    begins = int(now.step)
    log(f"weights: {origin(config, begin, source)}, {seconds + log.seconds - start:.1f} s")
    samples = None
    if sampler and heldout is not None and config.train.evaluate and config.train.evaluate.samples:
        samples = sampler(config, run, tokenizer, heldout, mesh)
    saved = checkpoints.extra(begins) if begins else {}
    evaluation = Evaluation(config, setup, heldout, steps, log, saved, samples)
    loop = Loop(config, setup, loader, checkpoints, frozen, evaluation, steps, log)
    record = open_writer(config, steps, begins if begin.resume else None)
    with Stop() as stop, checkpoints, record as writer:  # the last save is complete at the end
        now = loop.run(now, begins, writer, stop)
    if processes.is_first():
        run_folder.finish(run, writer.last_written)
    if int(now.step) < loop.stop:
        raise Preempted(f"SIGTERM: step {int(now.step)} is saved in {run}; continue with --resume")
    if evaluation.ended:
        log(run_log.early_end(evaluation.lowest))
    log(run_log.end(run, int(now.step), evaluation.ended or int(now.step) == steps, steps))
    return run


class Loop:
    """The compiled step and what one turn needs around it."""

    def __init__(
        self,
        config: Config,
        setup: TrainSetup,
        loader: Loader,
        checkpoints: Checkpoints,
        frozen: FrozenParams,
        evaluation: Evaluation,
        steps: int,
        log: Log,
    ):
        self.config, self.setup, self.loader, self.log = config, setup, loader, log
        self.checkpoints, self.frozen, self.evaluation = checkpoints, frozen, evaluation
        self.stop = min(steps, config.train.stop_at or steps)
        self.losses = Mean()  # since the last save

    def run(
        self, now: state.TrainState, first: int, writer: MetricsWriter | NoWriter, stop: Stop
    ) -> state.TrainState:
        """Steps `first` to `self.stop`, or to where SIGTERM stops all processes.

        A step's numbers are fetched after the next step is on its way to the device.
        """
        if self.evaluation.ended:
            self.stop = first
        if first >= self.stop:
            return now
        batches = self.loader.iterate(first, self.stop)
        watch, meter = metrics.Watch(), self._meter(writer)
        compiled, pending = None, None
        for number in range(first, self.stop):
            interrupts.check()
            with watch.waiting(), waits_for(f"the data of step {number}"):
                host = next(batches)
            if compiled is None:
                compiled = self._compile(now, host.batch)
                stop.hold()  # from here on there are steps to save
                watch.restart()
            with waits_for(f"the start of step {number}"):
                waited = processes.slowest(watch.waited)  # asked and known before the step ends
                now, numbers = compiled.call(now, shard_batch(host.batch, self.setup.mesh))
            if pending is not None:
                self._report(pending, waited, writer, meter, watch)
                waited = 0.0
            pending = (number, numbers, meter.count(host.contents), host.contents.records)
            last = stop.due(number) or number + 1 == self.stop
            measure = self.evaluation.due(number + 1)
            save = last or (number + 1) % self.config.train.save_every == 0
            if save or measure:
                self._report(pending, waited, writer, meter, watch, now if measure else None)
                pending = None
            if self.evaluation.ended:
                last, self.stop = True, number + 1
            if save or last:
                self._save(now)
            if save or measure:
                watch.restart()
            if last:
                break
        return now

    def _compile(self, now: state.TrainState, batch: Any) -> step.Compiled:
        train, data = self.config.train, self.config.data
        rows = data.rows  # of all processes
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)
        counts = train.microbatches, len(data.streams), len(data.languages)
        pairs = self.config.optimizer.pairs
        compiled = compile_train_step(self.setup, now, whole, *counts, self.config.seed, pairs)
        self.log(run_log.compiled(compiled))
        return compiled

    def _meter(self, writer: MetricsWriter | NoWriter) -> metrics.Meter:
        config = self.config
        trained = self.setup.abstract.trainable
        rows, length = config.data.rows, config.data.length
        rank = config.adapter.rank if config.adapter is not None else 0

        def useful(images: int, targets: float) -> float:
            return flops.flops_per_step(config.model, trained, rows, length, images, rank, targets)

        rate = peak_rate(self.setup.mesh.devices.flat[0].device_kind)
        peak = rate * self.setup.mesh.size if rate is not None else None
        return metrics.Meter(
            list(config.data.streams),
            config.data.languages,
            config.data.task_of_streams,
            useful,
            peak,
            writer.last,
        )

    def _report(
        self,
        pending: tuple,
        waited: Any,
        writer: MetricsWriter | NoWriter,
        meter: metrics.Meter,
        watch: metrics.Watch,
        measured: state.TrainState | None = None,
    ) -> None:
        """Writes the line of a step, with the held-out loss of the state `measured` after it."""
        number, numbers, counts, records = pending
        with waits_for(f"the end of step {number}"):
            jax.block_until_ready(numbers)  # a lap is from the end of a step to the end of the next
            step_time = watch.restart()
        with waits_for("the others at the next step"):
            step_time = step_time._replace(waiting=float(waited))
        line = meter.line(number, numbers, counts, step_time)
        # the same on resume, or the data moved
        line["records_crc32"] = zlib.crc32("\n".join(records).encode())
        if measured is not None and line["finite"]:
            line |= self.evaluation(number + 1, measured.params)
        with waits_for("metrics.jsonl to be written"):
            writer.write(line)
        self.losses.add(line["loss"], line["trained_tokens"])
        self.checkpoints.check()
        metrics.require_finite(number, numbers, self._last_good)

    def _last_good(self) -> str | None:
        self.checkpoints.wait()  # one may be on its way to the disk
        saved = self.checkpoints.latest()
        return str(self.checkpoints.folder / str(saved)) if saved else None

    def _save(self, now: state.TrainState) -> None:
        number, start, files = int(now.step), self.log.seconds, self.frozen.files
        loss, extra = self.losses.take(), {"seed": self.config.seed}
        extra |= self.evaluation.lowest.extra()
        if self.config.train.keep_best_by == "heldout":
            loss = self.evaluation.loss_after(number)
        moments = {state.STORED: now.opt_state}
        self.checkpoints.save(number, now.trainable, moments, extra, loss, files)
        folder, seconds = f"{self.config.out}/checkpoints/{number}", self.log.seconds - start
        self.log(f"saving step {number:,} in {folder}: copied in {seconds:.1f} s, being written")
