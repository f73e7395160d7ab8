"""Estimates the bytes that one device needs for a step, by formula.

Held between steps, exact to the byte: parameters, moments, and the batch. While a step runs, an
estimate: memory use has two peaks, in the loss (logits, the head and its gradient)
and the backward pass of a layer (its weights gathered, their gradients, what is recomputed);

    temporary = copies + gradients added up + activations kept + the larger of the two moments

Activations are not guessed: JAX is asked which arrays the backward pass of this very model keeps,
at one row and at two, and the difference is one row's. The rest of the formula is what compiled
programs show (tests/preflight/test_report.py and docs/preflight.md compare).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mllm_jax.common import int8
from mllm_jax.common.hardware import Platform
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models.kernels.protocol import Call
from mllm_jax.models.kernels.select import BACKENDS, Selection
from mllm_jax.training.chunks import chunks


class Share(NamedTuple):
    """What one device has of a step."""

    rows: int  # of a microbatch
    microbatches: int
    length: int
    images: int  # slots of its rows in a microbatch
    tensor: int  # devices that share a layer's heads and units
    platform: Platform = "gpu"  # whose compiler decides what stays in memory at the same time
    parts: int = 1  # devices that share a row: `length` is that of one's part

    @property
    def keys(self) -> int:
        """Tokens of a whole row."""
        return self.length * self.parts


class Memory(NamedTuple):
    """Bytes of one device."""

    trainable: int
    frozen: int
    moments: int
    batch: int  # tokens, targets, weights and so on
    images: int  # their pixels, as bytes
    copies: int  # of trained parameters in the compute dtype, made before several microbatches
    gradients: int  # of one microbatch, and what is added up over several
    activations: int  # kept for the backward pass
    logits: int  # of one chunk, and their gradient
    head: int  # the output table gathered, and its gradient before it is divided
    layer: int  # one layer: weights gathered, their gradients, what is recomputed
    host: int = 0  # kept for the backward pass in the host's memory, of which nothing is added up

    @property
    def held(self) -> int:
        """What the program is handed: the state and the batch."""
        return self.trainable + self.frozen + self.moments + self.batch + self.images

    @property
    def temporary(self) -> int:
        """What it needs beside that."""
        kept = self.copies + self.gradients + self.activations
        return kept + max(self.logits + self.head, self.layer)

    @property
    def total(self) -> int:
        return self.held + self.temporary


def bytes_of(placed: Any) -> int:
    """Bytes on one device of a tree of ShapeDtypeStructs that carry shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(placed)
    )


class Kept(NamedTuple):
    """Bytes kept for the backward pass, by where they are."""

    device: int
    host: int


def kept_per_row(backward: Callable[[int], Sequence[Any]]) -> Kept:
    """Bytes one row leaves behind for the backward pass.

    Args:
        backward: rows -> the abstract arrays (`jax.core.ShapedArray`) that the backward pass is
            given. What does not grow with the rows (parameters, their copies) falls out.
    """
    one, two = (_by_place(backward(rows)) for rows in (1, 2))
    return Kept(two.device - one.device, two.host - one.host)


def _by_place(arrays: Sequence[Any]) -> Kept:
    host = [x.memory_space == jax.memory.Space.Host for x in arrays]
    sizes = [x.size * x.dtype.itemsize for x in arrays]
    of_host = sum(size for size, there in zip(sizes, host, strict=True) if there)
    return Kept(sum(sizes) - of_host, of_host)


def logits_bytes(language: LanguageConfig, share: Share, chunk: int) -> int:
    """Logits of a chunk in float32, and their gradient in the compute dtype (2 bytes or 4)."""
    _, positions = chunks(share.rows, share.length, chunk)
    return positions * language.vocab // share.tensor * 8


def head_bytes(
    language: LanguageConfig, share: Share, compute: ComputeConfig, trained: bool, divided: bool
) -> int:
    """The output table as the loss has it, gathered, in the compute dtype, and its gradient."""
    table = language.vocab * language.width // share.tensor * width(compute)
    return table + head_gradient_bytes(language, share, trained and divided)


def head_gradient_bytes(language: LanguageConfig, share: Share, summed: bool) -> int:
    """The output table's gradient in float32, before and after it is summed over the devices."""
    return language.vocab * language.width // share.tensor * 8 if summed else 0


