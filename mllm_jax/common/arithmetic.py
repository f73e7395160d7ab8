"""Multiplies and adds up at one precision for the whole package: einsum, biases, table rows.

Products of float32 arrays are float32 products: at JAX's default precision GPUs would round their
factors to 10 bits (TF32) and TPUs to 8 (bfloat16). Products of bfloat16 arrays are exact as they
are, and add up in float32.

A parameter that every row uses (a bias, a position's vector, a word's) gets the sum of all rows'
gradients. A sum of thousands of numbers must not be added up in bfloat16, whose 8 bits lose every
addend below 1/256 of the sum: the gradient of a word that occurs 32,768 times would be 256 times
that of one. So `add_shared` and `take_rows` are given parameters as they are held, cast them
themselves, and add up their gradients in float32, which is rounded to the parameter's dtype once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def einsum(equation: str, *operands: jax.Array, out: Any = None) -> jax.Array:
    """jnp.einsum at the precision that the operands' dtype asks for, see the top of this file.

    Args:
        equation, operands: as jnp.einsum's.
        out: dtype of the result and, where devices share the sum, of what crosses between them;
            default the operands'.
    """
    return jnp.einsum(
        equation, *operands, precision=precision(*operands), preferred_element_type=out
    )


def precision(*operands: jax.Array) -> jax.lax.Precision | None:
    """HIGHEST for float32 operands; None, the default, for others."""
    exact = all(x.dtype == jnp.float32 for x in operands)
    return jax.lax.Precision.HIGHEST if exact else None


def add_shared(x: Float[Array, "..."], shared: Float[Array, "..."]) -> Float[Array, "..."]:
    """x + shared, which is cast to x's dtype and repeated along x's leading dimensions.

    Args:
        x: of any dtype.
        shared: a parameter, of any dtype; its shape is that of x's last dimensions.
    """
    return _add_shared((shared.ndim, shared.dtype), x, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add_shared(kind: tuple[int, Any], x: Any, shared: Any) -> Any:
    leading = (1,) * (x.ndim - kind[0])
    return x + shared.astype(x.dtype).reshape(leading + shared.shape)


def _add_shared_forward(kind: tuple[int, Any], x: Any, shared: Any) -> tuple[Any, None]:
    return _add_shared(kind, x, shared), None


def _add_shared_backward(kind: tuple[int, Any], _: None, dy: Any) -> tuple[Any, Any]:
    dimensions, dtype = kind
    leading = tuple(range(dy.ndim - dimensions))
    return dy, jnp.sum(dy, axis=leading, dtype=jnp.float32).astype(dtype)


_add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def take_rows(
    table: Float[Array, "V D"], index: Int[Array, "..."], dtype: Any
) -> Float[Array, "... D"]:
    """Rows of a table, taken first and cast after: the table itself is never copied.

    Args:
        table: of any dtype.
        index: each in 0..V-1.
        dtype: of the result.
    """
    return _take_rows((table.shape[0], table.dtype, jnp.dtype(dtype)), table, index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_rows(kind: tuple[int, Any, Any], table: Any, index: Any) -> Any:
    return jnp.take(table, index, axis=0).astype(kind[2])


def _take_rows_forward(kind: tuple[int, Any, Any], table: Any, index: Any) -> tuple[Any, Any]:
    return _take_rows(kind, table, index), index


def _take_rows_backward(kind: tuple[int, Any, Any], index: Any, dy: Any) -> tuple[Any, None]:
    rows, dtype, _ = kind
    return scattered(dy, index, rows, jnp.float32).astype(dtype), None


_take_rows.defvjp(_take_rows_forward, _take_rows_backward)


def scattered(
    values: Float[Array, "... D"], index: Int[Array, "..."], rows: int, dtype: Any
) -> Float[Array, "rows D"]:
    """The gradient of `take_rows`: row r is the sum of the values of index r, in `dtype`."""
    empty = jnp.zeros((rows, values.shape[-1]), dtype)
    return empty.at[index].add(values.astype(dtype))
