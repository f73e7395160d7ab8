"""Writes the task files for the harnesses: one for each of our tasks in Basque and in Italian.

    python -m mllm_jax.evaluation.harness.task_files

The files name tasks, and functions of `documents`: prompts and scores stay in one place.
"""

from collections.abc import Iterator
from pathlib import Path

from mllm_jax.evaluation.languages import language as table
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.registry import load_task, task_names

FOLDER = Path(__file__).with_name("tasks")
LANGUAGES = ("eu", "it")
PREFIX = "mllm_jax_"  # both harnesses have tasks of the same names
FUNCTIONS = "mllm_jax.evaluation.harness.documents"
VERSION = "1.0"
# family -> metrics that do not depend on the categories of the data; a lower one is better: LOWER
METRICS: dict[str, tuple[str, ...]] = {
    "yes_no": ("accuracy", "precision", "recall", "f1", "yes_share", "unparseable"),
    "choices": ("accuracy", "unparseable"),
    "short_answer": ("exact_match", "exact_match_ndino", "unparseable"),
    "ocr": ("cer", "wer", "cer_mean", "wer_mean", "unparseable"),
}
SOFT = ("accuracy", "unparseable")  # short answers with ten truths
LOWER = ("unparseable", "cer", "wer", "cer_mean", "wer_mean")

LMMS_COMMON = f"""\
# What all tasks of this folder say. Rows name a task and a language; `documents` makes questions of
# them, from data that `mllm-jax prepare --task NAME` has fetched.
tag: mllm_jax
dataset_path: json
process_docs: !function {FUNCTIONS}.expanded
test_split: test
output_type: generate_until
doc_to_visual: !function {FUNCTIONS}.visuals
doc_to_text: !function {FUNCTIONS}.text
doc_to_messages: !function {FUNCTIONS}.messages
doc_to_target: truth
process_results: !function {FUNCTIONS}.results
# standard errors, with questions about one image counted together
score_key: mark
cluster_key: group
metadata: {{version: {VERSION}}}
"""
LM_COMMON = f"""\
# What all tasks of this folder say. Documents come from data that `mllm-jax prepare --task NAME`
# has fetched; lm-eval itself scores the options.
tag: mllm_jax
custom_dataset: !function {FUNCTIONS}.data_set
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: options
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def files() -> Iterator[tuple[Path, str]]:
    """(path, text) of every file."""
    yield FOLDER / "lmms_eval/common", LMMS_COMMON
    yield FOLDER / "lm_eval/common", LM_COMMON
    for name in task_names():
        task = load_task(name)
        for language in LANGUAGES:
            if language in task.languages and task.own_languages is False:
                yield from _of_task(task, language)


def _of_task(task: TableTask, language: str) -> Iterator[tuple[Path, str]]:
    name = f"{task.name}_{language}"
    head = (
        f"# {task.name} in {table(language).name}: prompts and scores are those of its own file\n"
    )
    head += f"task: {PREFIX}{name}\ninclude: common\n"
    if task.kind == "choose":
        names = f"{{task: {task.name}, language: {language}, version: {VERSION}}}"
        delimiter = f'target_delimiter: "{task.delimiter}"\n'  # type: ignore[attr-defined]
        yield FOLDER / f"lm_eval/{name}.yaml", f"{head}{delimiter}metadata: {names}\n"
    elif task.kind == "generate":
        folder = FOLDER / "lmms_eval"
        yield folder / f"{name}.yaml", head + _generation(task, name)
        yield folder / f"{name}.jsonl", f'{{"task": "{task.name}", "language": "{language}"}}\n'


def _generation(task: TableTask, name: str) -> str:
    lines = [
        f"dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}",
        "generation_kwargs:",
        f"  {{max_new_tokens: {task.max_new_tokens}, do_sample: false, until: []}}",
        "metric_list:",
    ]
    for metric in metrics(task):
        better = "false" if metric in LOWER else "true"
        function = f"!function {FUNCTIONS}.aggregated"
        lines.append(
            f"  - {{metric: {metric}, aggregation: {function}, higher_is_better: {better}}}"
        )
    return "\n".join(lines) + "\n"


def metrics(task: TableTask) -> tuple[str, ...]:
    """Names of a task's metrics that do not depend on its data."""
    if task.family == "short_answer" and task.headline == "accuracy":
        return SOFT
    return METRICS[task.family]


if __name__ == "__main__":
    for path, content in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(FOLDER))
