"""Saves and restores the checkpoints of a run, written by Orbax while the run continues.

    save: copy to the host | next steps
                           | write -> checksums -> manifest -> rename   in the background

A folder `<step>` is complete or absent: everything has a temporary name until its manifest (sizes
and checksums, see `manifest`) is on the disk. With several processes each writes and reads its own
part, on a file system that all of them see; process 0 writes the manifest, renames and deletes.
"""

import logging
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import ChainedFuture

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.leaves import Leaf, compare
from mllm_jax.checkpoints.manifest import DamagedCheckpoint, Files
from mllm_jax.checkpoints.params import restore, stored_leaves
from mllm_jax.checkpoints.retention import Keep, retained
from mllm_jax.common.errors import ConfigError, RunError, require
from mllm_jax.common.trees import unflatten
from mllm_jax.distributed import processes

ITEMS = ("params", "moments")
TEMPORARY, DELETED, DAMAGED = ".orbax-checkpoint-tmp", ".deleted", ".damaged"
TIMEOUT = 3600  # seconds a save may take, and processes wait for each other at its end
FAILURES = (OSError, ValueError, RuntimeError)  # of a save, whatever library they come from


class _Noting(ocp.PyTreeCheckpointHandler):
    """Takes the checksums of this process's files as soon as they are written."""

    async def async_save(self, directory: Any, args: Any) -> Any:
        """Futures of the whole save."""
        writes = await super().async_save(directory, args=args) or []
        folder = Path(directory)
        mine = folder / f"ocdbt.process_{jax.process_index()}"
        return [ChainedFuture(writes, partial(manifest.note, folder, mine))]


