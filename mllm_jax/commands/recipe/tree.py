"""A recipe's stages as a tree: which one starts from which, in what order, what they end in.

mlp -> pt -> pt_it      stages: [mlp.yaml, pt.yaml, {name: pt_it, file: it.yaml},
   \\-> it                        {file: it.yaml, from: mlp}]
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_jax.common.errors import ConfigError, closest, quoted, require
from mllm_jax.config.recipe import RecipeConfig, StageEntry

EVALUATION, EXPORT = "evaluation", "hf"  # folders of the results
OUTPUTS = (EVALUATION, EXPORT, "report.html", "summary.json")  # what a recipe writes beside stages


class Tree(NamedTuple):
    """Stages in the order of their training, and the models that are evaluated and exported."""

    files: Mapping[str, str]  # stage -> its file; each stage after the one it starts from
    parents: Mapping[str, str | None]  # stage -> the one it starts from; None: the first
    variants: Mapping[str, str]  # name of a finished model -> its stage
    single: bool  # one unnamed model: its results have no folders of their own

    def path(self, stage: str) -> list[str]:
        """The stages from the first one to this one."""
        path, parent = [stage], self.parents[stage]
        while parent is not None:
            path.append(parent)
            parent = self.parents[parent]
        return path[::-1]

    def after(self, stage: str) -> list[str]:
        """The stages that start from this one, or from one that does."""
        family = {stage: None}
        for name in self.files:
            if self.parents[name] in family:
                family[name] = None
        return list(family)[1:]

    def results(self, out: Path, kind: str, variant: str) -> Path:
        """Folder of a variant's results; `kind` is EVALUATION or EXPORT."""
        return out / kind if self.single else out / kind / variant

    def only(self, names: Sequence[str]) -> "Tree":
        """The named stages and variants with what they start from; variants are those named.

        Raises:
            ConfigError: a name is neither.
        """
        for name in names:
            known = list(dict.fromkeys([*self.files, *self.variants]))
            near = closest(name, known)
            hint = f"did you mean {near!r}?" if near else f"names are {', '.join(known)}"
            require(name in known, f"--only: {quoted(name)} is not a stage or a variant; {hint}")
        stages = [self.variants.get(name, name) for name in names]
        needed = {one for stage in stages for one in self.path(stage)}
        return self._replace(
            files={name: file for name, file in self.files.items() if name in needed},
            parents={name: parent for name, parent in self.parents.items() if name in needed},
            variants={name: stage for name, stage in self.variants.items() if stage in stages},
        )


def read_tree(recipe: RecipeConfig) -> Tree:
    """The tree of a recipe file.

    Raises:
        ConfigError: two stages or variants of one name, a name that is not free, a `from` or a
            variant that names no stage, stages that start from one another.
    """
    entries: dict[str, StageEntry] = {}
    parents: dict[str, str | None] = {}
    before, lowered = None, set()
    for entry in recipe.stages:
        name = entry.label
        check_name(name, lowered)
        lowered.add(name.casefold())
        entries[name], parents[name] = entry, entry.from_ or before
        before = name
    for name, parent in parents.items():
        if parent is not None:
            _check_stage(f"stages: {name}: from", parent, parents)
    order = _ordered(parents)
    files = {name: entries[name].file for name in order}
    variants, starts = recipe.variants, set(parents.values())
    _check_variants(variants, parents)
    leaves = {name: name for name in order if name not in starts}
    single = not variants and len(leaves) == 1
    return Tree(files, {name: parents[name] for name in order}, variants or leaves, single)


def _ordered(parents: Mapping[str, str | None]) -> list[str]:
    """Every stage after the one it starts from, otherwise as listed."""
    order: dict[str, None] = {}
    while len(order) < len(parents):
        ready = (n for n, p in parents.items() if n not in order and (p is None or p in order))
        name = next(ready, None)
        if name is None:
            rest = next(name for name in parents if name not in order)
            raise ConfigError(f"stages: {_circle(rest, parents)}; give one of them another `from`")
        order[name] = None
    return list(order)


def _circle(name: str, parents: Mapping[str, str | None]) -> str:
    """A circle that is reached from a stage, as text."""
    seen: list[str] = []
    stage: str | None = name
    while stage is not None and stage not in seen:
        seen.append(stage)
        stage = parents[stage]
    circle = seen[seen.index(str(stage)) :]
    if len(circle) == 1:
        return f"{circle[0]} starts from itself"
    return f"{', '.join(circle[:8])} start from one another"


def _check_variants(variants: Mapping[str, str], stages: Iterable[str]) -> None:
    used: dict[str, str] = {}
    for name, stage in variants.items():
        _check_stage(f"variants: {name}", stage, stages)
        lowered = [other.casefold() for other in used.values()]
        require(
            name.casefold() not in lowered and "/" not in name and not name.startswith("."),
            f"variants: {name!r} cannot name a folder of its own in OUT/{EVALUATION}: it begins "
            "with a dot, has a slash, or differs from another name by capitals alone; rename it",
        )
        require(
            stage not in used,
            f"variants: {used.get(stage)} and {name} are both stage {stage}; remove one",
        )
        used[stage] = name


def _check_stage(place: str, stage: str, stages: Iterable[str]) -> None:
    near = closest(stage, stages)
    hint = f"did you mean {near!r}?" if near else f"stages are {', '.join(stages)}"
    require(stage in stages, f"{place}: {quoted(stage)} is not a stage of this recipe; {hint}")


def check_name(name: str, lowered: Collection[str]) -> None:
    """Refuses a stage whose folder would be another's, or where something else goes.

    Some file systems do not tell capitals apart, so neither does this.

    Args:
        name: of the stage.
        lowered: names of the others, without capitals (`str.casefold`).

    Raises:
        ConfigError: see above.
    """
    require(
        name.casefold() not in lowered,
        f"stages: two are named {name!r}; give one of them a `name` of its own",
    )
    require(
        name.casefold() not in OUTPUTS and not name.startswith(".") and "/" not in name,
        f"stages: {name!r} names OUT/{name}, which is not free for a stage; rename it (taken are "
        f"{', '.join(OUTPUTS)}, names with a slash and names that begin with a dot)",
    )
