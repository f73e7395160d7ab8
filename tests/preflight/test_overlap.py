"""Which collectives have products between start and end, in programs written by hand."""

import pytest

from mllm_jax.preflight import hlo
from tests.preflight.test_hlo import ADD, call, entry, loop

GROUPS = "replica_groups={{0,1,2,3}}"
DOT = "  %dot = f32[8]{0} dot(%a, %a), lhs_contracting_dims={0}"
KERNEL = '  %kernel = f32[8]{0} custom-call(%a), custom_call_target="TARGET", metadata={}'
START = (
    f"  %s = (f32[8]{{0}}, f32[32]{{0}}) all-gather-start(%a), channel_id=3, {GROUPS}, "
    "dimensions={0}"
)
WAITED_FOR = START.replace("-start", "").replace("(f32[8]{0}, f32[32]{0})", "f32[32]{0}")
DONE = "  %d = f32[32]{0} all-gather-done(%s)"


def overlapped(text: str) -> list[bool]:
    return [one.overlapped for one in hlo.collectives(text)]


@pytest.mark.parametrize(
    ("lines", "beside"),
    [
        ((START, DOT, DONE), True),
        ((DOT, START, DONE), False),
        ((START, DONE, DOT), False),
        ((START, "  %c = f32[8]{0} copy(%a)", DONE), False),
        ((START, KERNEL.replace("TARGET", "tpu_custom_call"), DONE), True),
        ((START, KERNEL.replace("TARGET", "__cublas$gemm"), DONE), True),
        ((START, KERNEL.replace("TARGET", "Sharding"), DONE), False),
        ((START, DOT), True),  # it ends behind the computation
        (
            (START.replace("-start", "").replace("(f32[8]{0}, f32[32]{0})", "f32[32]{0}"), DOT),
            False,
        ),
    ],
)
def test_a_product_between_start_and_end(lines: tuple[str, ...], beside: bool):
    assert overlapped(entry("\n".join(lines))) == [beside]


def test_bytes_of_the_summary():
    beside = "\n".join((START, DOT, DONE))
    alone = "\n".join((START, DONE)).replace("%s", "%s2").replace("%d", "%d2")
    alone = alone.replace("channel_id=3", "channel_id=4")
    summary = hlo.summary(hlo.collectives(entry(beside + "\n" + alone)))
    assert summary == {"all-gather": {"operations": 2, "bytes": 192, "overlapped": 96}}


@pytest.mark.parametrize("inside", [DOT.replace("%a", "%x"), ""])
def test_a_loop_between_start_and_end_counts_for_what_it_computes(inside: str):
    lines = "\n".join((START, call("layers"), DONE))
    assert overlapped(ADD + loop("layers", 3, inside) + entry(lines)) == [bool(inside)]


@pytest.mark.parametrize("between", [DOT, ""])
def test_what_is_wrapped_in_async_start(between: str):
    wrapped = f"""
%wrapped (p: f32[8]) -> f32[2] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %rs = f32[2]{{0}} reduce-scatter(%p), channel_id=4, {GROUPS}, to_apply=%add
}}
"""
    begin = "  %w = ((f32[8]{0}), f32[2]{0}) async-start(%a), calls=%wrapped"
    update = "  %u = ((f32[8]{0}), f32[2]{0}) async-update(%w)"
    end = "  %e = f32[2]{0} async-done(%u), calls=%wrapped"
    lines = "\n".join((begin, update, between, end))
    assert overlapped(ADD + wrapped + entry(lines)) == [bool(between)]


@pytest.mark.parametrize("product", [True, False])
def test_one_channel_over_several_fusions(product: bool):
    """As libtpu writes it: start, progress beside a product, end."""
    gather = f"  %g = bf16[64,32]{{1,0}} all-gather(%p), channel_id=2, {GROUPS}, dimensions={{0}}"
    convolution = "  %v = bf16[64,32]{1,0} convolution(%p, %p), dim_labels=bf_io->bf"
    fusions, lines = "", ""
    for part in ("begin", "along", "end"):
        more = "\n" + convolution if product and part == "along" else ""
        fusions += f"\n%{part} (p: bf16[16,32]) -> bf16[64,32] {{\n"
        fusions += f"  %p = bf16[16,32]{{1,0}} parameter(0)\n{gather}{more}\n}}\n"
        lines += f"  %{part}_fusion = bf16[64,32] fusion(%x), kind=kCustom, calls=%{part}\n"
    assert overlapped(fusions + loop("layers", 3, lines) + entry(call("layers"))) == [product]
