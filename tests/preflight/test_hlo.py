"""Collectives counted in programs written by hand: loops in loops, channels spread over fusions."""

import pytest

from mllm_jax.common.errors import RunError
from mllm_jax.preflight import hlo
from mllm_jax.preflight.program import shape_bytes

ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def loop(name: str, turns: int, body: str, step: int = 1) -> str:
    """A `while` as scans become: counter < constant, in the condition."""
    return f"""
%{name}_condition (p: (s32[], f32[8])) -> pred[] {{
  %p = (s32[], f32[8]{{0:T(128)S(1)}}) parameter(0)
  %bound = s32[]{{:T(128)}} constant({turns})
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %bound), direction=LT, metadata={{op_name="a/while"}}
}}

%{name}_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %one = s32[] constant({step})
  %i = s32[] get-tuple-element(%p), index=0
  %next = s32[] add(%i, %one)
{body}
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%next, %x)
}}
"""


def entry(body: str) -> str:
    return f"""
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{{0}}) tuple(%zero, %a)
{body}
  ROOT %r = f32[8]{{0}} copy(%a)
}}
"""


def call(name: str) -> str:
    return (
        f"  %{name}_loop = (s32[], f32[8]{{0}}) while(%start), "
        f"condition=%{name}_condition, body=%{name}_body"
    )


REDUCE = "  %r1 = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add"
GATHER = (
    "  %g1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%w), channel_id=2, "
    "replica_groups=[2,4]<=[8], dimensions={0}"
)


