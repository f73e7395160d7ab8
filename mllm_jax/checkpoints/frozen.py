"""The frozen parameters of a run: written once, as they came, for all of its checkpoints.

    RUN/frozen/model.safetensors     or shards with their index; a tensor's name is its path

They keep the number formats of their source, whatever the stage computes in, so that an export and
a later stage that trains them get what went in, to the bit. A checkpoint holds trained
parameters alone; its manifest names the sizes and checksums of these files, too. Equal parameters
give equal bytes, so a damaged file can be written again from the source.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.hf.tensor_files import FORMATS, write_tensors
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.int8_leaves import int8_leaves
from mllm_jax.checkpoints.leaves import Leaf, compare, place
from mllm_jax.checkpoints.manifest import DamagedCheckpoint, Files
from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import RunError
from mllm_jax.config.adapter import is_scale
from mllm_jax.distributed import processes

FOLDER, TEMPORARY, REPLACED = "frozen", "frozen.partial", "frozen.deleted"


class FrozenParams:
    """`RUN/frozen`, for the run that writes it.

    One object per process, all of them making the same calls; process 0 writes.

    Attributes:
        files: name -> (bytes, crc32) of what is there, in process 0: for checkpoints' manifests.
    """

    files: Files

    def __init__(self, run: str | Path):
        self._run, self.files = Path(run).absolute(), {}

    def write(self, leaves: Mapping[str, Leaf]) -> None:
        """Writes the frozen parameters of a run that begins; one is in memory at a time.

        What a killed run left there is replaced.

        Args:
            leaves: path -> lazy leaf, read by process 0 alone.

        Raises:
            RunError: the files could not be written: why.
        """
        if processes.is_first():
            with _one_line(self._run):
                self.files = self._written(leaves)
                self._take(bool(leaves))
        processes.barrier("frozen parameters written")

    def resume(
        self,
        checkpoint: Path,
        paths: list[str],
        source: Callable[[], Mapping[str, Leaf]],
        on_damage: Literal["fail", "previous"],
    ) -> None:
        """Makes sure that the files are those of a checkpoint, from which the run continues.

        A checkpoint of a version that saved all parameters every time holds the frozen ones too:
        they are then written from there.

        Args:
            checkpoint: its folder, compared with its manifest before.
            paths: of the frozen parameters.
            source: what the run began with, asked only to write damaged files again.
            on_damage: `fail`, or `previous`, which says so on standard error and writes them again.

        Raises:
            DamagedCheckpoint: the files are not what they were; names one, and what can be done.
        """
        files = manifest.read(checkpoint)["frozen"]
        if files is None:
            stored = stored_leaves(checkpoint / "params")
            self.write({path: stored[path] for path in paths})
            return
        self.files = files
        damage = manifest.damage(self._run / FOLDER, files)
        if damage is None:
            return
        what = f"the frozen parameters are damaged: {damage}"
        copy = "put the file back from a copy"
        if on_damage == "fail":
            raise DamagedCheckpoint(
                f"{what}; {copy}, or write it again from init.weights with "
                "--train.on_damage previous"
            )
        if processes.is_first():
            print(f"{what}; writing them again from where they came", file=sys.stderr)
            with _one_line(self._run):
                if self._written(source()) != files:
                    raise DamagedCheckpoint(
                        f"{what}; init.weights no longer holds what the run began with: {copy}, "
                        "or train again into another folder"
                    )
                self._take(True)
        processes.barrier("frozen parameters written again")

    def load(self, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The frozen parameters, placed by the shardings and cast to the dtypes of `abstract`.

        Args:
            abstract: path -> `jax.ShapeDtypeStruct`. A process reads what its own devices need.
                Matrices whose scales are among them are converted to int8.

        Raises:
            ConfigError: other parameters or shapes than are stored, listed by path.
        """
        stored = frozen_leaves(self._run) if abstract else {}
        of_model = {path: x for path, x in abstract.items() if not is_scale(path)}
        compare(str(self._run / FOLDER), of_model, stored)
        stored = int8_leaves(stored, abstract)
        return {path: place(stored[path], x) for path, x in abstract.items()}

    def _written(self, leaves: Mapping[str, Leaf]) -> Files:
        """Writes the files under their temporary name, all of them on the disk; process 0 alone."""
        folder = self._run / TEMPORARY
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        if leaves:
            write_tensors(folder, leaves, ((path, leaf.read()) for path, leaf in leaves.items()))
        return manifest.checksums(folder)

    def _take(self, some: bool) -> None:
        """Gives what was written its name."""
        folder, replaced = self._run / FOLDER, self._run / REPLACED
        if replaced.exists():
            shutil.rmtree(replaced)
        if folder.exists():
            shutil.rmtree(folder.rename(replaced))  # never half of it under its name
        if some:
            (self._run / TEMPORARY).rename(folder)
        else:
            (self._run / TEMPORARY).rmdir()
        directory = os.open(self._run, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def frozen_leaves(run: Path) -> dict[str, Leaf]:
    """The frozen parameters of a run: path -> lazy leaf.

    Raises:
        ConfigError: there are none, or a file is truncated.
    """
    tensors = stored_tensors(run / FOLDER)
    return {p: Leaf(t.shape, FORMATS[t.format], t.read, t.read) for p, t in tensors.items()}


@contextmanager
def _one_line(run: Path) -> Iterator[None]:
    """Turns what the disk refuses into the line that ends a run."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(error)
        free = shutil.disk_usage(run).free
        raise RunError(
            f"{run / FOLDER}: writing the frozen parameters failed: {why} "
            f"({free / 1e6:,.1f} MB free); start again with --resume"
        ) from error
    finally:
        shutil.rmtree(run / TEMPORARY, ignore_errors=True)  # of a failure: its space is needed
