"""What both towers are made of: Einsum, the two norms, and stack() = remat + scan over layers.

All parameters are created in float32; a layer casts them to its compute `dtype` where it uses them,
so frozen weights may be stored in bfloat16 and trained ones in float32 without the layer knowing.
Their gradients are summed over rows, and over devices, before they are cast back (`arithmetic`).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mllm_jax.common.arithmetic import add_shared, einsum
from mllm_jax.common.int8 import Int8Matrix, dense
from mllm_jax.config.adapter import KERNEL_SCALE
from mllm_jax.distributed.sharding import constrain, parts_of
from mllm_jax.models import lora
from mllm_jax.models.kernels import cudnn
from mllm_jax.models.kernels.protocol import SAVED as ATTENTION

DType = Any

# Layers that may be compiled one by one instead of as a loop, where that is faster: on CPUs a loop
# costs stacks of zeros, copies into them and out of them, and operations that wait for each other,
# a quarter of the processor time of `tiny` (docs/speed.md). More layers would compile for long.
UNROLLED = 8

LAYER_INPUT = "layer_input"  # what `jax.checkpoint` policies call what flows into a layer

# name in the config -> what the backward pass finds already computed
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    # by name: `linear` has a gradient of its own, so a policy does not see the product inside it
    "dots": jax.checkpoint_policies.save_only_these_names(lora.SAVED),
    # outputs and log-sums: attention is not computed again, whatever else is
    "attention": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(ATTENTION), cudnn.saves
    ),
    "full": None,  # nothing but the layer's input
    # as `attention`, and the layer's input with it, in the host's memory: of all that could be kept
    # these are the fewest bytes for what need not be computed again
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def along_last(vector: Float[Array, "D"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A vector shaped to meet the last dimension of `x` (rank promotion is an error in tests)."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


# letters of dimensions that stay divided while a kernel is used; see the legend in `batch`
DIVIDED = {"N": "heads", "K": "kv_heads", "F": "mlp"}


def linear(
    equation: str,
    x: Float[Array, "..."],
    kernel: Float[Array, "..."] | Int8Matrix,
    reduce: DType = jnp.float32,
) -> Float[Array, "..."]:
    """einsum(equation, x, kernel cast to x's dtype), with the kernel's gradient taken as x' dy.

    A kernel in int8 has no gradient. It is kept, and gathered, as it is held; what it is turned
    back into exists once forward and once backward.

    JAX's own rule takes (dy' x)', and XLA on CPUs then computes dy, an activation's whole backward
    pass, straight into a transposed copy, element by element across memory.

    Under a mesh the kernel is gathered over fsdp here, in the dtype it is used in, forward and
    backward; left alone, the compiler moves some kernels to the tensor axis first.

    Args:
        equation: "x's letters,kernel's letters->letters of the result".
        x: activations in the compute dtype.
        kernel: the parameter as it is held; its gradient is rounded to its dtype once.
        reduce: dtype in which sums of products cross between devices: the kernel's gradient, and
            activations where the tensor axis divides the sum.
    """
    kind = equation, jnp.dtype(reduce)
    return (_int8_linear if isinstance(kernel, Int8Matrix) else _linear)(kind, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(kind: tuple[str, DType], x: Any, kernel: Any) -> Any:
    return _product(kind[0], x, _gathered(kind[0], x, kernel), kind[1])


def _product(equation: str, x: Any, kernel: Any, reduce: DType) -> Any:
    """What devices share the sum of adds up in `reduce`, and is rounded to x's dtype once."""
    inputs, out = equation.split("->")
    shared = any(letter in DIVIDED and letter not in out for letter in inputs.split(",")[1])
    crosses = shared and parts_of("mlp") > 1
    return einsum(equation, x, kernel, out=reduce if crosses else None).astype(x.dtype)


def _gathered(equation: str, x: Any, kernel: Any) -> Any:
    letters = equation.split("->")[0].split(",")[1]
    names = [DIVIDED.get(letter, "none") for letter in letters]
    if isinstance(kernel, Int8Matrix):  # half the bytes cross
        return dense(Int8Matrix(*(constrain(one, *names) for one in kernel)), x.dtype)
    return constrain(kernel.astype(x.dtype), *names)


def _linear_forward(kind: tuple[str, DType], x: Any, kernel: Any) -> tuple[Any, tuple[Any, Any]]:
    return _linear(kind, x, kernel), (x, kernel)


