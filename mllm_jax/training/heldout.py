"""Measure the loss on held-out records while a stage trains, and decide when it no longer falls.

The same rows every time, by one compiled program, with the parameters where the step has them.
Losses are summed and tokens counted over all of these rows, then divided once.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mllm_jax.batch import Batch
from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config.data import StreamConfig
from mllm_jax.config.stage import Config, HeldOutConfig
from mllm_jax.data.chat.templates import PLAIN_FORMATS
from mllm_jax.data.heldout import HeldOut, heldout_data, images_beside
from mllm_jax.data.index.stream import StreamIndex
from mllm_jax.distributed import sharding
from mllm_jax.training import run_folder, step
from mllm_jax.training.metrics import Line, Tasks
from mllm_jax.training.setup import TrainSetup, apply_of, shard_batch

SUMS = (
    "loss_sum",
    "trained_tokens",
    "stream_loss_sum",
    "stream_tokens",
    "language_loss_sum",
    "language_tokens",
)


# --------------------------------------------------------------------------------------------- data


def open_heldout(
    config: Config,
    tokenizer: Any,
    trained: Sequence[StreamIndex],
    shares: dict[str, float],
    mesh: Mesh | None = None,
    **options: Any,
) -> HeldOut | None:
    """Opens the records of `train.evaluate`; None where there are none.

    Args:
        config: the stage.
        tokenizer: as `load_tokenizer` gives it.
        trained: the streams of the stage.
        shares: of the records, see `run_folder.main_format`.
        mesh: the devices; None where no batch is made.
        options: of `HeldOut`.

    Raises:
        ConfigError: records that cannot be used, or that are trained on, too.
    """
    evaluate = config.train.evaluate
    if evaluate is None:
        return None
    form = heldout_format(config.data.streams, shares)
    streams = heldout_streams(evaluate, form)
    data = heldout_data(config.data, streams, config.train.microbatches)
    share = None
    if mesh is not None and jax.process_count() > 1:
        share = sharding.rows_here(mesh, data.rows)
    try:
        opened = HeldOut(data, config.model, tokenizer, evaluate.records, share, **options)
    except ConfigError as error:
        raise ConfigError(f"train.evaluate: {error}") from error
    _check_apart(opened, trained)
    return opened


def heldout_format(streams: dict[str, StreamConfig], shares: dict[str, float]) -> str:
    """The format of a file that `train.evaluate.data` names: that of most of what is trained.

    Args:
        streams, shares: see `run_folder.main_format`; where none asks questions, the captions'.
    """
    captions = [name for name, of in streams.items() if of.format in PLAIN_FORMATS]
    most = streams[max(captions, key=shares.__getitem__)].format if captions else "plain"
    return run_folder.main_format(streams, shares) or most


def heldout_streams(evaluate: HeldOutConfig, form: str) -> dict[str, StreamConfig]:
    """The streams of `train.evaluate`.

    Args:
        evaluate: the section.
        form: chat format of a file that `data` names.

    Raises:
        ConfigError: no such file or folder.
    """
    if evaluate.data is None:
        return evaluate.streams
    path = Path(evaluate.data)
    require(path.is_file(), f"train.evaluate.data={quoted(evaluate.data)}: no such file")
    images = Path(evaluate.images) if evaluate.images else images_beside(path)
    require(images.is_dir(), f"train.evaluate.images={quoted(str(images))}: no such folder")
    chat: Any = form
    return {"heldout": StreamConfig(evaluate.data, str(images), format=chat)}


def _check_apart(heldout: HeldOut, trained: Sequence[StreamIndex]) -> None:
    """Refuses held-out files that are also trained on, under whatever name."""
    names = {stream.digest: stream.name for stream in trained}
    for stream in heldout.streams:
        name = names.get(stream.digest)
        require(
            name is None,
            f"train.evaluate: the records of {stream.name} are those of data.streams.{name}; give "
            "records that are not trained on",
        )


# --------------------------------------------------------------------------------------------- loss


def due(step: int, every: int, steps: int) -> bool:
    """Whether the loss is measured after `step` of `steps` updates, wherever a run pauses.

    A run that was stopped and resumed is measured where an undisturbed one is.
    """
    return step % every == 0 or step == steps


class HeldOutLoss:
    """The loss on held-out records, as a function of the parameters.

    Args:
        setup: from `make_setup`.
        batches: the records.
        languages: their names, in the order of the batch's numbers.
    """

    def __init__(self, setup: TrainSetup, batches: HeldOut, languages: Sequence[str]):
        self._setup, self.batches = setup, batches
        self._names = {
            "language": tuple(languages),
            "stream": tuple(stream.name for stream in batches.streams),
        }
        self._tasks = Tasks(batches.config.task_of_streams)
        self._compiled: Any = None

    def __call__(self, params: Any) -> Line:
        """Losses as they are written to metrics.jsonl.

        Args:
            params: the whole tree, sharded as the stage's.

        Returns:
            heldout/loss, heldout/loss/language/<name>, heldout/loss/stream/<name> where there are
            several, heldout/loss/task/<name> where streams name tasks, in nats a token;
            heldout/tokens, heldout/seconds.
        """
        start = time.perf_counter()
        sums: dict[str, Any] = dict.fromkeys(SUMS, np.float64(0))
        for batch in self.batches.iterate(0, self.batches.count):
            interrupts.check()
            if self._compiled is None:
                self._compiled = self._compile(params, batch.batch)
            numbers = self._compiled(params, shard_batch(batch.batch, self._setup.mesh))
            sums = {name: sums[name] + np.asarray(numbers[name], np.float64) for name in SUMS}
        tokens = float(sums["trained_tokens"])
        line: Line = {"heldout/loss": float(sums["loss_sum"]) / tokens}
        for kind, names in self._names.items():
            if kind == "stream" and len(names) == 1:
                continue
            each = zip(names, sums[f"{kind}_loss_sum"], sums[f"{kind}_tokens"], strict=True)
            line |= {f"heldout/loss/{kind}/{name}": float(s / t) for name, s, t in each if t}
        if self._tasks.names:
            of_tasks = [
                self._tasks.total(sums[f"stream_{what}"]) for what in ("loss_sum", "tokens")
            ]
            each = zip(self._tasks.names, *of_tasks, strict=True)
            line |= {f"heldout/loss/task/{name}": float(s / t) for name, s, t in each if t}
        return line | {"heldout/tokens": tokens, "heldout/seconds": time.perf_counter() - start}

    def _compile(self, params: Any, batch: Batch) -> Callable[[Any, Batch], dict[str, Any]]:
        setup, names = self._setup, self._names
        measure = step.make_eval_step(
            apply_of(setup.model),
            setup.model.compute.loss_chunk,
            len(names["stream"]),
            len(names["language"]),
        )

        def sums(params: Any, batch: Batch) -> dict[str, jax.Array]:
            numbers = measure(params, batch)
            return {name: numbers[name] for name in SUMS}

        rows, mesh = sharding.batch_sharding(setup.mesh), setup.mesh
        size = self.batches.config.rows
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), batch)
        jitted = jax.jit(
            sums,
            in_shardings=(setup.shardings.params, jax.tree.map(lambda _: rows, whole)),
            out_shardings=NamedSharding(mesh, P()),
        )
        with jax.set_mesh(mesh):
            return jitted.lower(params, whole).compile()

    @property
    def identity(self) -> str:
        """Digest of what is measured: losses of another one cannot be compared."""
        streams = [(stream.name, stream.digest) for stream in self.batches.streams]
        parts = [streams, [ref[1:3] for ref in self.batches.refs]]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------- lowest


class Lowest(NamedTuple):
    """The lowest held-out loss so far; kept with every checkpoint, so that a resumed run knows."""

    loss: float = math.inf
    step: int = 0  # updates done when it was measured
    since: int = 0  # evaluations after it
    identity: str = ""  # of the records

    def after(self, step: int, loss: float) -> "Lowest":
        """With one more evaluation."""
        if loss < self.loss:
            return Lowest(loss, step, 0, self.identity)
        return self._replace(since=self.since + 1)

    def ends(self, stop_after: int | None) -> bool:
        """Whether `train.evaluate.stop_after` ends the stage."""
        return stop_after is not None and self.since >= stop_after

    @classmethod
    def restored(cls, extra: dict[str, Any], identity: str) -> "Lowest":
        """From what a checkpoint keeps; none yet if it was of other records.

        Args:
            extra: as `Checkpoints.save` got it.
            identity: of the records that are measured now.
        """
        lowest = cls.saved(extra)
        return lowest if lowest.identity == identity else cls(identity=identity)

    @classmethod
    def saved(cls, extra: dict[str, Any]) -> "Lowest":
        """What a checkpoint keeps, of whatever records; none yet where it keeps none."""
        return cls(**extra.get("heldout", {}))

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps; nothing before the first evaluation, whose loss is no number."""
        return {} if math.isinf(self.loss) else {"heldout": self._asdict()}


def is_complete(config: Config, steps: int | None) -> bool:
    """Whether a stage has saved its last step, or ended before it by `train.evaluate.stop_after`.

    Args:
        config: the stage.
        steps: of the whole run; None where it is not known yet.
    """
    folder = Path(config.out) / "checkpoints"
    saved = checkpoint_steps(folder)
    if not saved:
        return False
    if steps is not None and saved[-1] >= steps:
        return True
    evaluate = config.train.evaluate
    if evaluate is None or evaluate.stop_after is None:
        return False
    extra = manifest.read(folder / str(saved[-1]))["extra"]
    return Lowest.saved(extra).ends(evaluate.stop_after)
