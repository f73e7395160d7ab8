"""Describe a run in lines for its log: devices, data, parameters, where it begins and ends."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mllm_jax.config.adapter import is_scale
from mllm_jax.config.pairs import PairsConfig
from mllm_jax.config.stage import Config, OptimizerConfig
from mllm_jax.data.heldout import HeldOut
from mllm_jax.data.index.stream import StreamIndex
from mllm_jax.data.loader import Loader
from mllm_jax.distributed import sharding
from mllm_jax.models import neftune
from mllm_jax.models.backends import backends, verified
from mllm_jax.training.heldout import Lowest
from mllm_jax.training.metrics import Line
from mllm_jax.training.setup import TrainSetup
from mllm_jax.training.state import TrainState
from mllm_jax.training.step import Compiled


def devices(mesh: Mesh) -> str:
    """What the run computes on."""
    kind = mesh.devices.flat[0].device_kind
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    count = jax.process_count()
    several = f" of {count} processes" if count > 1 else ""
    return f"devices: {mesh.size} x {kind}{several}; mesh {axes}"


def data(config: Config, loader: Loader, steps: int) -> Iterator[str]:
    """What is read: a line for every stream, and one for the whole run."""
    shares = loader.shares(steps)
    for stream in loader.streams:
        yield f"stream {stream.name}: {_contents(stream)}, {shares[stream.name]:.1%} of the mixture"
    rows, length = config.data.rows, config.data.length
    unit = "image slots" if config.model.grids is not None else "images"
    images = f" and {config.data.image_slots} {unit}" if config.data.image_slots else ""
    total = f"{loader.total_records:,} examples"
    yield f"data: {total}; a batch is {rows} rows of {length:,} tokens{images}"


def heldout(config: Config, batches: HeldOut) -> str:
    """What the held-out loss is measured on."""
    evaluate, languages = config.train.evaluate, config.data.languages
    assert evaluate is not None
    counts = Counter(
        languages[batches.streams[ref.stream].language(ref.record)] for ref in batches.refs
    )
    each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"held-out: {len(batches.refs):,} examples ({each}), every {evaluate.every:,} steps"


def _contents(stream: StreamIndex) -> str:
    """Examples and tokens of a stream, and how many of its records are left out."""
    tokens = int(stream.sizes.sum())
    left = sum(stream.faults.values()) + sum(stream.dropped.values())
    out = f" ({left:,} records left out)" if left else ""
    pairs = "" if stream.pairing is None else f" ({stream.pairing.described})"
    examples = f"{len(stream):,} examples{pairs}{out}"
    return f"{examples}, {tokens:,} tokens, {stream.trained:,} of them trained"


def parameters(abstract: TrainState) -> str:
    """How many parameters of each module are trained and frozen."""
    counts = [_by_module(tree) for tree in (abstract.trainable, abstract.frozen)]
    modules = sorted(counts[0] | counts[1], key=("vision", "connector", "language").index)
    parts = []
    for module in modules:
        of = zip((each[module] for each in counts), ("trained", "frozen"), strict=True)
        parts.append(f"{module} " + " + ".join(f"{n:,} {state}" for n, state in of if n))
    return f"parameters: {'; '.join(parts)}"


def _by_module(params: Mapping[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path, leaf in params.items():
        counts[path.split("/")[0]] += 0 if is_scale(path) else math.prod(leaf.shape)
    return counts


def compiled(step: Compiled) -> str:
    """How long the step took to compile, and which of its options the compiler did not know."""
    line = f"step compiled, {step.seconds:.1f} s"
    if step.refused:
        line += f"; without {', '.join(step.refused)}, which this compiler does not know"
    return line


def attention(config: Config, setup: TrainSetup) -> str:
    """How each module's attention is computed; kernels are tried for it.

    Raises:
        ConfigError: a kernel fails here, or its numbers are wrong.
    """
    data, mesh = config.data, setup.mesh
    rows = data.rows // config.train.microbatches // sharding.ways(mesh, "batch")
    shape = rows, data.image_slots, data.length, mesh.shape["tensor"], mesh.shape["context"]
    errors = verified(setup.model, *shape)
    names = ", ".join(
        f"{module} {name}" + (f" ({errors[module]:.2%} off float32)" if module in errors else "")
        for module, name in backends(setup.model, *shape).items()
    )
    most = "" if data.segments is None else f"; a row holds {data.segments:,} examples at most"
    return f"attention: {names}{most}"


def rates(config: OptimizerConfig) -> str:
    """Peak learning rates: 1e-05, or 1e-05, vision 2e-06 where a part has its own."""
    parts = [
        f"{name} {of.learning_rate:g}" for name, of in config.parts.items() if of.learning_rate
    ]
    return ", ".join([f"{config.learning_rate:g}", *parts])


def noise(config: Config) -> str:
    """NEFTune's alpha, and by how much it changes an embedding's numbers."""
    alpha, language = config.optimizer.neftune_alpha, config.model.language
    assert language is not None
    largest = neftune.magnitude(alpha, config.data.length, language.width)
    return f"NEFTune: alpha {alpha:g}, noise of at most {largest:.3g} on the embeddings of text"


def pairs(terms: PairsConfig) -> str:
    """The weights of the regularizer over pairs."""
    temperature = f", temperature {terms.temperature:g}" if terms.contrastive else ""
    weights = f"{terms.kl:g} x KL + {terms.contrastive:g} x InfoNCE{temperature}"
    return f"pairs: loss + {weights}; not from the LRM-LLaVA paper"


def begin(config: Config, step: int | None, steps: int) -> str:
    """Where the run writes and at which step it begins."""
    last = min(steps, config.train.stop_at or steps)
    resumed = "" if step is None else f", resumed after step {step:,}"
    return f"run folder: {config.out}{resumed}; trains to step {last:,} of {steps:,}"


def measured(step: int, line: Line, lowest: Lowest) -> str:
    """The held-out loss, and whether it still falls."""
    prefix = "heldout/loss/"
    parts = [f"{line['heldout/loss']:.4f}"]
    parts += [
        f"{name.removeprefix(prefix).replace('/', ' ')} {value:.3f}"
        for name, value in line.items()
        if name.startswith(prefix)
    ]
    falls = "lowest so far"
    if lowest.since:
        falls = f"lowest {lowest.loss:.4f} after step {lowest.step:,}"
    seconds = line["heldout/seconds"]
    return f"held-out loss after step {step:,}: {', '.join(parts)}; {falls}; {seconds:.1f} s"


def early_end(lowest: Lowest) -> str:
    """Why a stage ends before its last step."""
    return (
        f"the held-out loss has not fallen below {lowest.loss:.4f} (after step {lowest.step:,}) in "
        f"{lowest.since} evaluations: the stage ends here (train.evaluate.stop_after)"
    )


def end(run: Path, step: int, complete: bool, steps: int) -> str:
    """What there is now, and what can be done with it."""
    if not complete:
        return f"done: stopped at step {step:,} of {steps:,}; continue {run} with --resume"
    return (
        f"done: {step:,} steps; {run} is the trained model, for mllm-jax evaluate, generate, "
        "convert and the next stage"
    )
