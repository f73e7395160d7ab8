"""Bounds the time of a step from below: arithmetic, memory and links at the chip's published rates.

    bound = max(FLOPs done / (chips x rate), bytes of memory / bandwidth, bytes sent / links)

as if the three overlapped wholly and each ran at its rate: no step is faster, good ones come near.
(Model: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, with links as a third roof.)
The MFU bound divides the USEFUL FLOPs by that time; recomputation takes time and is not useful.
"""

from typing import NamedTuple

from mllm_jax.preflight.hardware import Chip


class Work(NamedTuple):
    """What a step asks of the hardware."""

    useful: float  # FLOPs of all devices together (training/flops.py)
    done: float  # with what is computed a second time
    memory: float  # bytes of one device, read and written at least
    sent: float  # bytes one device sends
    tokens: int  # of all rows


class Bound(NamedTuple):
    """Seconds of a step at least, and what follows."""

    compute: float
    memory: float
    links: float
    seconds: float  # the largest of the three
    by: str  # which one that is
    tokens_per_second: float  # at most
    mfu: float  # at most, 0..1


def bound(work: Work, chip: Chip, rate: float | None, count: int) -> Bound | None:
    """The roofline; None for a chip without published rates. `rate`: bfloat16 FLOP/s of a chip."""
    if rate is None or chip.bandwidth is None or chip.links is None:
        return None
    times = {
        "compute": work.done / (rate * count),
        "memory": work.memory / chip.bandwidth,
        "links": work.sent / chip.links,
    }
    by = max(times, key=lambda name: times[name])
    seconds = times[by]
    return Bound(
        times["compute"],
        times["memory"],
        times["links"],
        seconds,
        by,
        work.tokens / seconds,
        work.useful / (rate * count * seconds),
    )


class Split(NamedTuple):
    """How many devices share what."""

    data: int
    fsdp: int
    tensor: int
    context: int = 1


def sent_by_formula(
    split: Split,
    microbatches: int,
    weights: int,
    trained: int,
    float32_shard: int,
    activations: int,
    layers: int,
    again: bool,
    keys: tuple[int, int] = (0, 0),
) -> dict[str, int]:
    """Bytes one device sends in a step, by kind, as the layout asks for; rings as in `hlo`.

    Weights are gathered for the forward and for the backward pass of every microbatch; gradients
    are scattered in the compute dtype; slices of the data axis exchange theirs in float32. A layer
    under tensor parallelism sums what attention and feed-forward give, and in the backward pass the
    gradients of what queries, keys, values, gate and up read, one by one, as compiled programs do.
    Over the context axis, which divides parameters as fsdp does, keys and values are gathered for
    every pass forward, and their gradients scattered.

    Args:
        split: the mesh.
        microbatches: of a step.
        weights: bytes in the compute dtype of one tensor part of all weights that a step uses.
        trained: likewise of those that are trained.
        float32_shard: bytes of the gradients one device keeps.
        activations: bytes of one layer's output for a microbatch, as it is summed.
        layers: of the language model.
        again: whether the sum of what attention gives is computed a second time.
        keys: bytes of one layer's keys and values of whole rows for a microbatch: gathered in all
            passes, and of their gradients.
    """
    shards = split.fsdp * split.context
    fsdp, context = (shards - 1) / shards, (split.context - 1) / split.context
    gathered, scattered = (layers * microbatches * count * context for count in keys)
    data, tensor = (2 * (n - 1) / n for n in (split.data, split.tensor))
    sums = (2 + 5 + again) * layers * microbatches
    return {
        "all-gather": round(2 * microbatches * weights * fsdp + gathered),
        "reduce-scatter": round(microbatches * trained * fsdp + scattered),
        "all-reduce": round(data * float32_shard + sums * activations * tensor),
    }