class _Quiet(logging.Filter):
    """Keeps orbax from printing the traceback of a failed save, which the run raises itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        message = record.getMessage()
        return "background save thread" not in message and "raised an exception" not in message


class Checkpoints:
    """`<run>/checkpoints/<step>/{params,moments,seal.json}`, for the run that writes them.

    What is not trained is in `<run>/frozen`, see `frozen`.

    One object per process, all of them making the same calls. Making it clears away what a killed
    run left unfinished.
    """

    def __init__(self, run_folder: str | Path, keep: Keep):
        self.folder, self.keep = Path(run_folder).absolute() / "checkpoints", keep
        self._about: dict[str, Any] = {}  # of the save under way
        self._quiet = _Quiet()
        logging.getLogger("absl").addFilter(self._quiet)
        self._first = jax.process_index() == 0
        if self._first:
            self.folder.mkdir(parents=True, exist_ok=True)
            uncleared = self._clear()
            require(not uncleared, f"{self.folder}{uncleared}")
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in ITEMS:
            registry.add(item, ocp.args.PyTreeSave, _Noting())
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(handler_registry=registry),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=TIMEOUT, post_finalization_callback=self._close
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Waits for the last save, also after an error, which is then the one that is raised."""
        try:
            self.close()
        except RunError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def save(
        self,
        step: int,
        params: Mapping[str, Any],
        opt_state: Any,
        extra: dict[str, Any],
        loss: float | None = None,
        frozen: Files | None = None,
    ) -> None:
        """Begins to write one checkpoint; returns when the arrays are copied and may be donated.

        Waits for the save before it. A second save of the same step only waits.

        Args:
            step: number of finished optimizer steps.
            params: path -> array, of the parameters that the run trains.
            opt_state: the optimizer's state, a tree of arrays; its dicts may have paths as keys.
            extra: what else a restart needs, as JSON.
            loss: what `keep.best` goes by.
            frozen: the files of the others, from `FrozenParams`; None: there are no others.

        Raises:
            RunError: this save or the one before failed: which, why, and what is left.
        """
        self.wait()
        if self._about.get("step") == step:
            return
        self._about = {"step": step, "loss": loss, "extra": extra, "frozen": dict(frozen or {})}
        save = ocp.args.PyTreeSave
        trees = {"params": params, "moments": _named(opt_state)}
        items = {item: save(unflatten(tree)) for item, tree in trees.items()}
        try:
            self._checkpointer.save(self.folder / str(step), args=ocp.args.Composite(**items))
        except FAILURES as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Raises the RunError of a save that has failed in the background; never waits."""
        try:
            self._checkpointer.check_for_errors()
        except FAILURES as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Returns when the last save is complete and what it replaces is gone.

        Raises:
            RunError: it failed.
        """
        try:
            self._checkpointer.wait_until_finished()
            if self._first:
                self._prune()
        except FAILURES as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, and lets go of orbax's threads. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            logging.getLogger("absl").removeFilter(self._quiet)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return checkpoint_steps(self.folder)

    def latest(self) -> int | None:
        """The last complete checkpoint's step; None when there is none."""
        return max(self.steps(), default=None)

    def verified(self, on_damage: Literal["fail", "previous"]) -> int | None:
        """The step to resume from: the last one, after every file of it was read and compared.

        Args:
            on_damage: what to do when it is not as it was saved: `fail`; or `previous`, which says
                so on standard error, calls it `<step>.damaged` and takes the one before.

        Returns:
            The same step in all processes; None when there is no checkpoint.

        Raises:
            DamagedCheckpoint: names the file, and what can be done.
        """
        there = self.folder.iterdir() if self.folder.is_dir() else []
        steps = self._agreed(sorted(int(x.name) for x in there if x.name.isdecimal()))
        for step in reversed(steps):
            damage = self._damage(self.folder / str(step))
            if damage is None:
                return step
            before = [x for x in steps if x < step]
            message = f"checkpoint {step} is damaged: {damage}"
            again = "train again into another folder"
            if not before:
                raise DamagedCheckpoint(f"{message}; there is no other: {again}")
            if on_damage == "fail":
                left = f"continue from step {before[-1]} with --train.on_damage previous"
                raise DamagedCheckpoint(f"{message}; {left}, or {again}")
            if self._first:
                print(f"{message}; continuing from step {before[-1]}", file=sys.stderr)
                self._rename(step, DAMAGED)
        return None

    def restore(
        self, step: int, params: Mapping[str, Any], opt_state: Any
    ) -> tuple[dict[str, jax.Array], Any, dict[str, Any]]:
        """Reads one checkpoint back to the bit, with the shardings of the abstract arrays.

        Args:
            step: one of `steps()`.
            params, opt_state: `jax.ShapeDtypeStruct`s as they were saved, by path and as a tree;
                shardings may differ, and so may the number of processes. Of an old checkpoint,
                which holds frozen parameters and moments of unused layers too, no more is read.

        Returns:
            (params, opt_state, extra).

        Raises:
            ConfigError: another tree, shape or number format than the checkpoint's, listed by path.
        """
        folder = self.folder / str(step)
        require(folder.is_dir(), f"{folder}: no such checkpoint; there are {self.steps()}")
        flat, about = _named(opt_state), manifest.read(folder)
        trees = {"params": params, "moments": flat}
        for item, tree in trees.items():
            stored = stored_leaves(folder / item)
            if about["frozen"] is None:
                stored = {path: leaf for path, leaf in stored.items() if path in tree}
                if item == "moments":
                    trees[item] = tree = _with_unused_layers(tree, stored)
            compare(str(folder / item), tree, stored)
            _same_formats(folder / item, tree, stored)
        restored = restore(folder / "moments", trees["moments"])
        leaves = [_first_layers(restored[path], leaf) for path, leaf in flat.items()]
        opt_state = jax.tree.unflatten(jax.tree.structure(opt_state), leaves)
        return restore(folder / "params", params), opt_state, about["extra"]

    def extra(self, step: int) -> dict[str, Any]:
        """What `save` got as `extra` with one of `steps()`. Raises DamagedCheckpoint."""
        return manifest.read(self.folder / str(step))["extra"]

    # ------------------------------------------------------------------------------ process 0 alone

    def _close(self) -> None:
        """Called in the background when all is written, before the folder gets its name."""
        manifest.close(self.folder / f"{self._about['step']}{TEMPORARY}", self._about)

    def _prune(self) -> None:
        losses = {step: manifest.read(self.folder / str(step))["loss"] for step in self.steps()}
        for step in losses.keys() - retained(losses, self.keep):
            shutil.rmtree(self._rename(step, DELETED))  # never half of it under its name

    def _rename(self, step: int, ending: str) -> Path:
        other = self.folder / f"{step}{ending}"
        if other.exists():
            shutil.rmtree(other)
        return (self.folder / str(step)).rename(other)

    def _clear(self) -> str:
        """Clears away what is unfinished. Returns what could not be, for a message."""
        left = ""
        for path in self.folder.iterdir():
            if TEMPORARY in path.name or path.name.endswith(DELETED):
                try:
                    shutil.rmtree(path)
                except OSError as error:  # another process may still write into it
                    left += f"; {path.name} not cleared away: {error.strerror}"
        return left

    # -------------------------------------------------------------------------------------- helpers

    def _failed(self, error: BaseException) -> RunError:
        """One line; frees what the failed save holds, so that the next one has the space."""
        if isinstance(error, RunError):
            return error
        free = shutil.disk_usage(self.folder).free
        uncleared = self._clear() if self._first else ""
        full = "No space left on device" in str(error)
        why = (
            "the disk is full" if full else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        )
        last = self.latest()
        left = f"checkpoint {last} is intact; continue" if last else "there is no checkpoint yet"
        return RunError(
            f"{self.folder}: saving step {self._about.get('step')} failed: {why} "
            f"({free / 1e6:,.1f} MB free{uncleared}); {left}{' with --resume' if last else ''}"
        )

    def _agreed(self, steps: list[int]) -> list[int]:
        """What process 0 sees: others may look at a file system that lags behind."""
        count = processes.of_first(len(steps))
        return [processes.of_first(step) for step in (steps + [0] * count)[:count]]

    def _damage(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, or None."""
        try:
            files = manifest.read(folder)["files"]
        except DamagedCheckpoint as error:
            return str(error)
        return manifest.damage(folder, files)


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under `folder`, ascending.

    Unfinished ones have another name until their manifest is written.
    """
    if not folder.is_dir():
        return []
    names = [
        x.name for x in folder.iterdir() if x.name.isdecimal() and (x / manifest.FILE).is_file()
    ]
    return sorted(map(int, names))


def _named(opt_state: Any) -> dict[str, Any]:
    """{path: leaf} of an optimizer's state: field names of named tuples, positions in tuples.

    (ScaleByAdamState(mu={"language/norm/scale": x}),)  ->  {"0/mu/language/norm/scale": x}
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _with_unused_layers(tree: Mapping[str, Any], stored: Mapping[str, Leaf]) -> dict[str, Any]:
    """`tree` with as many layers as are stored, where these are more."""

    def one(path: str, x: Any) -> Any:
        shape = stored[path].shape if path in stored else x.shape
        longer = shape[1:] == x.shape[1:] and shape[:1] > x.shape[:1]
        return jax.ShapeDtypeStruct(shape if longer else x.shape, x.dtype, sharding=x.sharding)

    return {path: one(path, x) for path, x in tree.items()}


def _first_layers(restored: Any, leaf: Any) -> Any:
    """What `leaf` has of a restored array that may hold more layers."""
    if restored.shape == leaf.shape:
        return restored
    cut = jax.jit(lambda x: x[: leaf.shape[0]], out_shardings=leaf.sharding)
    return cut(restored)


def _same_formats(folder: Path, expected: Mapping[str, Any], stored: Mapping[str, Leaf]) -> None:
    wrong = [
        f"{p} is {stored[p].dtype}, expected {np.dtype(x.dtype)}"
        for p, x in expected.items()
        if stored[p].dtype != x.dtype
    ]
    if wrong:
        raise ConfigError(
            f"{folder}: other number formats than the config's ({'; '.join(wrong[:5])}); "
            "resume with the config of the run"
        )