def layer_bytes(
    model: ModelConfig,
    share: Share,
    compute: ComputeConfig,
    trained: bool,
    attention: Selection,
    adapter: AdapterConfig | None = None,
    head_gradient: int = 0,
) -> int:
    """The backward pass of one language layer, or the forward pass of a vision layer if larger.

    `head_gradient` is of `head_gradient_bytes`: programs sum it over the devices afterwards.
    """
    largest = 0
    if model.language is not None:
        largest = _language_layer(model.language, share, compute, trained, attention, head_gradient)
        largest += _of_adapter(model.language, share, compute, adapter)
    if model.vision is not None:
        largest = max(largest, _vision_layer(model.vision, share, compute))
    return largest


def _language_layer(
    c: LanguageConfig,
    share: Share,
    compute: ComputeConfig,
    trained: bool,
    attention: Selection,
    head_gradient: int,
) -> int:
    size, tokens = width(compute), share.rows * share.length
    heads = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
    weights = (c.width * heads + 3 * c.width * c.mlp) // share.tensor
    # gate, up and their product with what comes back for each; queries, keys, values and theirs
    per_token = 5 * c.width + (6 * c.mlp + 2 * heads) // share.tensor
    call = language_call(c, share, compute, attention)
    backend = attention.backend(call)
    scores = BACKENDS[backend].score_bytes(call)
    if share.platform != "cpu":
        # seen in compiled programs: the output table's gradient waits in memory for its sum, in
        # those of TPUs beside room for the result; there also the gradients of all scores, where
        # it had been
        of_tpu = share.platform == "tpu"
        again = scores if backend == "blocks" and of_tpu else 0
        scores += max(again, head_gradient if of_tpu else head_gradient // 2)
    # a layer's gradients stand whole before they are summed over devices, in `compute.reduce`
    summed = reduced_width(compute)
    # keys and values of whole rows, and their gradients, where devices share a row
    keys = share.rows * share.keys * 2 * c.kv_heads * c.head_dim // share.tensor
    scores += keys * (size + summed) if share.parts > 1 else 0
    # and weights are gathered for the pass back while those for the second pass forth are in use
    return weights * (2 * size + (summed if trained else 0)) + tokens * per_token * size + scores


def language_call(
    c: LanguageConfig, share: Share, compute: ComputeConfig, attention: Selection
) -> Call:
    """A language layer's attention as one device computes it."""
    return Call(
        *(share.rows, share.length, c.heads // share.tensor, c.kv_heads // share.tensor),
        *(c.head_dim, compute.compute, True, True, attention.segments, share.parts),
    )


def _of_adapter(
    c: LanguageConfig, share: Share, compute: ComputeConfig, adapter: AdapterConfig | None
) -> int:
    """What a language layer needs more if its base is in int8, or for DoRA.

    Its numbers in int8 stand beside what they are turned back into. DoRA's lengths take a copy of
    the largest matrix, in the order of its product with A, and what gate and up give is kept both
    before and after the factor.
    """
    size, more = width(compute), 0.0
    if adapter is not None and adapter.base == "int8":
        heads = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
        more += (c.width * heads + 3 * c.width * c.mlp) * int8.BYTES
    if adapter is not None and adapter.dora:
        more += c.mlp * (c.width + 2 * share.rows * share.length) * size
    return round(more) // share.tensor


def _vision_layer(c: VisionConfig, share: Share, compute: ComputeConfig) -> int:
    size, tokens = width(compute), share.images * c.tokens
    weights = 4 * c.width**2 + 2 * c.width * c.mlp
    return (weights + tokens * (4 * c.width + 2 * c.mlp)) * size


def width(compute: ComputeConfig) -> int:
    """Bytes of a number in the compute dtype."""
    return 4 if compute.compute == "float32" else 2


def reduced_width(compute: ComputeConfig) -> int:
    """Bytes of a number that is summed over devices within a layer."""
    return 4 if "float32" in (compute.reduce, compute.compute) else 2


def copies_bytes(placed: Any, share: Share, compute: ComputeConfig) -> int:
    """Trained parameters in the compute dtype, on TPUs, if several microbatches use them.

    The compiler takes the conversion out of their loop. (On GPUs it does not: seen in programs.)
    """
    if share.platform != "tpu" or share.microbatches == 1 or compute.compute == compute.parameters:
        return 0
    return float32_bytes(placed) * width(compute) // 4


def float32_bytes(placed: Any) -> int:
    """What `placed` would take on one device in float32, as gradients do."""
    return 4 * sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(placed)
    )


def gradient_bytes(placed: Any, compute: ComputeConfig) -> int:
    """What the gradients of `placed` take on one device."""
    return float32_bytes(placed) // (2 if compute.gradients == "bfloat16" else 1)
