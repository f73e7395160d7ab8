"""What a sweep would do: its runs, the stages that they share, and a command for each run."""

import shlex
from collections import Counter
from pathlib import Path

from mllm_jax.commands.sweep.plan import Plan
from mllm_jax.common.markdown import markdown_table


def describe(plan: Plan, path: Path, out: Path) -> str:
    """The text of `--dry-run`.

    Args:
        plan: of the runs that are selected.
        path: the sweep file.
        out: folder of the sweep.
    """
    axes = list(dict.fromkeys(axis for row in plan.rows for axis in row.run.points))
    rows = [
        (row.name, *(row.run.points.get(axis, "") for axis in axes), _stages(plan, row.name))
        for row in plan.rows
    ]
    table = markdown_table(("run", *axes, "stages, or the model that is evaluated"), rows)
    return f"{table}\n{_shared(plan)}\n{_commands(plan, path, out)}"


def _stages(plan: Plan, name: str) -> str:
    leaf = plan.tree.variants.get(name)
    if leaf is not None:
        return " → ".join(plan.tree.path(leaf))
    return next(row.run.model or "" for row in plan.rows if row.name == name)


def _shared(plan: Plan) -> str:
    """How many stages are trained, and what they would be without sharing."""
    uses = Counter(stage for leaf in plan.tree.variants.values() for stage in plan.tree.path(leaf))
    shared = [name for name, count in uses.items() if count > 1]
    lines = [
        f"{len(plan.stages):,} stages are trained for {len(plan.tree.variants):,} models, instead "
        f"of {uses.total():,}: {len(shared):,} of them are shared."
    ]
    lines += [f"  {name}: by {uses[name]:,} models" for name in shared]
    lines.append("Digests are of settings here; those of folders are also of data and weights.")
    return "".join(f"{line}\n" for line in lines)


def _commands(plan: Plan, path: Path, out: Path) -> str:
    """A command for each run; they may run at the same time."""
    runs = dict.fromkeys(row.run.name for row in plan.rows)
    return "".join(
        f"mllm-jax sweep {shlex.quote(str(path))} --out {shlex.quote(str(out))} "
        f"--only {shlex.quote(run)}\n"
        for run in runs
    )