def _linear_backward(
    kind: tuple[str, DType], residuals: tuple[Any, Any], dy: Any
) -> tuple[Any, Any]:
    (equation, reduce), (x, kernel) = kind, residuals
    inputs, out = equation.split("->")
    letters, weights = inputs.split(",")
    back = f"{out},{weights}->{letters}"
    d_x = _product(back, dy, _gathered(equation, x, kernel), reduce)
    d_kernel = einsum(f"{letters},{out}->{weights}", x, dy, out=reduce)
    return d_x, d_kernel.astype(kernel.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _int8_linear(kind: tuple[str, DType], x: Any, kernel: Int8Matrix) -> Any:
    return _product(kind[0], x, _gathered(kind[0], x, kernel), kind[1])


def _int8_forward(kind: tuple[str, DType], x: Any, kernel: Int8Matrix) -> tuple[Any, Int8Matrix]:
    return _int8_linear(kind, x, kernel), kernel


def _int8_backward(kind: tuple[str, DType], kernel: Int8Matrix, dy: Any) -> tuple[Any, None]:
    (equation, reduce), (inputs, out) = kind, kind[0].split("->")
    letters, weights = inputs.split(",")
    back = _gathered(equation, dy, kernel)
    return _product(f"{out},{weights}->{letters}", dy, back, reduce), None


_int8_linear.defvjp(_int8_forward, _int8_backward)


class Einsum(nn.Module):
    """One linear map written as an einsum, e.g. Einsum("BTD,DNH->BTNH", (D, N, H), bias=(N, H)).

    The initial kernel is normal with variance 1 / fan-in, fan-in being the contracted dimensions;
    the bias is zero.
    """

    equation: str
    shape: tuple[int, ...]
    bias: tuple[int, ...] | None = None
    dtype: DType = jnp.float32
    reduce: DType = jnp.float32  # see `linear`

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        inputs, output = self.equation.split("->")
        weight_letters = inputs.split(",")[1]
        contracted = [
            n for letter, n in zip(weight_letters, self.shape, strict=True) if letter not in output
        ]
        init = nn.initializers.normal(1 / math.sqrt(math.prod(contracted)))
        kernel: Any = self.param("kernel", init, self.shape, jnp.float32)
        if self.has_variable("params", KERNEL_SCALE):
            kernel = Int8Matrix(kernel, self.get_variable("params", KERNEL_SCALE))
        x = x.astype(self.dtype)
        if adapter := self._adapter():
            run, name = functools.partial(linear, reduce=self.reduce), "/".join(self.path)
            y: Any = lora.adapted(self.equation, x, kernel, adapter, run, name)
        else:
            y = checkpoint_name(linear(self.equation, x, kernel, self.reduce), lora.SAVED)
        if self.bias is not None:
            y = add_shared(y, self.param("bias", nn.initializers.zeros, self.bias, jnp.float32))
        return y

    def _adapter(self) -> dict[str, Any]:
        """The parameters of this map's adapter by name; empty if it has none."""
        names = (name for name in lora.PARAMS if self.has_variable("params", name))
        return {name: self.get_variable("params", name) for name in names}


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last dimension, computed in float32 (Llama)."""

    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * along_last(scale.astype(jnp.float32), x)).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last dimension, computed in float32 (CLIP)."""

    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        x = x * along_last(scale.astype(jnp.float32), x) + along_last(bias.astype(jnp.float32), x)
        return x.astype(self.dtype)


def is_unstacked(params: Mapping[str, Any]) -> bool:
    """Whether blocks have arrays of their own, by number ("0", "1", ...), not one array for all."""
    return "0" in params


def layer_of(params: Mapping[str, Any], n: int) -> Any:
    """The parameters of block n: a slice of stacked ones, which is a copy, or its own arrays."""
    return params[str(n)] if is_unstacked(params) else jax.tree.map(lambda w: w[n], params)


def stack(
    parent: nn.Module,
    block: nn.Module,
    layers: int,
    remat: str,
    x: Float[Array, "B T D"],
    *shared: Any,
    used: int | None = None,
    state: Any = None,
    unroll: bool = False,
) -> tuple[Float[Array, "B T D"], Any]:
    """Applies `layers` equal blocks in turn by one scan: one compiled body whatever the depth.

    Few blocks may be compiled one by one (`unroll`).

    Args:
        parent: the module whose parameter "layers" holds the stacked weights, [L, ...] each. Where
            it holds the weights of each block apart (`decoding.unstack`), none is copied, and each
            block gets a body of its own.
        block: an unbound module with `block(x, state, *shared) -> (x, state)`.
        layers: L.
        remat: a key of REMAT.
        x: what flows through.
        *shared: what every block is given alike (masks, rotary tables).
        used: apply the first `used` blocks only (CLIP's second-to-last hidden state); default all.
            The weights may be those of these blocks alone, as a step has them that trains them.
        state: per-block state with leading axis L (key/value cache), or None.
        unroll: compile a body for each block where they are few (UNROLLED) and none is
            rematerialised.

    Returns:
        The last block's output, and the blocks' new states stacked.
    """

    def init(key: jax.Array) -> Any:
        first_state = jax.tree.map(lambda s: s[0], state)
        one = lambda k: block.init(k, x, first_state, *shared)["params"]  # noqa: E731
        return jax.vmap(one)(jax.random.split(key, layers))

    if parent.has_variable("params", "layers"):
        params = parent.get_variable("params", "layers")  # perhaps of the used layers alone
    else:
        params = parent.param("layers", init)
    count = layers if used is None else used
    apart = is_unstacked(params)
    # of some parameters all layers may be here, of others the used ones alone
    whole = not apart and any(leaf.shape[0] > count for leaf in jax.tree.leaves(params))

    def body(h: Any, layer: Any) -> tuple[Any, Any]:
        one, layer_state = layer  # its parameters, or its number
        slice_of = lambda w: jax.lax.dynamic_index_in_dim(w, one, 0, False)  # noqa: E731
        layer_params = jax.tree.map(slice_of, params) if whole else one
        h = checkpoint_name(h, LAYER_INPUT)
        out: Any = block.apply({"params": layer_params}, h, layer_state, *shared)
        return out

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    if apart:
        states = []
        for n in range(count):
            x, new = body(x, (layer_of(params, n), jax.tree.map(lambda s, n=n: s[n], state)))
            states.append(new)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *states) if states else None
    # a slice of all used layers would be a copy of nearly the whole tower, once a microbatch
    inputs = jnp.arange(count) if whole else params, state
    # rematerialised layers stay a loop: out of one, the compiler may join what was to be repeated
    turns = count if unroll and remat == "none" and 0 < count <= UNROLLED else 1
    return jax.lax.scan(body, x, inputs, length=count, unroll=turns)
