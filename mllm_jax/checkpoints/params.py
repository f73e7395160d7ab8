"""Orbax: parameters of a model folder, read and written leaf by leaf.

A run's `checkpoints/<step>/params` has the layout of a model folder's `params`; it holds what the
run trains, and `frozen/` the rest. Writing is atomic: orbax works in a temporary folder and renames
it at the end, so an unfinished save is never seen.
"""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from mllm_jax.checkpoints.leaves import Index, Leaf
from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, one_line, require
from mllm_jax.common.failures import unwrapped
from mllm_jax.common.folders import sync_files
from mllm_jax.common.trees import flatten, unflatten

CHUNK_BYTES = 2**22  # unit of partial reads; a few of them cost nothing
BLOCK_BYTES = 2**24  # read and written as one; a layer is never divided
FAILURES = (ValueError, RuntimeError)  # what orbax and tensorstore make of an OSError
# and of files that are not what they wrote
DAMAGE = (*FAILURES, KeyError, TypeError, AttributeError)
AHEAD = 2  # blocks that are read and written at the same time


class _StreamingHandler(ocp.type_handlers.NumpyHandler):
    """Writes lazy leaves one after the other, and each of them block by block along its first axis.

    Orbax's own handler starts all leaves at once and holds each of them about four times (array,
    copy, chunks, compressed chunks); here one leaf and one block are held.
    """

    def __init__(self, seen: Callable[[str], Any]):
        super().__init__()
        self._seen = seen

    async def serialize(
        self, values: Sequence[Leaf], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        """Returns no futures: everything is on disk when this returns."""
        args = args or [ocp.SaveArgs()] * len(values)
        for leaf, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            await self._write(leaf, info, arg)
            interrupts.check()
            self._seen(info.name.replace(".", "/"))
        return []

    async def _write(self, leaf: Leaf, info: Any, arg: Any) -> None:
        rows = _block_rows(leaf, CHUNK_BYTES)
        spec = ocp.type_handlers.get_json_tspec_write(
            info,
            use_ocdbt=info.is_ocdbt_checkpoint,
            global_shape=leaf.shape,
            local_shape=(rows, *leaf.shape[1:]) if leaf.shape else (),
            dtype=leaf.dtype,
            process_index=jax.process_index(),
            arg=arg,
        )
        context = ts.Context({"file_io_sync": False}, parent=info.ts_context)
        file = await ts.open(ts.Spec(spec), create=True, open=True, context=context)
        if not leaf.shape:
            await file.write(leaf.read())
            return
        if leaf.part is None:
            whole = leaf.read()
            leaf = Leaf(leaf.shape, leaf.dtype, leaf.read, lambda index: whole[index])
        rest = tuple(slice(0, n) for n in leaf.shape[1:])
        running: deque[asyncio.Task[None]] = deque()
        try:
            rows = _block_rows(leaf, BLOCK_BYTES)
            for start in range(0, leaf.shape[0], rows):
                if len(running) == AHEAD:
                    await running.popleft()
                block = (slice(start, start + rows), *rest)
                running.append(asyncio.create_task(_write_block(file, leaf, block)))
            while running:
                await running.popleft()
        finally:  # after a failure: none is left behind
            await asyncio.gather(*running, return_exceptions=True)


async def _write_block(file: Any, leaf: Leaf, block: Index) -> None:
    array = await asyncio.to_thread(leaf.at, block)
    assert array.dtype == leaf.dtype
    await file[block].write(array)


def _block_rows(leaf: Leaf, nbytes: int) -> int:
    """As many rows as fit in `nbytes`, at least one; they divide the number of all rows."""
    if not leaf.shape or not leaf.size:
        return 1
    most = max(1, nbytes * leaf.shape[0] // (leaf.size * leaf.dtype.itemsize))
    return next(
        rows for rows in range(min(most, leaf.shape[0]), 0, -1) if leaf.shape[0] % rows == 0
    )


def save_params(
    folder: Path, leaves: Mapping[str, Leaf], seen: Callable[[str], Any] = lambda name: None
) -> None:
    """Writes parameters as one ordinary Orbax PyTree checkpoint, one leaf in memory at a time.

    Args:
        folder: the folder to make; must not exist.
        leaves: path -> lazy leaf.
        seen: called with each parameter's name once it is written (a progress bar).
    """
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (Leaf, _StreamingHandler(seen)),
        # orbax warns when a registry cannot write it
        (jax.Array, handlers.get_type_handler(jax.Array)),
    )
    tree = unflatten(leaves)
    args = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    # zstd would make bfloat16 weights 22 % smaller, and reading them back is the slower way already
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    with unwrapped(folder, *FAILURES), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree, save_args=args))
    sync_files(folder)


