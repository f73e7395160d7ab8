"""Formats what preflight estimated as a table for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

NAMES = {  # field of memory.Memory -> line of the table
    "trainable": "parameters, trained",
    "frozen": "parameters, frozen",
    "moments": "optimizer moments",
    "batch": "batch: tokens, targets, ...",
    "images": "batch: images",
    "copies": "parameters in the compute dtype",
    "gradients": "gradients",
    "activations": "activations kept for backward",
    "logits": "logits of a chunk, and gradient",
    "head": "output table gathered, and gradient",
    "layer": "one layer: weights, working set",
}
HELD = ("trainable", "frozen", "moments", "batch", "images")


def render(result: dict[str, Any]) -> str:
    """The whole page; `result` as `report.estimate` returns it."""
    parts = (_head, _memory, _collectives, _bound, _nearest, _quicker)
    lines = (part(result) for part in parts)
    return "\n\n".join("\n".join(part) for part in lines if part)


def size(count: int | float) -> str:
    """Bytes for reading: 512 B, 3.2 KiB, 1.04 GiB."""
    sign, value = "-" if count < 0 else "", float(abs(count))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            digits = 0 if unit == "B" else 2 if unit == "GiB" else 1
            return f"{sign}{value:,.{digits}f} {unit}"
        value /= 1024
    raise AssertionError


def seconds(value: float) -> str:
    """0.0042 -> "4.20 ms"."""
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _rows(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        (
            indent + row[0].ljust(widths[0]) + "  " + "  ".join(map(str.rjust, row[1:], widths[1:]))
        ).rstrip()
        for row in rows
    ]


def _head(result: dict[str, Any]) -> list[str]:
    chip, setting, mesh = result["chip"], result["setting"], result["setting"]["mesh"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    compiled = result["compile_seconds"]
    count = setting["microbatches"]
    microbatches = f"{count} microbatch" + ("es" if count > 1 else "")
    parameters = setting["parameters"]
    parameters += ", frozen language layers int8" if setting["base"] == "int8" else ""
    context = f" x context {mesh['context']}" if mesh["context"] > 1 else ""
    return [
        f"{result['hardware']}: {result['chips']} x {chip['kind']} ({chip['source']})",
        f"  {result['basis']}" + (f" in {compiled} s" if compiled else ""),
        f"  {versions}",
        f"  mesh data {mesh['data']} x fsdp {mesh['fsdp']} x tensor {mesh['tensor']}{context}; "
        f"{setting['rows']} rows of {setting['length']} tokens and {setting['image_slots']} image "
        f"slots in {microbatches}; {setting['compute']}, parameters "
        f"{parameters}, remat {setting['remat']}, loss chunk {setting['loss_chunk']}",
        *_flags(result),
    ]


def _flags(result: dict[str, Any]) -> Iterator[str]:
    """Options of the compiler: those it was given, and those it does not know."""
    flags, unknown = result["compiler_flags"], result["unknown_compiler_flags"]
    if flags:
        yield f"  compiler flags: {', '.join(f'{name}={value}' for name, value in flags.items())}"
    if unknown:
        yield f"  compiler flags that this compiler does not know: {', '.join(unknown)}"


def _memory(result: dict[str, Any]) -> list[str]:
    memory = result["memory"]
    formula, compiler = memory["formula"], memory["compiler"]
    held = sum(formula[name] for name in HELD)
    compiled_sizes = compiler or {}

    def by_compiler(name: str) -> str:
        return size(compiled_sizes[name]) if name in compiled_sizes else ""

    rows = [("", "by formula", "by compiler")]
    rows += [(NAMES[name], size(formula[name]), "") for name in HELD]
    rows += [("= held through the step", size(held), by_compiler("arguments"))]
    rows += [(NAMES[name], size(formula[name]), "") for name in NAMES if name not in HELD]
    rows += [("= temporary", size(formula["temporary"]), by_compiler("temporary"))]
    if compiler:
        rows += [("outputs that reuse no donated buffer", "", by_compiler("outputs"))]
        rows += [("program", "", by_compiler("code"))]
    total = size(sum(compiled_sizes.values())) if compiler else ""
    rows += [("= total", size(formula["total"]), total)]
    if (peak := memory["peak"]) is not None:
        rows += [("at the same time, at most", "", size(peak))]
    lines = ["memory of one device", *_rows(rows)]
    lines += ["  temporary = the three above + the larger of (logits + table) and (layer)"]
    if memory["refused"]:
        lines += [f"  the compiler refused: {memory['refused']}"]
    if host := memory["host"]:
        lines += [f"  in the host's memory, pinned: {size(host)} for each device"]
    margin = f"{size(abs(memory['margin']))} {'free' if memory['margin'] >= 0 else 'too much'}"
    verdict = "FITS" if memory["fits"] else "DOES NOT FIT"
    if memory["refused"] and memory["margin"] >= 0:
        margin = "the compiler's figure takes precedence"
    return [*lines, f"  {verdict}: {size(memory['total'])} of {size(memory['limit'])}, {margin}"]


def _collectives(result: dict[str, Any]) -> list[str]:
    kinds = result["collectives"]
    if not any(kind["bytes"] for kind in kinds.values()):
        return ["collectives of a step: none"]
    compiled = all("overlapped" in kind for kind in kinds.values())
    columns = ("bytes", "overlapped") if compiled else ("bytes",)
    rows = [("", "operations", "sent by one device", "beside products")[: 2 + len(columns)]]
    rows += [
        (
            *(name, f"{kind['operations']:,}" if kind["operations"] else ""),
            *(size(kind[column]) for column in columns),
        )
        for name, kind in kinds.items()
    ]
    totals = (sum(kind[column] for kind in kinds.values()) for column in columns)
    rows += [("= total", "", *map(size, totals))]
    counted = "every iteration of a loop counted" if result["largest_collectives"] else "by formula"
    lines = [f"collectives of a step, {counted}", *_rows(rows)]
    if result["largest_collectives"]:
        lines += ["  the largest"]
    for one in result["largest_collectives"]:
        shape = one["shape"] if len(one["shape"]) <= 60 else one["shape"][:57] + "..."
        what = f"{one['count']:,} x {one['kind']} {shape} over {one['group']}"
        lines += [f"    {what}: {size(one['sent'])}", f"      {one['where'][-90:]}"]
    return lines


def _bound(result: dict[str, Any]) -> list[str]:
    work, bound = result["work"], result["bound"]
    rows = [
        ("useful FLOPs", f"{work['useful']:.4g}", ""),
        ("computed, with remat", f"{work['done']:.4g}", bound and seconds(bound["compute"])),
        ("memory, one device, at least", size(work["memory"]), bound and seconds(bound["memory"])),
        ("links, one device", size(work["sent"]), bound and seconds(bound["links"])),
    ]
    lines = ["a step, by formula and published rates"]
    if bound is None:
        rows = [row[:2] for row in rows]
        return [*lines, *_rows(rows), "  no rates are published for this device: no bound on time"]
    lines += _rows(rows)
    return [
        *lines,
        f"  no step is faster than {seconds(bound['seconds'])} (bound by {bound['by']}): at most "
        f"{bound['tokens_per_second']:,.0f} tokens/s, MFU {100 * bound['mfu']:.1f} %",
    ]


def _nearest(result: dict[str, Any]) -> list[str]:
    settings = result["nearest"]
    if settings is None:
        return []
    if not settings:
        return ["no setting of remat, rows, microbatches and mesh was found that fits here"]
    return [
        "the nearest settings that fit",
        *(
            f"  {one['flags']}\n    {size(one['total'])}, {size(one['margin'])} free, "
            + ("compiled" if one["compiled"] else "by formula")
            for one in settings
        ),
    ]


def _quicker(result: dict[str, Any]) -> list[str]:
    one = result["quicker"]
    if one is None:
        return []
    basis = "compiled" if one["compiled"] else "by formula"
    return [
        "quicker, and it fits",
        f"  {one['flags']}",
        f"    {size(one['total'])}, {size(one['margin'])} free, {basis}",
        *(f"    {change}" for change in changes(result, one)),
    ]


def changes(result: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[str]:
    """What another setting changes, a line each."""
    bound, other = result["bound"], one["bound"]
    if bound is not None and other["seconds"] != bound["seconds"]:
        yield (
            f"no step is faster than {seconds(other['seconds'])} instead of "
            f"{seconds(bound['seconds'])}: MFU at most {100 * other['mfu']:.1f} % instead of "
            f"{100 * bound['mfu']:.1f} %"
        )
    sent = sum(kind["bytes"] for kind in result["collectives"].values())
    host = result["memory"]["host"]
    for verb, old, new in (("sends", sent, one["sent"]), ("leaves to the host", host, one["host"])):
        if old != new:
            yield f"{verb} {size(new)} instead of {size(old)}"
