"""Kernels are tried where they are to run; here they are interpreted, and broken on purpose."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.models.kernels import blocks, dense, select, splash, triton, verify
from mllm_jax.models.kernels.protocol import Backend, Call, refuses_nothing
from mllm_jax.models.kernels.select import Selection

PACKED = Call(4, 300, 4, 2, 64, "bfloat16", causal=True, packed=True)
WHOLE = Call(2, 41, 2, 2, 64, "bfloat16", causal=False, packed=False)
SHARED = PACKED._replace(length=256, parts=2)


def standing_in(monkeypatch: pytest.MonkeyPatch, run: Any, run_part: Any = None) -> Selection:
    """`cudnn` as a run on a GPU would have it, but computed by `run`."""
    backend = Backend(run, refuses_nothing, dense.score_bytes, run_part=run_part, kernel=True)
    monkeypatch.setitem(select.BACKENDS, "cudnn", backend)
    return Selection("cudnn")


@pytest.mark.parametrize("call", [PACKED, PACKED._replace(segments=2), WHOLE])
@pytest.mark.parametrize("kernel", [triton, splash])
def test_what_bfloat16_makes_is_far_from_the_limit(monkeypatch, kernel, call):
    selection = standing_in(monkeypatch, functools.partial(kernel.attend, interpret=True))
    error = verify.verify(selection, call)
    assert error is not None and 0.001 < error < 0.2 * verify.LIMIT


@pytest.mark.slow
def test_queries_of_a_part_of_a_row(monkeypatch):
    part = functools.partial(splash.attend_part, interpret=True)
    error = verify.verify(standing_in(monkeypatch, splash.attend, part), SHARED)
    assert error is not None and 0.001 < error < 0.2 * verify.LIMIT


def blind(q, k, v, segments, *, causal):
    """Sees other segments."""
    return blocks.attend(q, k, v, jnp.ones_like(segments), causal=causal)


def other_heads(q, k, v, segments, *, causal):
    """Reads the keys of another head, as cuDNN's offsets did."""
    return blocks.attend(q, jnp.roll(k, 1, axis=2), v, segments, causal=causal)


def one_position_off(q, k, v, segments, *, causal):
    """Loses the last key of each segment that is seen."""
    gone = jnp.roll(segments, -1, axis=1) != segments
    return blocks.attend(q, jnp.where(gone[:, :, None, None], -8, k), v, segments, causal=causal)


@jax.custom_vjp
def halved(x):
    return x


halved.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


def half_a_gradient(q, k, v, segments, *, causal):
    return blocks.attend(q, k, halved(v), segments, causal=causal)


def not_a_number(q, k, v, segments, *, causal):
    out = blocks.attend(q, k, v, segments, causal=causal)
    return out.at[0, 3, 0, 0].set(jnp.nan)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (blind, "output"),
        (other_heads, "output"),
        (one_position_off, "output"),
        (half_a_gradient, "gradient of values"),
        (not_a_number, "output"),
    ],
)
def test_a_wrong_kernel_ends_the_run_in_one_line(monkeypatch, wrong, what):
    selection = standing_in(monkeypatch, wrong)
    message = (
        f"^compute.attention=cudnn: on this cpu the {what} is off dense attention by "
        r"[0-9.inf]+ \(at most 0.02\): the kernel is wrong here; choose blocks$"
    )
    with pytest.raises(ConfigError, match=message):
        verify.verify(selection, PACKED)


def test_a_kernel_that_fails_says_why(monkeypatch):
    def fails(q, k, v, segments, *, causal):
        raise NotImplementedError("no such instruction\nand a page of registers")

    selection = standing_in(monkeypatch, fails)._replace(name="auto")
    monkeypatch.setitem(select.PREFERRED, "cpu", ("cudnn",))
    message = (
        r"^compute.attention=auto \(cudnn\) fails on this cpu: NotImplementedError: "
        "no such instruction; choose blocks$"
    )
    with pytest.raises(ConfigError, match=message):
        verify.verify(selection, PACKED._replace(length=select.SHORT + 1))


def test_what_is_no_kernel_is_not_tried(monkeypatch):
    monkeypatch.setattr(verify, "_rows", lambda call: pytest.fail("tried"))
    for name in ("auto", "dense", "blocks", "loop"):
        assert verify.verify(Selection(name), PACKED) is None


def test_every_kernel_of_a_package_is_tried():
    kernels = {name for name, backend in select.BACKENDS.items() if backend.kernel}
    assert kernels == {"splash", "cudnn", "tokamax", "triton"}


def test_long_rows_are_cut_and_short_ones_are_not(monkeypatch):
    tried = []
    monkeypatch.setattr(verify, "_tried", lambda *given: tried.append(given) or 0.0)
    selection = standing_in(monkeypatch, dense.attend, dense.attend_part)
    for call in (PACKED._replace(length=n) for n in (40, 1024, 8192)):
        verify.verify(selection, call)
    verify.verify(selection, SHARED._replace(length=4096, parts=4))
    calls = [call for *_, call in tried]
    assert [(call.rows, call.length) for call in calls] == [(2, 40), (2, 1024), (2, 1024), (1, 512)]
    shared = verify._rows(calls[-1])
    assert (shared.q.shape[1], shared.k.shape[1]) == (512, 2048)
    assert shared.queries is not None
    assert shared.queries.positions[jnp.array([0, 255, 256, 511])].tolist() == [0, 255, 1792, 2047]


def test_what_is_tried_is_what_was_chosen_for_all_rows(monkeypatch):
    """cuDNN refuses very many rows, and would not refuse the few that are tried."""

    def refuses(call: Call, device: Any, /) -> str | None:
        return "needs fewer rows" if call.rows > 2 else None

    wrong = Backend(blind, refuses, dense.score_bytes, kernel=True)
    right = Backend(dense.attend, refuses_nothing, dense.score_bytes, kernel=True)
    monkeypatch.setitem(select.BACKENDS, "cudnn", wrong)
    monkeypatch.setitem(select.BACKENDS, "triton", right)
    monkeypatch.setitem(select.PREFERRED, "cpu", ("cudnn", "triton"))
    call = PACKED._replace(length=select.SHORT + 1)
    assert verify.verify(Selection("auto"), call) is not None
    with pytest.raises(ConfigError, match=r"auto \(cudnn\)"):
        verify.verify(Selection("auto"), call._replace(rows=2))
