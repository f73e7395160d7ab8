"""What is read: the streams of a mixture, and the shape of a batch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import (
    Name,
    NameText,
    PathText,
    Range,
    Section,
    Size,
    Step,
    Text,
    Weight,
    check,
)

Code = Annotated[str, Name(100)]  # of a fault, a step
Column = Annotated[str, Text(200)]
Columns = Annotated[dict[Column, Column], Size("[0, 1_000]")]
Skip = Annotated[dict[Code, Annotated[float, Range("(0, 1]")]], Size("[0, 1_000]")]
Changes = Annotated[
    dict[Code, Annotated[dict[NameText, Weight], Size("[0, 10_000]")]], Size("[0, 10_000]")
]
Count = Annotated[int, Range("[0, 10_000]")]
TOKENS = 2**30  # of a batch: the arrays of one are made whole on the host


@dataclass(frozen=True)
class StreamConfig(Section, at="data.streams.*"):
    """One weighted source of records: a file or a folder of shards, and the folder of its images.

    `kind` says how the rows are stored, `layout` what their columns are called, `columns` renames
    single ones of them: {caption: caption_eu}.
    """

    path: PathText
    images: PathText | None = None  # where image paths start; default: the folder of `path`
    language: NameText | None = None  # of records that do not name their own
    weight: Weight = 1.0  # share of the mixture, relative to the other streams
    format: Literal["plain", "llama3", "llama31"] = "llama31"
    kind: Literal["json", "text", "parquet", "arrow", "array_record", "tfds", "webdataset"] = "json"
    layout: Literal[
        "llava", "caption", "text", "conceptual_captions", "pixmo_ama", "magpie", "cauldron", "wit"
    ] = "llava"
    columns: Columns = field(default_factory=dict)
    # of a folder with files of several, as `train`; `all` for every file
    split: NameText | None = None
    # folders outside of its own to which links in its data and image folders may lead
    links: Annotated[tuple[PathText, ...], Size("[0, 1_000]")] = ()
    # instead of a weight: how often it is gone through while the mixture is gone through once
    epochs: Annotated[float, Range("(0, 1_000_000]")] | None = None
    hub: NameText | None = None  # data set on the Hugging Face Hub that `prepare` puts into `path`
    revision: NameText | None = None  # its commit or tag
    # code of a fault (data/faults.py) -> share of the records that may be left out because of it
    skip: Skip = field(default_factory=dict)
    # keys of rows, turns or typed parts that are knowingly not read (data/unread.py)
    ignore: Annotated[tuple[Column, ...], Size("[0, 1_000]")] = ()

    @property
    def is_text(self) -> bool:
        """Whether its records are documents, read from end to end, not conversations."""
        return self.layout == "text" or self.kind == "text"

    @property
    def index_home(self) -> str:
        """The folder beside the data in which its indexes stand."""
        return f"{self.path.rstrip('/')}.index"

    def __post_init__(self):
        super().__post_init__()
        require(
            self.epochs is None or self.weight == 1.0,
            f"data.streams.*: weight={self.weight} and epochs={self.epochs} exclude each other",
        )
        require(
            (self.hub is None) == (self.revision is None),
            f"data.streams.*: hub={self.hub!r} and revision={self.revision!r} belong together; pin "
            "the revision (a commit), so that all of a group read the same",
        )
        require(
            self.split is None or self.kind != "json",
            f"data.streams.*.split={self.split!r}: kind json has no splits; name the file",
        )


@dataclass(frozen=True)
class DataConfig(Section, at="data"):
    """The mixture, and the shape of a batch.

    A batch is `rows` rows of `length` tokens with `image_slots` images each.
    """

    streams: Annotated[
        dict[NameText, StreamConfig], Size("[1, 10_000]", "name at least one stream")
    ]
    languages: Annotated[
        tuple[NameText, ...], Size("[1, 10_000]", "list the language of every record")
    ]
    weights: Literal["records", "tokens"] = "records"  # what the streams' weights are shares of
    # step -> stream -> weight from that step on, e.g. {1000: {captions_en: 0.1}}
    changes: Changes = field(default_factory=dict)
    # over languages: 1 leaves their shares, larger ones even them out
    temperature: Annotated[float, Range("[0.01, 1_000_000_000_000]")] = 1.0
    length: Annotated[int, Range("[2, 16_777_216]")] = 2048  # a row of 1 has nothing to predict
    image_slots: Annotated[int, Range("[0, 65_536]")] = 1
    rows: Annotated[int, Range("[1, 1_000_000]")] = 128
    pack: bool = True
    # positions of the mixture that are packed together
    window: Annotated[int, Range("[1, 1_048_576]")] = 2048
    over_long: Literal["drop", "cut", "fail"] = "fail"
    image_fit: Literal["crop", "pad"] = "crop"
    # of one image; larger ones are taken for bombs
    max_pixels: Annotated[int, Range("[1, 10_000_000_000]")] = 100_000_000
    index: PathText | None = None  # folder of the length indexes; default: beside each stream
    workers: Count = 0  # processes that make batches; 0: threads of this process
    # that make batches where there are no workers
    threads: Annotated[int, Range("[1, 10_000]")] = 4
    prefetch: Count = 4  # batches made ahead of the step
    # MiB of decoded images kept; small data sets are decoded once
    image_cache: Annotated[int, Range("[0, 16_777_216]")] = 256

    def __post_init__(self):
        super().__post_init__()
        require(
            self.rows * self.length <= TOKENS,
            f"data.rows={self.rows} x data.length={self.length} is more than the {TOKENS:,} tokens "
            "that a batch may have",
        )
        require(
            len(set(self.languages)) == len(self.languages),
            f"data.languages={list(self.languages)}: a language stands twice; numbers of languages "
            "would no longer tell them apart",
        )
        timed = [name for name, stream in self.streams.items() if stream.epochs is not None]
        require(
            len(timed) in (0, len(self.streams)),
            f"data.streams: {', '.join(timed)} give epochs, the others do not; give every stream "
            "epochs, or none",
        )
        require(
            not timed or self.weights == "records",
            "data.weights=tokens has no effect on streams that give epochs",
        )
        require(
            not timed or self.temperature == 1,
            f"data.temperature={self.temperature} would change the exact counts that epochs are; "
            "give the streams weights, or leave data.temperature at 1",
        )
        self._check_changes()
        for name, stream in self.streams.items():
            if stream.language is not None:
                require(
                    stream.language in self.languages,
                    f"data.streams.{name}.language={stream.language!r} is not in data.languages "
                    f"{list(self.languages)}",
                )

    @property
    def by_epochs(self) -> bool:
        """Whether the streams give epochs; then all of them do."""
        return next(iter(self.streams.values())).epochs is not None

    def weight_changes(self) -> list[tuple[int, "DataConfig"]]:
        """(step, this section with the weights from that step on) for every change, in order."""
        streams, made = self.streams, []
        for step, weights in sorted((int(step), of) for step, of in self.changes.items()):
            streams = streams | {
                name: dataclasses.replace(streams[name], weight=weight)
                for name, weight in weights.items()
            }
            made.append((step, dataclasses.replace(self, streams=streams, changes={})))
        return made

    def _check_changes(self) -> None:
        for step, weights in self.changes.items():
            where = f"data.changes.{step}"
            require(step.isdecimal(), f"{where}: expected a step, 1 or later")
            check(Step, int(step), f"{where}: step")
            for name in weights:
                known = ", ".join(self.streams)
                require(name in self.streams, f"{where}.{name}: no such stream; there are {known}")
                require(
                    self.streams[name].epochs is None,
                    f"{where}.{name}: has no effect on streams that give epochs",
                )
        self.weight_changes()  # each checks its weights
