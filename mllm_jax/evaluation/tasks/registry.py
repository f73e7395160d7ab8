"""Loads tasks by name, or from a file that changes one.

    # pope_hr.yaml                     mllm-jax evaluate MODEL --task pope_hr.yaml
    from: pope                         a task by name, or a file beside this one
    data: {hr: {path: pope_hr.jsonl}}
    post_prompt: {hr: "\\nOdgovori jednom riječju ili izrazom."}
    words: {hr: {name: Croatian, "yes": [da], "no": [ne], negations: [ne, Ne]}}

A mapping adds to that of the other task, key by key; anything else replaces it, and so does `data`:
the languages of a task are those of the last file that states data.
"""

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.common.yaml_file import read_yaml
from mllm_jax.config.loading import build
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.captions import Captions
from mllm_jax.evaluation.tasks.choices import Choices
from mllm_jax.evaluation.tasks.free import Free
from mllm_jax.evaluation.tasks.mme import Mme
from mllm_jax.evaluation.tasks.mmmu import Mmmu
from mllm_jax.evaluation.tasks.ocr import Ocr
from mllm_jax.evaluation.tasks.perplexity import Perplexity
from mllm_jax.evaluation.tasks.rows import FILES
from mllm_jax.evaluation.tasks.short_answer import ShortAnswer
from mllm_jax.evaluation.tasks.text_choices import TextChoices
from mllm_jax.evaluation.tasks.yes_no import YesNo

FAMILIES: dict[str, type[TableTask]] = {
    kind.family: kind
    for kind in (
        *(Captions, Choices, Free, Mme, Mmmu, Ocr, Perplexity, ShortAnswer, TextChoices, YesNo),
    )
}
DEPTH = 8  # task files that start from one another
_LANGUAGE = re.compile(r"(.+)_([a-z]{2,3})")


@cache
def task_names() -> tuple[str, ...]:
    """The tasks that are shipped, sorted."""
    return tuple(sorted(file.stem for file in FILES.glob("*.yaml")))


def load_task(name: str) -> TableTask:
    """A task, by name or by the path of a task file.

    "pope_it" is the task pope in Italian alone.

    Raises:
        ConfigError: no such task or file; an unknown key, or a value that is not allowed.
    """
    file = _file(name)
    if file is not None:
        return _build(file)
    match = _LANGUAGE.fullmatch(name)
    if match is None or match[1] not in task_names():
        raise _unknown(name)
    return only(_build(FILES / f"{match[1]}.yaml"), match[2])


def only(task: TableTask, language: str) -> TableTask:
    """A task in one language. Raises ConfigError where it has none."""
    require(
        language in task.data,
        f"task {task.name}: no published data in {quoted(language, 40)} are known; there are "
        f"{', '.join(task.data) or 'none'}",
    )
    return dataclasses.replace(task, data={language: task.data[language]})


def _file(name: str) -> Path | None:
    """The file of a task; None where there is none of this name."""
    if name in task_names():
        return FILES / f"{name}.yaml"
    if "/" in name or name.endswith((".yaml", ".yml")):
        require(Path(name).is_file(), f"task {quoted(name)}: no such file")
        return Path(name)
    return None


def _unknown(name: str) -> ConfigError:
    near = closest(name, task_names())
    hint = f"did you mean {near}? " if near else ""
    return ConfigError(
        f"task {quoted(name, 60)} is not known; {hint}tasks: {', '.join(task_names())}; or a file "
        "NAME.yaml"
    )


def _build(file: Path) -> TableTask:
    try:
        tree = _resolved(file, ())
        family = tree.pop("family", None)
        if family not in FAMILIES:
            hint = f"expected {' or '.join(sorted(FAMILIES))}, or from: TASK"
            raise ConfigError(f"family={quoted(family, 60)}: {hint}")
        return build(FAMILIES[family], {"name": file.stem, **tree})
    except ConfigError as error:
        name = file.stem if file.parent == FILES else str(file)
        named = str(error).startswith(name)  # YAML's errors name file and line
        raise ConfigError(str(error) if named else f"{name}: {error}") from error


def _resolved(file: Path, before: tuple[Path, ...]) -> dict[Any, Any]:
    """The keys of a task file and of those it starts from."""
    require(file.resolve() not in before, "from: the file starts from itself")
    require(len(before) < DEPTH, f"from: more than {DEPTH} files start from one another")
    tree = read_yaml(file)
    if file.parent != FILES:
        _anchor(tree, file.parent)
    if "from" not in tree:
        return tree
    name = tree.pop("from")
    require(isinstance(name, str), f"from: {quoted(name, 60)} is not the name of a task")
    beside = file.parent / name
    other = beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else _file(name)
    if other is None:
        raise _unknown(name)
    return _merged(_resolved(other, (*before, file.resolve())), tree)


def _merged(first: dict[Any, Any], second: dict[Any, Any]) -> dict[Any, Any]:
    """The second's keys over the first's; mappings of both but data are joined, one level deep."""
    first = {key: value for key, value in first.items() if key != "name"}
    joined = {
        key: {**first[key], **value}
        for key, value in second.items()
        if key != "data" and isinstance(value, dict) and isinstance(first.get(key), dict)
    }
    return {**first, **second, **joined}


def _anchor(tree: dict[Any, Any], folder: Path) -> None:
    """Paths of rows that are not in a data set of the Hub start beside the task file."""
    data = tree.get("data")
    for one in data.values() if isinstance(data, dict) else ():
        if isinstance(one, dict) and "hub" not in one and isinstance(one.get("path"), str):
            one["path"] = str((folder / one["path"]).absolute())
