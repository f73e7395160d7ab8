"""Counts what a step under a setting asks of the hardware: FLOPs, bytes of memory, bytes sent."""

import dataclasses
from collections.abc import Collection, Iterator

from mllm_jax.models.kernels.protocol import Call
from mllm_jax.preflight import memory, roofline
from mllm_jax.preflight.memory import Share
from mllm_jax.preflight.plans import Plans
from mllm_jax.preflight.recompute import Recomputed, Tower, parts_with_backward, recomputed
from mllm_jax.preflight.roofline import Bound, Work
from mllm_jax.preflight.settings import Setting
from mllm_jax.training import flops


def sent(plans: Plans, setting: Setting) -> dict[str, dict[str, int]]:
    """Bytes one device sends in a step, by formula, in the form of `hlo.summary`."""
    setup, share = plans.laid_out(setting.split), plans.share(setting)
    compute = setup.model.compute
    trained = setup.abstract.trainable
    kinds = roofline.sent_by_formula(
        setting.split,
        setting.microbatches,
        plans.weight_bytes() // share.tensor,
        plans.weight_bytes(trained) // share.tensor,
        memory.float32_bytes({p: x for p, x in setup.params.items() if p in trained}),
        share.rows * share.length * plans.language.width * memory.reduced_width(compute),
        plans.language.layers,
        setting.remat in ("attention", "full", "offload"),
        _keys(plans, setting, share),
    )
    return {kind: {"operations": 0, "bytes": count} for kind, count in kinds.items()}


def _keys(plans: Plans, setting: Setting, share: Share) -> tuple[int, int]:
    """Bytes of a layer's keys and values that are gathered, and of gradients that are scattered.

    No policy but `none` keeps those of whole rows.
    """
    c, compute = plans.language, plans.config.compute
    numbers = share.rows * share.keys * 2 * c.kv_heads // share.tensor * c.head_dim
    passes = 1 if setting.remat == "none" else 2
    return numbers * passes * memory.width(compute), numbers * memory.reduced_width(compute)


def work(plans: Plans, setting: Setting, sent: int) -> Work:
    """What a step asks of the hardware; `sent`: bytes over one device's links.

    Memory is read and written at least for: the weights forward, for gradients of what they are
    multiplied with, and where their products are computed again; what the backward pass reads of
    the layers, which is written whether it was kept or is computed again; the optimizer's state.
    """
    config, data = plans.config, plans.config.data
    setup, share = plans.laid_out(setting.split), plans.share(setting)
    trained = setup.abstract.trainable
    images = _images(plans, setting)
    rank = config.adapter.rank if config.adapter is not None else 0
    useful = flops.flops_per_step(config.model, trained, setting.rows, data.length, images, rank)
    again = computed_again(plans, setting)
    read = plans.weight_bytes() + plans.weight_bytes(again.weights)
    read += plans.weight_bytes(set(_read_backward(plans, trained)))
    bytes_now = plans.memory(setting)
    of_layers = plans.memory(setting._replace(remat="none")).activations
    # what the host keeps is also read on its way there, and written on its way back
    kept = 2 * of_layers + 2 * bytes_now.host
    moved = (
        share.microbatches * (read // share.tensor + kept)
        + 2 * (bytes_now.trainable + bytes_now.moments)
        + bytes_now.gradients
    )
    done = useful + again.products + again.attention
    return Work(useful, done, moved, sent, setting.rows * data.length)


def computed_again(plans: Plans, setting: Setting) -> Recomputed:
    """What a step under a setting computes a second time."""
    config, trained = plans.config, plans.laid_out(setting.split).abstract.trainable
    rank = config.adapter.rank if config.adapter is not None else 0
    images, length = _images(plans, setting), config.data.length
    towers = dict(_towers(plans, setting, trained))
    return recomputed(config.model, towers, trained, setting.rows, length, images, rank)


def bound(plans: Plans, work: Work) -> Bound | None:
    """The least time of a step; None for a chip without published rates."""
    chip = plans.hardware.chip
    return roofline.bound(work, chip, chip.flops, plans.hardware.count)


def _images(plans: Plans, setting: Setting) -> int:
    return setting.rows * plans.config.data.image_slots if plans.config.model.patches else 0


def _towers(
    plans: Plans, setting: Setting, trained: Collection[str]
) -> Iterator[tuple[str, Tower]]:
    """How each module is computed that a gradient comes back to."""
    share, vision = plans.share(setting), plans.config.model.vision
    compute = dataclasses.replace(plans.config.compute, remat=setting.remat)
    backend = plans.attention.backend
    call = memory.language_call(plans.language, share, compute, plans.attention)
    yield "language", Tower(compute.remat, backend(call))
    if vision is not None and any(path.startswith("vision/") for path in trained):
        heads, width = vision.heads // share.tensor, vision.width // vision.heads
        shape = share.images, vision.tokens, heads, heads, width
        of_images = Call(*shape, compute.compute, causal=False, packed=False)
        yield "vision", Tower(compute.vision_remat, backend(of_images))


def _read_backward(plans: Plans, trained: Collection[str]) -> Iterator[str]:
    """Weights whose products' inputs want a gradient.

    Not the first ones behind what is not trained; in a stack of layers all are counted.
    """
    for number, part in enumerate(parts_with_backward(plans.config.model, trained, 1, 1, 1)):
        yield from part.weights if part.attention or number > 0 else ()