def test_loops_in_loops_are_multiplied():
    inner = loop("layers", 32, "  %w = bf16[16,32]{1,0} convert(%x)\n" + GATHER)
    nested = "  %zero = s32[] constant(0)\n  %start = (s32[], f32[8]{0}) tuple(%zero, %x)\n"
    outer = loop("turns", 16, REDUCE + "\n" + nested + call("layers"))
    found = hlo.collectives(ADD + inner + outer + entry(call("turns")))
    counts = {one.kind: (one.count, one.payload, one.group) for one in found}
    assert counts == {"all-reduce": (16, 32, 4), "all-gather": (512, 64 * 32 * 2, 4)}
    assert hlo.summary(found) == {
        "all-gather": {"operations": 512, "bytes": 512 * 4096 * 3 // 4, "overlapped": 0},
        "all-reduce": {"operations": 16, "bytes": 16 * 32 * 2 * 3 // 4, "overlapped": 0},
    }


KERNEL = """  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="a/pallas_call"}"""


def test_a_kernels_metadata_may_hold_line_breaks():
    found = hlo.collectives(ADD + loop("layers", 3, KERNEL + "\n" + REDUCE) + entry(call("layers")))
    assert [(one.kind, one.count) for one in found] == [("all-reduce", 3)]


def test_the_compilers_note_of_the_turns_counts_first():
    noted = call("layers") + ', backend_config={"known_trip_count":{"n":"7"}}'
    found = hlo.collectives(ADD + loop("layers", 3, REDUCE) + entry(noted))
    assert [one.count for one in found] == [7]


def test_a_bound_that_travels_with_the_loop():
    """The bound stands in what the loop starts with, behind a copy; the counter starts at two."""
    text = ADD + loop("layers", 0, REDUCE).replace(
        "%bound = s32[]{:T(128)} constant(0)", "%bound = s32[] get-tuple-element(%p), index=1"
    )
    start = (
        "  %two = s32[] constant(2)\n  %ten = s32[] constant(10)\n  %copied = s32[] copy(%ten)\n"
        "  %start = (s32[], s32[]) tuple(%two, %copied)\n"
    )
    program = entry(call("layers")).replace(
        "  %start = (s32[], f32[8]{0}) tuple(%zero, %a)\n", start
    )
    assert [one.count for one in hlo.collectives(text + program)] == [8]


@pytest.mark.parametrize(("bound", "step", "turns"), [(8, 2, 4), (15, 2, 8), (8, 1, 8), (0, 1, 0)])
def test_a_loop_that_the_compiler_unrolled(bound: int, step: int, turns: int):
    text = ADD + loop("layers", bound, REDUCE, step) + entry(call("layers"))
    assert [one.count for one in hlo.collectives(text)] == [turns]


def test_a_counter_that_rises_in_two_steps():
    twice = loop("layers", 8, REDUCE).replace(
        "%next = s32[] add(%i, %one)",
        "%half = s32[] add(%i, %one)\n  %next = s32[] add(%one, %half)",
    )
    assert [one.count for one in hlo.collectives(ADD + twice + entry(call("layers")))] == [4]


def test_one_channel_that_goes_on_through_a_loop_counts_where_it_begins():
    """As libtpu hides the output table's gathering behind the layers."""
    text = loop("layers", 32, GATHER.replace("%w", "%x")) + entry(
        GATHER.replace("%w", "%a") + "\n" + call("layers")
    )
    assert [one.count for one in hlo.collectives(text)] == [1]


def test_a_comparison_in_a_fusion_of_its_own():
    text = loop("layers", 5, REDUCE)
    fused = """
%wrapped (p0: s32[], p1: s32[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%p0, %p1), direction=LT
}
"""
    line = "ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT"
    text = text.replace(line, "ROOT %f = pred[] fusion(%i, %bound), kind=kLoop, calls=%wrapped")
    assert [one.count for one in hlo.collectives(ADD + fused + text + entry(call("layers")))] == [5]


def test_unknown_turns_are_refused_only_where_they_matter():
    unread = loop("layers", 5, REDUCE).replace("direction=LT", "direction=NE")
    with pytest.raises(RunError, match="layers_loop: a loop with collectives whose iterations"):
        hlo.collectives(ADD + unread + entry(call("layers")))
    assert hlo.collectives(unread.replace(REDUCE, "") + entry(call("layers"))) == []


def test_one_channel_over_several_fusions_counts_once():
    """As libtpu writes it: begun in one fusion, gone on with beside a product, ended in a third."""
    fusions, calls = "", ""
    for part in ("begin", "along", "end"):
        body = GATHER.replace("%g1", f"%g_{part}").replace("%w", "%p0")
        fusions += f"\n%{part} (p0: bf16[16,32]) -> bf16[64,32] {{\n"
        fusions += "  %p0 = bf16[16,32]{1,0} parameter(0)\n" + body + "\n}\n"
        calls += f"  %{part}_call = bf16[64,32] fusion(%x), kind=kCustom, calls=%{part}\n"
    found = hlo.collectives(fusions + loop("layers", 3, calls) + entry(call("layers")))
    assert [(one.kind, one.count) for one in found] == [("all-gather", 3)]


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    text = (
        ADD
        + """
%all-reduce-scatter.6.clone (input: f32[512,64], more: bf16[8]) -> f32[512,16] {
  %input = f32[512,64]{0,1:T(8,128)S(1)} parameter(0)
  %more = bf16[8]{0} parameter(1)
  %all = (f32[512,64]{0,1}, /*index=1*/bf16[8]{0}) all-reduce(%input, %more), REST
  ROOT %slice = f32[512,16]{0,1} dynamic-slice(%all), dynamic_slice_sizes={512,16}
}
"""
    ).replace("REST", "channel_id=28, replica_groups={{0,1,2,3}}, to_apply=%add")
    fusion = "  %f = f32[512,16] fusion(%a, %a), calls=%all-reduce-scatter.6.clone"
    fusion += ', metadata={op_name="here"}'
    (one,) = hlo.collectives(text + entry(fusion))
    assert (one.kind, one.payload, one.where) == ("reduce-scatter", 512 * 64 * 4 + 16, "here")
    assert one.shape == "f32[512,64], bf16[8]"
    assert one.sent == (512 * 64 * 4 + 16) * 3 // 4


def test_begun_and_ended_apart():
    """GPU programs: the -start line carries inputs and results, the -done line is not counted."""
    lines = """  %s = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
  %d = f32[32]{0} all-gather-done(%s)
  %w = ((f32[8]{0}), f32[2]{0}) async-start(%a), calls=%wrapped
  %e = f32[2]{0} async-done(%w), calls=%wrapped
"""  # noqa: E501
    wrapped = """
%wrapped (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
    found = {one.kind: one.payload for one in hlo.collectives(ADD + wrapped + entry(lines))}
    assert found == {"all-gather": 128, "reduce-scatter": 32}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=256] {'axis_0'}", 256),
        (
            "replica_groups=mesh['a'=1,'b'=16,'c'=4], device_ids=([4,16]T(1,0)) {'b'}, x={1}",
            16,
        ),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=8] {'a', 'c'}", 16),
    ],
)
def test_how_many_take_part(groups: str, size: int):
    line = f"  %r1 = f32[8]{{0}} all-reduce(%a), channel_id=1, {groups}, to_apply=%add"
    (one,) = hlo.collectives(ADD + entry(line))
    assert one.group == size
    assert one.sent == round(32 * 2 * (size - 1) / size)


def test_a_permutation_sends_what_it_has():
    line = (
        "  %p = f32[8]{0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}"
    )
    (one,) = hlo.collectives(entry(line))
    assert (one.kind, one.sent) == ("collective-permute", 32)


def test_permutes_of_a_product_share_a_channel_and_are_several():
    """As libtpu scatters a product's sum: both ways round, and again behind the loop."""
    line = "  %{0} = f32[8]{{0}} collective-permute(%{1}), channel_id=26, "
    line += "source_target_pairs={{{{{2}}}}}\n"
    there, back = "{0,1},{1,0}", "{1,0},{0,1}"
    inside = line.format("p1", "x", there) + line.format("p2", "x", back)
    behind = line.format("p3", "a", there)
    program = loop("scatter", 7, inside) + entry(call("scatter") + "\n" + behind)
    found = hlo.collectives(program)
    assert sorted(one.count for one in found) == [1, 7, 7]
    assert hlo.summary(found)["collective-permute"]["bytes"] == 15 * 32


def test_bytes_of_shapes():
    assert shape_bytes(
        "(f32[4,8]{1,0:T(8,128)}, /*index=1*/bf16[2]{0}, s32[], u8[3], pred[5])"
    ) == [
        128,
        4,
        4,
        3,
        5,
    ]


def test_sums_of_shard_map_share_a_channel_and_are_several():
    line = (
        "  %{0} = {1} all-reduce(%{2}), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%add\n"
    )
    program = ADD + entry(
        line.format("one", "f32[8]{0}", "a") + line.format("two", "f32[8]{0}", "one")
    )
    assert [one.count for one in hlo.collectives(program)] == [1, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [("<all>", "in a way that is not known"), ("{}", "does not say which devices take part")],
)
def test_groups_that_cannot_be_read_are_refused(groups: str, message: str):
    text = ADD + entry(REDUCE.replace("{{0,1,2,3}}", groups))
    with pytest.raises(RunError, match=message):
        hlo.collectives(text)
