"""Writes the files of a finished results folder.

settings.json                              what the numbers depend on
answers.jsonl                              every answer, in the order of the questions
answers.without-images.jsonl               those to questions asked without their images, too
results.json  results.md  results.tex      numbers of every task and language
results.svg   results.html                 a figure; numbers and answers with pictures, a page
scores.json  scores.md                     the same of LLaVA JSON data alone, per language
"""

from collections.abc import Sequence
from pathlib import Path

from mllm_jax.common.folders import write_whole
from mllm_jax.common.json_file import write_json
from mllm_jax.evaluation.answers import Line, write_line
from mllm_jax.evaluation.metrics import summary
from mllm_jax.evaluation.results import figure, page, settings, tables
from mllm_jax.evaluation.results.progress import files
from mllm_jax.evaluation.tasks.base import TableTask

ANSWERS, SETTINGS, SCORES = "answers.jsonl", "settings.json", "scores.json"
WITHOUT_IMAGES = "answers.without-images.jsonl"
BOTH = (ANSWERS, WITHOUT_IMAGES)


def finish(out: Path, results: Sequence[tables.Result], tree: settings.Tree) -> None:
    """Writes everything but settings.json, then removes the answers so far: OUT is finished."""
    write_whole(out / ANSWERS, "".join(write_line(line) for one in results for line in one.lines))
    alone = [line for one in results for line in one.without_images]
    if alone:
        write_whole(out / WITHOUT_IMAGES, "".join(map(write_line, alone)))
    write_whole(out / "results.md", tables.markdown(results))
    write_whole(out / "results.tex", tables.latex(results))
    write_json(out / "results.json", tables.to_json(results))
    if drawn := figure.svg(results):
        write_whole(out / "results.svg", drawn)
    write_whole(out / "results.html", page.page(results, tree))
    free = [one for one in results if one.task.family == "free"]
    if free:
        scores = free_scores(free)
        write_whole(out / "scores.md", summary.table(scores))
        about = {**tree, **_free_settings(free[0].task, tree)}
        write_json(out / SCORES, {"languages": scores, "settings": about})
    for path in files(out):
        path.unlink()


def free_scores(results: Sequence[tables.Result]) -> summary.Scores:
    """Exact match and losses of LLaVA JSON data, see `summary.score`."""
    lines = [scored(line) for one in results for line in one.lines]
    return summary.score(lines, [one.language for one in results])


def scored(line: Line) -> Line:
    """A line with the loss of the truth, None where it was not measured."""
    loss = line["numbers"].get("loss")
    tokens = line["tokens"][0] if line["tokens"] else None
    return {**line, "loss": loss, "tokens": tokens}


def _free_settings(task: TableTask, tree: settings.Tree) -> settings.Tree:
    """Settings that scores.json names at its top."""
    (data,) = task.data.values()
    assert data.path is not None  # its questions were read from there
    decoding = {**tree["decoding"], "max_new_tokens": task.max_new_tokens}
    return {
        "data": data.path,
        "data_sha256": settings.file_digest(Path(data.path)),
        "images": data.images,
        "decoding": decoding,
        "exact_match": "case, final punctuation and white space ignored, Unicode NFC",
    }