def stored_leaves(folder: Path) -> dict[str, Leaf]:
    """The parameters in `folder`: path -> lazy leaf.

    Raises:
        ConfigError: it holds no finished checkpoint.
    """
    require(
        (folder / "_METADATA").is_file(),
        f"{folder}: no parameters here; the folder is incomplete, or was not written by mllm-jax",
    )
    # before orbax, which opens all at once: where files are damaged, its threads print tracebacks
    # beside the error
    with _reading(folder):
        arrays = ts.KvStore.open(_database(folder)).result().list().result()
    require(len(arrays) > 0, f"{folder}: damaged: no arrays are stored here; use another copy")
    # not through a Checkpointer: it looks for metadata of a whole step here, and warns
    handler: Any = ocp.PyTreeCheckpointHandler()
    with _reading(folder), contextlib.closing(handler):
        tree = handler.metadata(folder.absolute()).tree
    leaves = {}
    for path, x in flatten(tree).items():
        stored = _Stored(folder, path, tuple(x.shape), np.dtype(x.dtype))
        stored.open()
        leaves[path] = Leaf(tuple(x.shape), np.dtype(x.dtype), stored.read, stored.part)
    return leaves


def _database(folder: Path) -> dict[str, Any]:
    """Where all arrays of a folder are, as tensorstore names it."""
    return {"driver": "ocdbt", "base": f"file://{folder.absolute()}/"}


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Around calls that read `folder`.

    Raises:
        OSError: the system refuses.
        ConfigError: the files are not what `save_params` wrote.
    """
    try:
        with unwrapped(folder, *FAILURES):
            yield
    except DAMAGE as error:
        reason = one_line(str(error), 160)
        raise ConfigError(
            f"{folder}: damaged, or not written by mllm-jax ({type(error).__name__}: {reason}); "
            "use another copy, or make it again"
        ) from error


def restore(folder: Path, abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Reads the arrays at the paths of `abstract`, which was compared with `folder` before.

    Values are cast to the dtypes of `abstract` (round to nearest even); a leaf without a sharding
    lands on the first device.

    A call of all processes, or of one alone when the shardings name only its devices: process 0
    evaluates alone, while orbax would wait for the others.
    """
    if not abstract:
        return {}
    nested = unflatten(abstract)
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = {path: x.sharding or home for path, x in abstract.items()}
    args = {
        path: ocp.ArrayRestoreArgs(sharding=places[path], global_shape=x.shape, dtype=x.dtype)
        for path, x in abstract.items()
    }
    devices = {device for place in places.values() for device in place.device_set}
    called = {device.process_index for device in devices}
    together = ocp.options.MultiprocessingOptions(min(called), called)
    if len(called) == jax.process_count():
        together = ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=together)
    opened = ocp.Checkpointer(handler, multiprocessing_options=together)
    with _reading(folder), opened as checkpointer:
        restored = checkpointer.restore(
            folder.absolute(),
            args=ocp.args.PyTreeRestore(
                item=nested, restore_args=unflatten(args), partial_restore=True
            ),
        )
    return flatten(restored)


class _Stored:
    """One stored parameter; its file is opened once, and read where it is asked for."""

    def __init__(self, folder: Path, path: str, shape: tuple[int, ...], dtype: np.dtype):
        self._folder, self._path, self._shape, self._dtype = folder, path, shape, dtype

    @functools.cached_property
    def _file(self) -> Any:
        kvstore = _database(self._folder) | {"path": self._path.replace("/", ".") + "/"}
        spec = {"driver": "zarr", "kvstore": kvstore}
        with _reading(self._folder):
            file: Any = ts.open(spec, open=True, read=True).result()
        assert (file.shape, file.dtype.numpy_dtype) == (self._shape, self._dtype), self._path
        return file

    def open(self) -> None:
        """Raises ConfigError for a file that is not what `save_params` wrote."""
        _ = self._file

    def read(self) -> np.ndarray:
        """All of it, block by block: orbax's own read holds all chunks beside the array."""
        array = np.empty(self._shape, self._dtype)
        if not self._shape:
            return self.part(())
        rows = self._file.chunk_layout.read_chunk.shape[0]
        for start in range(0, self._shape[0], rows):
            with _reading(self._folder):
                array[start : start + rows] = self._file[start : start + rows].read().result()
        return array

    def part(self, index: Index) -> np.ndarray:
        """What is at `index`; of the folder no other chunks are read."""
        with _reading(self._folder):
            return self._file[index].read().result()
