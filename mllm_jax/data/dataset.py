"""Presents the packed rows of a run as a Grain dataset, for pipelines and loops of your own."""

import grain

from mllm_jax.data.loader import Loader
from mllm_jax.data.mixture.packing import Row

RowDataset = grain.MapDataset[Row]


class PackedRows:
    """The rows of a run in training order, as a random access source of Grain.

    Row i is a function of config and i alone. The rows of step s are s * data.rows and those after
    it; an unfilled last batch ends in empty rows (segment 0, weight 0), as in a run.
    """

    def __init__(self, loader: Loader, rows: int):
        """`rows` is the number of rows of the whole run."""
        self._loader, self._rows = loader, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index}: the run has rows 0 to {self._rows - 1}")
        return self._loader.row(int(index))


def row_dataset(loader: Loader, steps: int, rows: int) -> RowDataset:
    """The rows of `steps` steps of `rows` rows; as anywhere in Grain, the next pass follows them.

    `grain.MapDataset.source` is Grain's own way to wrap a source: every transformation, reading in
    threads and processes, and the state of iterators come with it.
    """
    return grain.MapDataset.source(PackedRows(loader, steps * rows))
