"""Options of the compiler: chosen by chip, left out where the compiler does not know them."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.common.hardware import CHIPS
from mllm_jax.training import compiler, run_log
from mllm_jax.training.step import Compiled


def test_presets_are_of_chips_that_are_known():
    assert set(compiler.PRESETS) <= set(CHIPS)


@pytest.mark.parametrize("name", sorted(compiler.PRESETS))
def test_options_by_chip(name: str):
    kind = CHIPS[name].kind
    assert compiler.flags_for(kind, 8, "auto") == compiler.PRESETS[name]
    assert compiler.flags_for(kind, 8, "none") == {}
    assert compiler.flags_for(kind, 1, "auto") == {}  # sends nothing
    prefix = "xla_gpu_" if CHIPS[name].platform == "gpu" else "xla_"
    assert all(option.startswith(prefix) for option in compiler.PRESETS[name])


@pytest.mark.parametrize("kind", ["cpu", "Maker's next chip"])
def test_no_options_for_what_was_not_tested(kind: str):
    assert compiler.flags_for(kind, 8, "auto") == {}


def test_an_option_that_the_compiler_does_not_know_is_left_out_and_reported():
    """This machine's own compiler: one option that it knows, one that it does not."""
    lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(3))
    flags = {"xla_of_another_version": True, "xla_cpu_enable_fast_math": False}
    call, refused = compiler.compile_with(lowered, flags)
    np.testing.assert_array_equal(call(jnp.zeros(3)), 1)
    assert refused == ("xla_of_another_version",)
    line = run_log.compiled(Compiled(call, 1.25, {}, refused))
    assert line == (
        "step compiled, 1.2 s; without xla_of_another_version, which this compiler does not know"
    )
    assert run_log.compiled(Compiled(call, 1.25, flags, ())) == "step compiled, 1.2 s"


def test_other_faults_of_the_compiler_are_raised():
    def fails(compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiler.compile_with(SimpleNamespace(compile=fails), {"xla_a": 1})
