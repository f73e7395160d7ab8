"""Writes the train and held-out files of a project, and keeps a sample of what is trained.

    DATA -> DIR/data/train/NAME.jsonl            a stream of one kind in one language
            DIR/data/heldout/captions.jsonl      what the loss and the scores are of
            DIR/data/heldout/questions.jsonl
            DIR/data/images/                     pictures that a source holds itself

NAME is the file's; a kind or a language is added where a file holds several.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mllm_jax.commands.new.measure import SAMPLE
from mllm_jax.commands.new.sources import Opened, Reading
from mllm_jax.commands.new.split import Group, Split, group_of
from mllm_jax.commands.new.written import Writer
from mllm_jax.common.errors import require
from mllm_jax.data.records.parse import Record

NAMED_KEYS = 8  # unread keys that are told


STAGES = {"captions": "align", "questions": "instruct", "documents": "instruct"}


class Stream(NamedTuple):
    """A stream of a stage."""

    path: Path  # as the stage file names it
    format: str  # plain, llama3, llama31, or document
    language: str
    records: int


@dataclass
class Dataset:
    """What was written."""

    images: Path  # where all image paths start
    stages: dict[str, dict[str, Stream]] = field(default_factory=dict)
    samples: dict[str, list[tuple[str, Record]]] = field(default_factory=dict)
    heldout: dict[str, Path] = field(default_factory=dict)  # stage -> file
    notes: list[str] = field(default_factory=list)  # to be printed

    @property
    def languages(self) -> list[str]:
        """Of all streams, in order of appearance."""
        of_streams = (s.language for streams in self.stages.values() for s in streams.values())
        return list(dict.fromkeys(of_streams))


def write_dataset(folder: Path, out: Path, opened: Sequence[Opened], chat: str) -> Dataset:
    """Reads the sources twice: once to decide the sides, once to write them.

    Args:
        folder: the project's temporary folder.
        out: its name at the end, for paths in configs.
        opened: the sources.
        chat: format of questions.

    Raises:
        ConfigError: a record cannot be used, or no record has a picture.
    """
    groups, notes, roots = [], [], [data.images for data in opened]
    for data in opened:
        reading = Reading(data)
        groups.append([group_of(record) for record in reading])
        if reading.unread:
            keys = ", ".join(f"{key} ({n:,})" for key, n in reading.unread.most_common(NAMED_KEYS))
            notes.append(f"{data.stream.path}: keys that nothing reads: {keys}")
        if reading.holds_pictures:
            roots.append(out / "data" / "images")
    dataset = Dataset(_common(roots), notes=notes)
    writer = Writer(folder / "data", out / "data" / "images", dataset.images)
    try:
        _Sorting(dataset, writer, opened, groups, chat).write(out)
    finally:
        writer.close()
    return dataset


def _common(roots: Sequence[Path]) -> Path:
    """The folder that holds all of these; written as given if there is only one."""
    if len(set(roots)) == 1:
        return roots[0]
    common = Path(os.path.commonpath([root.absolute() for root in roots]))
    return Path(os.path.relpath(common)) if common.is_relative_to(Path.cwd()) else common


class _Sorting:
    """The second reading: every record to its file."""

    def __init__(
        self,
        dataset: Dataset,
        writer: Writer,
        opened: Sequence[Opened],
        groups: Sequence[Sequence[Group]],
        chat: str,
    ):
        self._dataset, self._writer, self._chat = dataset, writer, chat
        self._opened, self._groups = opened, groups
        every = [group for of_source in groups for group in of_source]
        self._split = Split(every)
        self._asked = any(group.kind == "questions" for group in every)
        require(
            any(group.has_images for group in every),
            "--data: no record has a picture; a multimodal model is trained on some that have",
        )
        self._counts: Counter[tuple[str, str, str]] = Counter()  # side, kind, language
        self._names: set[str] = set()  # of all streams

    def write(self, out: Path) -> None:
        """Writes all files; tells the data set their names under OUT."""
        for number, (data, groups) in enumerate(zip(self._opened, self._groups, strict=True)):
            names = [other.name for other in self._opened]
            base = data.name if names.count(data.name) == 1 else f"{data.name}_{number}"
            self._write_source(out, base, data, groups)
        self._note(out)

    def _write_source(self, out: Path, base: str, data: Opened, groups: Sequence[Group]) -> None:
        kinds, languages = {g.kind for g in groups}, {g.language for g in groups}
        every, sizes = max(1, len(groups) // SAMPLE), Counter[str]()
        streams: dict[str, Group] = {}
        for number, (record, group) in enumerate(zip(Reading(data), groups, strict=True)):
            side = self._split.side(group)
            if group.kind == "documents" and not self._asked:
                side = "unused"
            self._counts[side, group.kind, group.language] += 1
            if side == "heldout":
                self._writer.add(f"heldout/{group.kind}", record)
            if side != "train":
                continue
            name = base + (f"_{group.kind}" if len(kinds) > 1 else "")
            name += f"_{group.language}" if len(languages) > 1 else ""
            self._writer.add(f"train/{name}", record)
            streams[name] = group
            sizes[name] += 1
            if number % every == 0:
                # the pictures themselves are not measured
                light = record._replace(images=("",) * len(record.images))
                stage = self._dataset.samples.setdefault(STAGES[group.kind], [])
                stage.append((self._format(group.kind), light))
        for name, group in streams.items():
            path = out / "data" / "train" / f"{name}.jsonl"
            stream = Stream(path, self._format(group.kind), group.language, sizes[name])
            require(
                name not in self._names,
                f"--data {data.stream.path}: its stream {name} has the name of another one; rename "
                "the file",
            )
            self._names.add(name)
            self._dataset.stages.setdefault(STAGES[group.kind], {})[name] = stream

    def _format(self, kind: str) -> str:
        return {"captions": "plain", "documents": "document"}.get(kind, self._chat)

    def _note(self, out: Path) -> None:
        """Says what is where, and which stages there are."""
        dataset, counts = self._dataset, self._counts
        dataset.stages = {
            s: dataset.stages[s] for s in ("align", "instruct") if s in dataset.stages
        }
        for kind, stage in (("captions", "align"), ("questions", "instruct")):
            if any(side == "heldout" and k == kind for side, k, _ in counts):
                dataset.heldout[stage] = out / "data" / "heldout" / f"{kind}.jsonl"
        for kind, language in dict.fromkeys((k, lang) for _, k, lang in counts):
            train, held = (counts[side, kind, language] for side in ("train", "heldout"))
            dataset.notes.append(f"{kind}, {language}: {train:,} to train on, {held:,} held out")
        if mixed := sum(n for (side, _, _), n in counts.items() if side == "both"):
            dataset.notes.append(
                f"{mixed:,} records left out: some of their pictures are trained, others held out"
            )
        if unused := sum(n for (side, _, _), n in counts.items() if side == "unused"):
            dataset.notes.append(f"{unused:,} texts left out: they are trained beside questions")
        if "instruct" not in dataset.stages:
            dataset.notes.append(
                "only captions (nothing is asked): the recipe ends with align; add questions for "
                "a model that answers them"
            )
        if "align" not in dataset.stages:
            dataset.notes.append(
                "no captions (pictures about which nothing is asked): no align stage; the "
                "connector learns with the language model"
            )
