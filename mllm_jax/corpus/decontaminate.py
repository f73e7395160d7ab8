"""Finds training records that hold pictures or texts of evaluation sets.

evaluation sets  ->  hashes of all their pictures, runs of 13 words of all their texts
training rows    ->  pictures near one of the hashes  ->  both pictures compared
                 ->  runs of words that are known
->  pairs (training row, evaluation record), and the rows to leave out
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mllm_jax.common.errors import ConfigError
from mllm_jax.corpus import overlap, pictures
from mllm_jax.corpus.contents import DataSet
from mllm_jax.corpus.hash_search import HashIndex
from mllm_jax.corpus.overlap import KnownRuns, SetRuns
from mllm_jax.corpus.scan import Part, Scanner, scan, spread
from mllm_jax.data.images import decode
from mllm_jax.data.progress import bar
from mllm_jax.data.record_errors import RefusedRow, refusal

TOGETHER = 64  # pairs of pictures compared at a time
DECODED = 256  # pictures of evaluation sets that a worker remembers


class Place(NamedTuple):
    """A record of a data set."""

    file: str
    row: int
    id: str
    language: str


class Pair(NamedTuple):
    """A training record and an evaluation record that share something; a line of pairs.jsonl."""

    kind: str  # image or text
    data: Place
    task: Place
    data_image: int = -1  # which picture of the record, from 0; -1 of texts
    task_image: int = -1
    runs: int = 0  # runs of words that both have; 0 of pictures


class Counts(NamedTuple):
    """What was read of a data set."""

    file: str
    records: int
    images: int
    texts: int
    hashed: int  # pictures that were decoded now; the others were in the cache
    refused: list[RefusedRow]


class Contamination(NamedTuple):
    """What was compared, and what both sides have."""

    pairs: list[Pair]
    data: Counts
    tasks: list[Counts]
    candidates: int  # pairs of pictures that were compared
    prompts: int  # runs of words that so many evaluation records have that they are not compared

    @property
    def rows(self) -> list[int]:
        """Training rows to leave out, in order."""
        return sorted({pair.data.row for pair in self.pairs})


class _Image(NamedTuple):
    """The place of a picture."""

    set: int  # number of the evaluation set; -1: the training data
    row: int
    place: int


def decontaminate(
    data: DataSet,
    tasks: Sequence[DataSet],
    caches: Sequence[Path],
    words: int = overlap.WORDS,
    workers: int = 1,
) -> Contamination:
    """Compares training data with evaluation sets.

    Args:
        data: the training rows. Those that cannot be read are counted and not compared.
        tasks: evaluation sets, at least one.
        caches: folder of the picture hashes, of the data, then of each task.
        words: of a run that two texts must share.
        workers: processes.

    Raises:
        ConfigError: an evaluation record cannot be read; nothing would protect it.
        RunError: a worker was killed.
    """
    read = [
        _read_task(task, cache, words, workers)
        for task, cache in zip(tasks, caches[1:], strict=True)
    ]
    known = _Known(read)
    scanner = Scanner(data, "data", caches[0], words, known.runs.hashes)
    counts, candidates = Counter[str](), []
    refused: list[RefusedRow] = []
    runs, run_rows = [], []
    for part in scan(scanner, workers, str(data.path)):
        counts.update(records=len(part.ids), images=len(part.image_rows))
        counts.update(texts=part.texts, hashed=part.hashed)
        refused += part.refused
        candidates += known.look_alikes(part)
        runs.append(part.runs)
        run_rows.append(part.run_rows)
    matches = known.runs.match(len(data.source), np.concatenate(runs), np.concatenate(run_rows))
    pairs = [_text_pair(data, tasks, row, *known.record(of), n) for row, (of, n) in matches.items()]
    same = _same_pictures(data, tasks, candidates, workers)
    pairs += [_image_pair(data, tasks, first, second) for first, second in same]
    pairs.sort(key=lambda pair: (pair.data.row, pair.kind, pair.task.file, pair.task.row))
    of_data = Counts(
        *(str(data.path), counts["records"], counts["images"], counts["texts"]),
        *(counts["hashed"], refused),
    )
    return Contamination(pairs, of_data, known.counts, len(candidates), known.runs.prompts)


# ------------------------------------------------------------------------------ evaluation sets


def _read_task(task: DataSet, cache: Path, words: int, workers: int) -> tuple[Counts, list[Part]]:
    parts = list(scan(Scanner(task, "task", cache, words), workers, str(task.path)))
    refused = [fault for part in parts for fault in part.refused]
    if refused:
        raise ConfigError(refusal(str(task.path), refused, len(task.source)))
    counts = Counts(
        str(task.path),
        len(task.source),
        sum(len(part.image_rows) for part in parts),
        sum(part.texts for part in parts),
        sum(part.hashed for part in parts),
        [],
    )
    return counts, parts


class _Known:
    """All pictures and runs of words of the evaluation sets."""

    def __init__(self, tasks: Sequence[tuple[Counts, list[Part]]]):
        self.counts = [counts for counts, _ in tasks]
        every = [(number, part) for number, (_, parts) in enumerate(tasks) for part in parts]
        self._images = [
            _Image(number, int(row), int(place))
            for number, part in every
            for row, place in zip(part.image_rows, part.image_places, strict=True)
        ]
        self._thumbnails = np.concatenate([part.thumbnails for _, part in every])
        hashes = np.concatenate([part.hashes for _, part in every])
        self._windows = hashes.shape[1]
        self._index = HashIndex(hashes.ravel())
        # records are numbered through all sets
        sizes = [counts.records for counts in self.counts]
        self._starts = np.cumsum([0, *sizes])
        self.runs = KnownRuns(
            [
                SetRuns(
                    sizes[number],
                    np.concatenate([part.runs for part in parts]),
                    np.concatenate([part.inner_runs for part in parts]),
                    np.concatenate([part.run_rows for part in parts]) + self._starts[number],
                )
                for number, (_, parts) in enumerate(tasks)
            ]
        )

    def record(self, number: int) -> tuple[int, int]:
        """(set, row) of a record that is numbered through all sets."""
        task = int(np.searchsorted(self._starts, number, side="right")) - 1
        return task, number - int(self._starts[task])

    def look_alikes(self, part: Part) -> Iterator[tuple[_Image, _Image]]:
        """Pairs of (training picture, evaluation picture) that may be the same."""
        windows = part.hashes.shape[1]
        pairs = set[int]()
        for asked, stored in self._index.near(part.hashes.ravel(), pictures.DISTANCE):
            first, second = asked // windows, stored // self._windows
            both = np.unique(first * len(self._images) + second)
            first, second = np.divmod(both, len(self._images))
            near = pictures.look_alike(part.thumbnails[first], self._thumbnails[second])
            pairs.update(both[near].tolist())
        for first, second in (divmod(pair, len(self._images)) for pair in sorted(pairs)):
            image = _Image(-1, int(part.image_rows[first]), int(part.image_places[first]))
            yield image, self._images[second]


# ---------------------------------------------------------------------------------------- pairs


def _text_pair(
    data: DataSet, tasks: Sequence[DataSet], row: int, task: int, task_row: int, runs: int
) -> Pair:
    """With the evaluation record that shares most."""
    return Pair("text", _place(data, row), _place(tasks[task], task_row), runs=runs)


def _image_pair(data: DataSet, tasks: Sequence[DataSet], first: _Image, second: _Image) -> Pair:
    task = tasks[second.set]
    return Pair(
        "image", _place(data, first.row), _place(task, second.row), first.place, second.place
    )


def _place(data: DataSet, row: int) -> Place:
    record = data.read(row)
    return Place(str(data.path), row, record.id, record.language)


class _Comparison:
    """Compares some of the candidates; sent to every worker once."""

    def __init__(
        self,
        data: DataSet,
        tasks: Sequence[DataSet],
        candidates: Sequence[tuple[_Image, _Image]],
    ):
        self._data, self._tasks, self._candidates = data, tasks, candidates
        self._begin()

    def _begin(self) -> None:
        self._task_pixels = lru_cache(DECODED)(self._pixels)
        self._data_pixels = lru_cache(1)(self._pixels)  # candidates come sorted by row

    def __getstate__(self):
        return self._data, self._tasks, self._candidates

    def __setstate__(self, state) -> None:
        self._data, self._tasks, self._candidates = state
        self._begin()

    def _pixels(self, image: _Image) -> np.ndarray:
        data = self._data if image.set < 0 else self._tasks[image.set]
        return decode.decode(data.read(image.row).images[image.place])

    def __call__(self, number: int) -> list[bool]:
        """Whether each of these candidates is the same picture twice."""
        some = self._candidates[number * TOGETHER : (number + 1) * TOGETHER]
        return [
            pictures.same_picture(self._data_pixels(first), self._task_pixels(second))
            for first, second in some
        ]


def _same_pictures(
    data: DataSet,
    tasks: Sequence[DataSet],
    candidates: Sequence[tuple[_Image, _Image]],
    workers: int,
) -> list[tuple[_Image, _Image]]:
    """The candidates that are the same picture."""
    compare = _Comparison(data, tasks, candidates)
    blocks = -(-len(candidates) // TOGETHER)
    answers: list[bool] = []
    with bar(total=len(candidates), desc="comparing pictures", unit="pair") as progress:
        for some in spread(compare, blocks, workers, lambda n: f"compared pictures, part {n}"):
            answers += some
            progress.update(len(some))
    return [pair for pair, same in zip(candidates, answers, strict=True) if same]
