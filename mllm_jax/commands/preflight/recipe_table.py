"""The stages of a recipe on given hardware: one line each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.commands.recipe.files import build_stages, load_recipe
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.preflight import report
from mllm_jax.preflight.table import changes, seconds, size

HEAD = ("stage", "rows", "memory", "of", "fits", "sent", "a step, at least", "by", "MFU, at most")


def main(
    path: Path, overrides: Sequence[str], only: Sequence[str], hardware: str, as_json: bool
) -> None:
    """Prints a table of the stages, or with `as_json` an object for each, on stdout.

    Args:
        path: the recipe file.
        overrides, only: as `mllm-jax recipe` takes them.
        hardware: for example "v5e:16x16".
        as_json: for programs; what `preflight --config` prints, with the names of the stages.

    Raises:
        ConfigError: as `report.estimate`, with the stage's name; a stage file is wrong.
    """
    recipe = load_recipe(path, overrides)
    stages = build_stages(recipe, Path(recipe.config.out))
    selected = recipe.tree.only(only) if only else recipe.tree
    results: dict[str, dict[str, Any]] = {}  # layout -> result: stages of one file are alike
    named: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name in selected.files:
        layout = _layout(stages[name])
        if layout not in results:
            try:
                results[layout] = report.estimate(stages[name], hardware)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        named.setdefault(layout, ([], results[layout]))[0].append(name)
    if as_json:
        for names, result in named.values():
            print(json.dumps({"stages": names} | result))
        return
    print(_table(list(named.values())), end="")


def _layout(config: Config) -> str:
    """What a stage's layout on devices depends on, as text."""
    data = config.data
    numbers = (data.rows, data.length, data.image_slots, data.segments, config.train.microbatches)
    sections = (config.model, config.compute, config.optimizer, config.mesh, config.adapter)
    return json.dumps([numbers, *map(loading.to_dict, sections)])


def _table(stages: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    first = stages[0][1]
    rows = []
    for names, result in stages:
        memory, setting, bound = result["memory"], result["setting"], result["bound"]
        sent = sum(kind["bytes"] for kind in result["collectives"].values())
        times = ("", "", "")
        if bound is not None:
            times = (seconds(bound["seconds"]), bound["by"], f"{bound['mfu']:.1%}")
        cells = (
            f"{setting['rows']:,} x {setting['length']:,}",
            size(memory["total"]),
            size(memory["limit"]),
            "yes" if memory["fits"] else "NO",
            size(sent),
        )
        rows.append((", ".join(names), *cells, *times))
    chip, versions = first["chip"], first["versions"]
    head = f"{first['hardware']}: {first['chips']} x {chip['kind']} ({chip['source']})\n"
    head += f"  {first['basis']}\n"
    head += f"  {', '.join(f'{name} {version}' for name, version in versions.items())}\n\n"
    return head + markdown_table(HEAD, rows) + "".join(_quicker(stages))


def _quicker(stages: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> Iterator[str]:
    """Lines for the stages that have a quicker setting that fits."""
    for names, result in stages:
        if (one := result["quicker"]) is not None:
            change = "; ".join(changes(result, one))
            yield f"\n{', '.join(names)}: quicker, and it fits: {one['flags']}\n  {change}\n"
