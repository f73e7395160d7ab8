"""Temporary memory of one attention, forward and backward, as compilers for TPUs and GPUs say.

    PYTHONPATH=. python tests/benchmarks/attention_memory.py v6e:2x2 splash blocks
    PYTHONPATH=. python tests/benchmarks/attention_memory.py h100:1 cudnn tokamax triton blocks

One JSON object a line. Nothing runs, so no such device is needed; preflight's extras are.
"""

import json
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from mllm_jax.common.errors import require
from mllm_jax.common.versions import installed
from mllm_jax.config.data import row_limit
from mllm_jax.models.kernels import select
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.models.kernels.select import Selection
from mllm_jax.preflight import gpu_target, hardware

KERNELS = (
    r'custom_call_target="(?:tpu_custom_call|'
    r'__cudnn\$fmha\w+|__gpu\$xla\.gpu\.triton|mosaic_gpu\w*)"'
)
COMPILERS = {"tpu": ("libtpu",), "gpu": gpu_target.PACKAGES, "cpu": ()}
LANGUAGE, TOWER = (32, 8, 128, True), (16, 16, 64, False)  # heads, key/value heads, width, causal


def compiled(
    device: Any, chip: Device, name: str, rows: int, length: int, shape: tuple[int, int, int, bool]
):
    """Output and gradients of one attention in bfloat16, compiled for one device.

    A packed row may hold as many examples as `data.row_examples` says by default.
    """
    heads, kv_heads, width, causal = shape
    selection = Selection(name, chip, row_limit(length))
    place = jax.sharding.SingleDeviceSharding(device)

    def loss(q, k, v, g, segments):
        out = select.run(selection, q, k, v, segments if causal else None, causal=causal)
        return jnp.sum((out * g).astype(jnp.float32))

    arrays = [
        jax.ShapeDtypeStruct((rows, length, count, width), jnp.bfloat16, sharding=place)
        for count in (heads, kv_heads, kv_heads, heads)
    ]
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=place)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arrays, ids).compile()


def main(word: str, names: list[str]) -> None:
    """Prints the lines of one kind of hardware."""
    parsed = hardware.parse(word)
    found = hardware.find_devices(parsed)
    require(found.compiles, f"{word}: {found.reason}")
    cores = parsed.chip.cores
    chip = Device(parsed.chip.platform, None if cores is None else cores.capability)
    for rows, length, shape in (
        (2, 2048, LANGUAGE),
        (2, 4096, LANGUAGE),
        (2, 8192, LANGUAGE),
        (8, 577, TOWER),
    ):
        for name in names:
            started = time.perf_counter()
            with found.tracing():
                program = compiled(found.devices[0], chip, name, rows, length, shape)
            text = program.as_text() or ""
            sizes: Any = program.memory_analysis()
            line = {
                "hardware": word,
                "backend": name,
                "rows": rows,
                "length": length,
                "heads": shape[0],
                "kv_heads": shape[1],
                "head_dim": shape[2],
                "temporary_bytes": sizes.temp_size_in_bytes,
                "custom_calls": len(re.findall(KERNELS, text)),
                "square_buffers": len(re.findall(rf"\[(?:\d+,)+{length},{length}\]", text)),
                "seconds": round(time.perf_counter() - started, 1),
                **installed("jax", "jaxlib", "tokamax", *COMPILERS[parsed.chip.platform]),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
