"""The same program with every sum exact: what a gradient is when nothing is lost while adding up.

`exact(f)` computes f operation by operation as JAX traces it, all values in the dtypes that f gives
them; but a sum of bfloat16 numbers (a reduction, a product's, what is scattered onto one place) is
added up in float32 and rounded once, whatever the program asks for.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

FLOATS = (jnp.bfloat16, jnp.float32)
SUMS = ("reduce_sum", "scatter-add", "cumsum", "psum", "reduce_scatter", "psum_scatter")


def exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, with exact sums."""

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(
            jax.tree.structure(shape), _evaluate(closed, jax.tree.leaves(args))
        )

    return run


def equations(closed: Any) -> Iterator[Any]:
    """Every equation of a program, those of its inner programs too."""
    for equation in closed.eqns:
        yield equation
        for program in inner(equation.params):
            yield from equations(program)


def inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an equation holds."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _evaluate(closed: Any, args: Any) -> list[Any]:
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def read(x: Any) -> Any:
        return x.val if hasattr(x, "val") else values[x]

    for equation in closed.jaxpr.eqns:
        outs = _equation(equation, [read(x) for x in equation.invars])
        values |= dict(zip(equation.outvars, outs, strict=True))
    return [read(x) for x in closed.jaxpr.outvars]


def _equation(equation: Any, args: list[Any]) -> list[Any]:
    params, name = equation.params, equation.primitive.name
    if name == "scan":
        return _scan(params, args)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params and name not in ("while", "cond"):
            inner = params[key]
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return _evaluate(closed, args)
    dtypes = [x.aval.dtype for x in equation.outvars]
    if name in SUMS and dtypes == [jnp.bfloat16]:
        args = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in args]
    if name == "dot_general" and dtypes == [jnp.bfloat16]:
        params = {**params, "preferred_element_type": jnp.dtype("float32")}
    outs = equation.primitive.bind(*args, **params)
    outs = outs if equation.primitive.multiple_results else [outs]
    pairs = zip(outs, dtypes, strict=True)
    return [x.astype(dtype) if dtype in FLOATS else x for x, dtype in pairs]


def _scan(params: dict[str, Any], args: list[Any]) -> list[Any]:
    held, carried = params["num_consts"], params["num_consts"] + params["num_carry"]

    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        outs = _evaluate(params["jaxpr"], [*args[:held], *carry, *xs])
        return outs[: params["num_carry"]], outs[params["num_carry"] :]

    carry, ys = jax.lax.scan(
        body,
        args[held:carried],
        args[carried:],
        length=params["length"],
        reverse=params["reverse"],
    )
    return [*carry, *ys]
