"""Writes what `corpus decontaminate` finds: pairs, ids to leave out, a page, the data without them.

OUT/report.json      counts, by evaluation set
OUT/pairs.jsonl      a line a pair: the training record, the evaluation record
OUT/leave_out.json   rows (from 0) and ids of the training records
OUT/refused.jsonl    training rows that could not be read, where there are any
OUT/report.html      the pairs side by side
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import require
from mllm_jax.common.folders import check_file, check_new, new_folder, whole_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.corpus import overlap, pictures
from mllm_jax.corpus.contents import DataSet, open_data_set
from mllm_jax.corpus.decontaminate import Contamination, Counts, Pair, decontaminate
from mllm_jax.corpus.decontamination_view import set_rows, view_of
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.report.decontamination import decontamination_page

CACHE = ".hashes"  # behind the name of a data set: the folder of its picture hashes


def run(
    data_path: Path,
    task_paths: Sequence[Path],
    *,
    images: Path | None = None,
    task_images: Path | None = None,
    out: Path | None = None,
    clean: Path | None = None,
    cache: Path | None = None,
    words: int = overlap.WORDS,
    workers: int = 1,
) -> Contamination:
    """Compares, prints the table, and writes the files that are asked for.

    Args:
        data_path: the training data.
        task_paths: evaluation sets.
        images, task_images: where image paths start; None: in each file's own folder.
        out: a new folder for the files above.
        clean: gets the training data without the records that both have; JSON and JSONL only.
        cache: folder of the picture hashes of all sets; None: beside each.
        words: of a run that two texts must share.
        workers: processes.

    Raises:
        ConfigError: a file cannot be read or written; an evaluation record cannot be used.
    """
    data = open_data_set(data_path, images)
    tasks = [open_data_set(path, task_images) for path in task_paths]
    twice = {path.resolve() for path in task_paths} & {data_path.resolve()}
    require(not twice, f"{data_path}: is both the data and what it is compared with")
    if out is not None:
        check_new(out)
    if clean is not None:
        _check_clean(data, clean)
    caches = [_cache(one.path, cache) for one in (data, *tasks)]
    result = decontaminate(data, tasks, caches, words, workers)
    if out is not None:
        with new_folder(out) as folder:
            _write(folder, data, tasks, result, words, clean)
    if clean is not None:
        _write_clean(data, clean, set(result.rows))
    print(_described(result, out, clean), end="", flush=True)
    return result


def _cache(path: Path, folder: Path | None) -> Path:
    """Beside the data, or in one folder under a name that differs by path."""
    if folder is None:
        return path.with_name(path.name + CACHE)
    return folder / "".join(c if c.isalnum() or c in "-_." else "_" for c in str(path.resolve()))


def _check_clean(data: DataSet, clean: Path) -> None:
    suffix = data.path.suffix.lower()
    require(
        isinstance(data.source, JsonSource),
        f"--clean {clean}: only JSON and JSONL files are written, and {data.path} is {data.kind}; "
        "leave its rows out by leave_out.json (--out)",
    )
    require(
        clean.suffix.lower() == suffix,
        f"--clean {clean}: expected a file named {suffix}, as {data.path}",
    )
    require(clean.resolve() != data.path.resolve(), f"--clean {clean}: is the data itself")
    check_file(clean)


def _write_clean(data: DataSet, clean: Path, rows: set[int]) -> None:
    """Rows byte for byte as they are, without those that are left out."""
    source = data.source
    assert isinstance(source, JsonSource)
    remaining = (source.raw(row) for row in range(len(source)) if row not in rows)
    is_list = data.path.suffix.lower() == ".json"
    with whole_file(clean) as beside, beside.open("wb") as file:
        for number, raw in enumerate(remaining):
            if is_list:
                file.write(b",\n" if number else b"[\n")
            file.write(raw if is_list else raw.rstrip(b"\r") + b"\n")
        if is_list:
            file.write(b"\n]\n" if len(source) > len(rows) else b"[]\n")


# ----------------------------------------------------------------------------------------- files


def _write(
    folder: Path,
    data: DataSet,
    tasks: Sequence[DataSet],
    result: Contamination,
    words: int,
    clean: Path | None,
) -> None:
    write_json(folder / "report.json", _tree(result, words))
    _write_lines(folder / "pairs.jsonl", map(_pair_tree, result.pairs))
    ids = {pair.data.row: pair.data.id for pair in result.pairs}
    rows = result.rows
    write_json(folder / "leave_out.json", {"rows": rows, "ids": [ids[row] for row in rows]})
    if result.data.refused:
        lines = (fault._asdict() for fault in result.data.refused)
        _write_lines(folder / "refused.jsonl", lines)
    page = decontamination_page(view_of(data, tasks, result, words, clean))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _write_lines(path: Path, trees: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for tree in trees:
            file.write(json.dumps(tree, ensure_ascii=False) + "\n")


def _pair_tree(pair: Pair) -> dict[str, Any]:
    more = {"runs": pair.runs}
    if pair.kind == "image":
        more = {"data_image": pair.data_image, "task_image": pair.task_image}
    return {
        "kind": pair.kind,
        "data": pair.data._asdict(),
        "task": pair.task._asdict(),
        **more,
    }


def _tree(result: Contamination, words: int) -> dict[str, Any]:
    return {
        "data": _counts(result.data),
        "sets": [
            _counts(task)
            | {"image_pairs": row.image_pairs, "text_pairs": row.text_pairs, "rows": row.rows}
            for task, row in zip(result.tasks, set_rows(result), strict=True)
        ],
        "settings": {
            "distance": pictures.DISTANCE,
            "crop": pictures.CROP,
            "residual": pictures.SAME,
            "words": words,
        },
        "candidates": result.candidates,
        "prompts": result.prompts,
        "rows": len(result.rows),
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return counts._asdict() | {"refused": len(counts.refused)}


def _described(result: Contamination, out: Path | None, clean: Path | None) -> str:
    head = ("evaluation set", "records", "images", "texts", "same image", "same text", "rows")
    table = markdown_table(
        head, [(row.name, *(f"{n:,}" for n in row[1:])) for row in set_rows(result)]
    )
    data, left_out = result.data, len(result.rows)
    lines = [
        f"{data.file}: {data.records:,} records, {data.images:,} images, {data.texts:,} texts; "
        f"{left_out:,} to leave out",
    ]
    for one in (data, *result.tasks):
        if one.images == 0:
            lines.append(f"{one.file}: no image in any column; only its texts were compared")
    if data.refused:
        lines.append(f"{len(data.refused):,} rows could not be read, and were not compared")
    if result.prompts:
        lines.append(
            f"{result.prompts:,} runs of words are in more than {overlap.PROMPT_RECORDS} records "
            f"and {100 * overlap.PROMPT_SHARE:g} % of a set: prompts, not compared"
        )
    if out is not None:
        lines.append(f"the pairs side by side: {out / 'report.html'}")
    if clean is not None:
        lines.append(f"the data without them: {clean}")
    return table + "\n" + "".join(f"{line}\n" for line in lines)
