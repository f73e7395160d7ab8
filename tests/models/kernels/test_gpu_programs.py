"""GPU attention as JAX's compiler for GPUs makes it, on a machine without one."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.common.hardware import CHIPS
from mllm_jax.config.data import row_limit
from mllm_jax.models.kernels import select
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.models.kernels.select import Selection
from mllm_jax.preflight import gpu_target

LENGTH = 1153  # not a product of the other dimensions, and odd
KERNELS = {
    ("cudnn", "h100"): ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"],
    ("tokamax", "h100"): ["mosaic_gpu"],
    ("triton", "h100"): ["mha_forward", "mha_preprocess_backward", "mha_backward"],
    ("triton", "a100"): ["mha_forward", "mha_preprocess_backward", "mha_backward"],
}


def compiled(name: str, chip: str) -> jax.stages.Compiled:
    """Loss and gradients of packed rows with grouped queries, bfloat16."""
    cores = CHIPS[chip].cores
    assert cores is not None
    selection = Selection(name, Device("gpu", cores.capability), row_limit(LENGTH))
    run = functools.partial(select.run, selection, causal=True)
    place = jax.sharding.SingleDeviceSharding(gpu_target.devices(CHIPS[chip], 1)[0])

    def loss(q, k, v, segments):
        return jnp.sum(run(q, k, v, segments).astype(jnp.float32))

    shapes = [
        jax.ShapeDtypeStruct((2, LENGTH, heads, 64), jnp.bfloat16, sharding=place)
        for heads in (8, 2, 2)
    ]
    ids = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32, sharding=place)
    with gpu_target.as_if_here(CHIPS[chip]):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*shapes, ids).compile()


@pytest.mark.usefixtures("gpu_compiler")
@pytest.mark.parametrize(("name", "chip"), KERNELS)
def test_the_kernel_is_in_the_program_and_no_square_of_the_length(name: str, chip: str):
    text = compiled(name, chip).as_text() or ""
    for kernel in KERNELS[name, chip]:
        assert re.search(re.escape(kernel) + r"\b", text), kernel
    square = rf"\[(?:\d+,)*({LENGTH},{LENGTH}|{LENGTH + 1},{LENGTH + 1}|1280,1280)\]"
    assert not re.search(square, text)
