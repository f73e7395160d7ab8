"""What a recipe ends in: every finished model evaluated and exported, and a table of them.

OUT/evaluation, OUT/hf                  of the only one
OUT/evaluation/NAME, OUT/hf/NAME        of each of several variants
"""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mllm_jax.commands.recipe.summary import Summary
from mllm_jax.commands.recipe.tree import EVALUATION, EXPORT, Tree
from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.json_file import read_json
from mllm_jax.common.markdown import markdown_table
from mllm_jax.config import loading
from mllm_jax.config.recipe import EvaluateConfig, RecipeConfig
from mllm_jax.config.stage import Config, FolderConfig
from mllm_jax.conversion import conversions
from mllm_jax.distributed import processes, sharding
from mllm_jax.evaluation import runner
from mllm_jax.evaluation.extras import Extras
from mllm_jax.evaluation.results import progress
from mllm_jax.generation.devices import Devices
from mllm_jax.models import axes

FILES = {EVALUATION: "scores.json", EXPORT: "config.json"}  # of results without variants


def check(tree: Tree, out: Path, pending: Collection[str]) -> None:
    """Refuses results that would be taken for those of weights that are yet to be trained.

    Args:
        tree: of the selected stages.
        out: folder of the recipe.
        pending: names of the stages that are not finished.

    Raises:
        ConfigError: the folder is named.
    """
    for kind, file in FILES.items():
        require(
            tree.single or not (out / kind / file).exists(),
            f"{out / kind}: holds the result of a recipe with one model; move it away or delete it",
        )
        for variant, stage in tree.variants.items():
            folder = tree.results(out, kind, variant)
            require(
                stage not in pending or not folder.exists(),
                f"{folder}: was made from older weights than stage {stage} will have; delete it "
                "and rerun the recipe",
            )


def check_exports(stages: Mapping[str, Config], tree: Tree) -> None:
    """Refuses models that no class of transformers can hold, before they are trained.

    Args:
        stages: by name, with the models that they train.
        tree: of these.

    Raises:
        ConfigError: a stage whose model pools, by name.
    """
    for stage in tree.variants.values():
        connector = stages[stage].model.connector
        require(
            connector is None or connector.pool == "none",
            f"{stage}: model.connector.pool={connector and connector.pool}: transformers has no "
            "class for such a model; give export: null (--export null)",
        )


def unanswered(recipe: RecipeConfig, tree: Tree, out: Path) -> list[str]:
    """The stages whose models are yet to be evaluated."""
    return [
        stage
        for variant, stage in tree.variants.items()
        if recipe.evaluate is not None and not _evaluated(tree.results(out, EVALUATION, variant))
    ]


def check_devices(section: EvaluateConfig, stages: Mapping[str, Config]) -> None:
    """Refuses devices that this process has not, or that do not divide a model.

    Args:
        section: of the recipe.
        stages: with the models that are evaluated.

    Raises:
        ConfigError: the number, or the parameter that does not divide.
    """
    try:
        mesh = _devices(section).mesh()
        for config in stages.values() if mesh is not None else ():
            assert mesh is not None
            shapes = conversions.abstract(config.model)
            sharding.check_divides(mesh, axes.logical_axes(shapes), shapes)
    except ConfigError as error:
        raise ConfigError(f"evaluate: {error}") from error


def evaluate(
    section: EvaluateConfig, tree: Tree, stages: Mapping[str, Config], out: Path, summary: Summary
) -> None:
    """Evaluates the models that are not evaluated yet; all processes share the questions."""
    for variant, stage in tree.variants.items():
        folder = tree.results(out, EVALUATION, variant)
        # process 0 decides: the others may see a shared folder as it was a moment ago
        if processes.of_first(_evaluated(folder)):
            continue
        first = processes.is_first()
        with summary.timed(_label("evaluation", tree, variant)) if first else nullcontext():
            evaluate_model(section, stages[stage].out, folder)


def evaluate_model(section: EvaluateConfig, model: str | Path, folder: Path) -> None:
    """Asks a model the questions of a recipe's evaluation; continues what was interrupted.

    Raises:
        ConfigError: as `evaluation.runner.evaluate`.
    """
    task = runner.free_task(section.data, section.images, section.max_new_tokens)
    devices, extras = _devices(section), extras_of(section)
    runner.evaluate_tasks(
        model, [task], folder, rows=section.rows, resume=True, devices=devices, extras=extras
    )


def extras_of(section: EvaluateConfig) -> Extras:
    """What is computed of the answers beside their scores.

    Raises:
        ConfigError: the language identifier cannot be opened.
    """
    model = section.identifier
    return Extras(section.fidelity, None if model is None else Path(model), section.chrf)


def finish(
    recipe: RecipeConfig, tree: Tree, stages: Mapping[str, Config], out: Path, summary: Summary
) -> None:
    """Exports what is not there yet, and prints how the evaluated variants compare."""
    scores = {}
    for variant, stage in tree.variants.items():
        run = Path(stages[stage].out)
        if recipe.evaluate is not None:
            file = tree.results(out, EVALUATION, variant) / FILES[EVALUATION]
            scores[variant] = read_json(file)["languages"]
            _note_scores(run, scores[variant])
        folder = tree.results(out, EXPORT, variant)
        if recipe.export is not None and not folder.exists():
            with summary.timed(_label("export", tree, variant)):
                conversions.to_hf(run, folder, dtype=recipe.export)
    if scores and not tree.single:
        print(f"\n{comparison(tree, scores)}", flush=True)


def _evaluated(folder: Path) -> bool:
    """Whether an evaluation is finished; one that was interrupted continues."""
    return (folder / FILES[EVALUATION]).is_file() and not progress.files(folder)


def _label(kind: str, tree: Tree, variant: str) -> str:
    return kind if tree.single else f"{kind} {variant}"


def _devices(section: EvaluateConfig) -> Devices:
    return Devices(section.devices, section.fsdp, section.tensor)


def _note_scores(run: Path, languages: Mapping[str, Any]) -> None:
    """Puts the scores into the model's folder, for its card."""
    card = run / "model" / "config.yaml"
    scores = {f"exact match ({key})": float(of["exact_match"]) for key, of in languages.items()}
    loading.dump(dataclasses.replace(loading.load(FolderConfig, card), scores=scores), card)


def comparison(tree: Tree, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the variants: exact match and loss of every language, and their stages.

    Args:
        tree: of the stages.
        scores: variant -> language -> as in scores.json.
    """
    languages = list(dict.fromkeys(name for of in scores.values() for name in of))
    columns = (f"{x}, {name}" for name in languages for x in ("match", "loss"))
    rows = []
    for variant, by_language in scores.items():
        cells = []
        for name in languages:
            of = by_language.get(name, {})
            cells += [_cell(of.get("exact_match"), ".1%"), _cell(of.get("loss"), ".3f")]
        rows.append((variant, *cells, " → ".join(tree.path(tree.variants[variant]))))
    return markdown_table(("variant", *columns, "stages"), rows)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
