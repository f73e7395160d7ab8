"""Names the attention backend of each module of a model, and tries the kernels among them."""

from typing import NamedTuple

from mllm_jax.models.kernels import verify
from mllm_jax.models.kernels.protocol import Call
from mllm_jax.models.kernels.select import Selection
from mllm_jax.models.mllm import MLLM


class Use(NamedTuple):
    """The attention of one module, on one device."""

    selection: Selection
    call: Call


def backends(
    model: MLLM, rows: int, images: int, length: int, tensor: int = 1, context: int = 1
) -> dict[str, str]:
    """{"vision": key of `select.BACKENDS`, "language": likewise}.

    Args:
        model: from `mllm.build`.
        rows: of a microbatch on one device.
        images: image slots of a row; 0 leaves the image tower out.
        length: tokens of a row.
        tensor: devices that share the heads.
        context: devices that share the length.

    Raises:
        ConfigError: the backend that the config names cannot compute one of them.
    """
    uses = _uses(model, rows, images, length, tensor, context)
    return {module: use.selection.backend(use.call) for module, use in uses.items()}


def verified(
    model: MLLM, rows: int, images: int, length: int, tensor: int = 1, context: int = 1
) -> dict[str, float]:
    """Tries the kernels that `backends` names, on this process's first device.

    Args:
        model, rows, images, length, tensor, context: see `backends`.

    Returns:
        {module: the largest relative error} of those that are kernels, see `verify.verify`.

    Raises:
        ConfigError: a kernel fails or is wrong.
    """
    uses = _uses(model, rows, images, length, tensor, context)
    errors = {module: verify.verify(*use) for module, use in uses.items()}
    return {module: error for module, error in errors.items() if error is not None}


def _uses(
    model: MLLM, rows: int, images: int, length: int, tensor: int, context: int
) -> dict[str, Use]:
    dtype, uses = model.compute.compute, {}
    if model.vision is not None and images:
        c = model.vision.config
        heads = max(1, c.heads // tensor)
        shape = rows * images // context, c.tokens, heads, heads, c.width // c.heads
        uses["vision"] = Use(model.vision.backend, Call(*shape, dtype, False, False))
    if model.language is not None:
        c, chosen = model.language.config, model.language.backend
        shape = rows, length // context, c.heads // tensor, c.kv_heads // tensor, c.head_dim
        uses["language"] = Use(chosen, Call(*shape, dtype, True, True, chosen.segments, context))
    return uses
