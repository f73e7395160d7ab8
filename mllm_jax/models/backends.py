"""Names the attention backend of each module of a model, for logs and results."""

from mllm_jax.models.kernels.protocol import Call
from mllm_jax.models.mllm import MLLM


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
    dtype, names = model.compute.compute, {}
    if model.vision is not None and images:
        c = model.vision.config
        heads = max(1, c.heads // tensor)
        shape = rows * images // context, c.tokens, heads, heads, c.width // c.heads
        names["vision"] = model.vision.backend.backend(Call(*shape, dtype, False, False))
    if model.language is not None:
        c, chosen = model.language.config, model.language.backend
        shape = rows, length // context, c.heads // tensor, c.kv_heads // tensor, c.head_dim
        call = Call(*shape, dtype, True, True, chosen.segments, context)
        names["language"] = chosen.backend(call)
    return names
