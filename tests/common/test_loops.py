"""A loop whose length is data: its bound is read off the compiled program."""

import re

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.common.loops import at_most, bound


def test_the_bound_is_in_the_compiled_program():
    def counted(n):
        with at_most(17):
            return jax.lax.fori_loop(0, n, lambda i, x: x * 1.5 + i, jnp.float32(1))

    text = jax.jit(counted).lower(jnp.int32(3)).compile().as_text() or ""
    (line,) = [line for line in text.splitlines() if " while(" in line]
    (name,) = re.findall(r'op_name="([^"]*)"', line)
    assert bound(name) == 17


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("jit(f)/at_most_8_turns/while", 8),
        ("jit(f)/at_most_8_turns/while/body/add", None),  # inside, not the loop
        ("jit(f)/at_most_8_turns/scan/while", None),  # a loop of its own in the scope
        ("jit(f)/while", None),
        ("while", None),
        ("", None),
    ],
)
def test_only_the_loop_itself_has_it(name, turns):
    assert bound(name) == turns
