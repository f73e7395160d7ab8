"""Defines what is read: the streams of a mixture, and the shape of a batch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mllm_jax.common.errors import quoted, require
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

Code = Annotated[str, Name(100)]  # of a record error; a step of `changes`
Column = Annotated[str, Text(200)]
Columns = Annotated[dict[Column, Column], Size("[0, 1_000]")]
Skip = Annotated[dict[Code, Annotated[float, Range("(0, 1]")]], Size("[0, 1_000]")]
Changes = Annotated[
    dict[Code, Annotated[dict[NameText, Weight], Size("[0, 10_000]")]], Size("[0, 10_000]")
]
Count = Annotated[int, Range("[0, 10_000]")]
TOKENS = 2**30  # of a batch: the host builds its arrays whole
LIMITED = ("cudnn",)  # values of `compute.attention` that need a limit of examples in a row


def row_limit(length: int) -> int:
    """The limit of examples in a row where none is given; a choice of ours.

    Instructions have a few hundred tokens, so that rows seldom have as many.
    """
    return max(8, length // 128)


@dataclass(frozen=True)
class StreamConfig(Section, at="data.streams.*"):
    """One weighted source of records: a file or a folder of shards, and the folder of its images.

    `kind` says how the rows are stored, `layout` how their columns are named.
    """

    path: PathText
    """File, or folder of shards."""
    images: PathText | None = None
    """Folder in which image paths start; by default the folder of `path`."""
    language: NameText | None = None
    """Language of the records that do not name their own; one of `data.languages`."""
    weight: Weight = 1.0
    """Share of the mixture, relative to the other streams' weights."""
    format: Literal["plain", "plain_newline", "llama3", "llama31", "vicuna_v1"] = "llama31"
    """Template of conversations; `plain`: images and caption alone, as LLaVA aligns with."""
    train_control_tokens: bool = False
    """Trains all special tokens and the headers of answers, as LLaVA-NDiNO's llama3 mask does.

    Of a user's turn `<|start_header_id|>`, `<|end_header_id|>` and `<|eot_id|>` are trained.
    """
    train_end_of_turn: bool = True
    """Whether the token that ends an answer is trained, as `<|eot_id|>`, or its text alone.

    Without it a model does not learn from this stream where an answer ends.
    """
    drop_token_zero: bool = False
    """Leaves tokens of id 0 out of conversations, as LLaVA-NDiNO's padding does.

    In Llama 3's vocabulary that is a "!" by itself.
    """
    image_first: bool = False
    """Moves the only `<image>` of a turn to its beginning, as LLaVA's code does."""
    kind: Literal["json", "text", "parquet", "arrow", "array_record", "tfds", "webdataset"] = "json"
    """How the rows are stored; `json` is a LLaVA JSON list or a JSONL file."""
    layout: Literal[
        "llava", "caption", "text", "conceptual_captions", "pixmo_ama", "magpie", "cauldron", "wit"
    ] = "llava"
    """Which columns a row has; `text` is documents, read from end to end."""
    columns: Columns = field(default_factory=dict)
    """Columns under other names than the layout's: `{caption: caption_eu}`."""
    split: NameText | None = None
    """Which files of a folder with several splits are read, as `train`; `all` for every file."""
    links: Annotated[tuple[PathText, ...], Size("[0, 1_000]")] = ()
    """Folders outside of its own to which links in its data and image folders may lead."""
    epochs: Annotated[float, Range("(0, 1_000_000]")] | None = None
    """Passes over this stream in one pass of the mixture, instead of a weight; in every stream."""
    hub: NameText | None = None
    """Data set on the Hugging Face Hub, which `mllm-jax prepare` downloads into `path`."""
    revision: NameText | None = None
    """Commit or tag of `hub`; needed with it."""
    skip: Skip = field(default_factory=dict)
    """Error code -> largest share of the records that may be left out for it.

    For example `{image_broken: 0.001}`; any other error ends the run. Codes: docs/data.md.
    """
    ignore: Annotated[tuple[Column, ...], Size("[0, 1_000]")] = ()
    """Keys of rows, turns or typed parts that are knowingly not read, as `[tools, turn.weight]`."""
    task: NameText | None = None
    """What its records train, as `ep`; metrics are reported for each task."""
    pairs: Column | None = None
    """Field whose value two records of the same meaning share; a pair is packed as one example.

    A record that shares its value with no other is trained alone. Read by `optimizer.pairs`.
    """

    @property
    def is_text(self) -> bool:
        """Whether its records are documents, read from end to end, not conversations."""
        return self.layout == "text" or self.kind == "text"

    @property
    def is_caption(self) -> bool:
        """Whether its records are captions: no text but the one that is trained."""
        return not self.is_text and self.format in ("plain", "plain_newline")

    @property
    def index_home(self) -> str:
        """The folder beside the data that holds its indexes."""
        return f"{self.path.rstrip('/')}.index"

    def __post_init__(self):
        super().__post_init__()
        require(
            self.epochs is None or self.weight == 1.0,
            f"data.streams.*: weight={self.weight} and epochs={self.epochs} exclude each other",
        )
        require(
            (self.hub is None) == (self.revision is None),
            f"data.streams.*: hub={self.hub!r} and revision={self.revision!r} belong together; set "
            "revision to a commit hash so that every user reads the same data",
        )
        require(
            not self.train_control_tokens or self.format in ("llama3", "llama31"),
            f"data.streams.*.train_control_tokens: format {self.format} has no headers of special "
            "tokens; it acts in llama3 and llama31",
        )
        self._check_end_of_turn()
        require(
            self.pairs is None or not (self.is_text or self.is_caption),
            f"data.streams.*.pairs={quoted(self.pairs)}: pairs are of questions, and documents and "
            "captions have none; leave it out",
        )
        for name in ("train_control_tokens", "drop_token_zero", "image_first"):
            require(
                not (getattr(self, name) and self.is_text),
                f"data.streams.*.{name}: has no effect on documents",
            )
        require(
            self.split is None or self.kind != "json",
            f"data.streams.*.split={self.split!r}: kind json has no splits; name the file",
        )

    def _check_end_of_turn(self) -> None:
        option = "data.streams.*.train_end_of_turn=false"
        on = self.train_end_of_turn
        require(on or not self.is_text, f"{option}: has no effect on documents")
        require(
            on or self.format != "plain_newline",
            f"{option}: format plain_newline ends answers by no token",
        )
        require(
            on or not self.train_control_tokens,
            f"{option}: train_control_tokens trains it; give one of the two",
        )


@dataclass(frozen=True)
class DataConfig(Section, at="data"):
    """The mixture, and the shape of a batch.

    A batch is `rows` rows of `length` tokens with `image_slots` squares of images each.
    """

    streams: Annotated[
        dict[NameText, StreamConfig], Size("[1, 10_000]", "name at least one stream")
    ]
    """The streams of the mixture by name; names are yours."""
    languages: Annotated[
        tuple[NameText, ...], Size("[1, 10_000]", "list the language of every record")
    ]
    """The language of every record, as `[eu, en]`; metrics are reported for each."""
    weights: Literal["records", "tokens"] = "records"
    """What the streams' weights are shares of."""
    changes: Changes = field(default_factory=dict)
    """Other weights from a step on: step -> stream -> weight, as `{1000: {captions_en: 0.1}}`."""
    temperature: Annotated[float, Range("[0.01, 1_000_000_000_000]")] = 1.0
    """Turns a language's share p into p^(1/T), normed; 1 leaves shares, more evens them out."""
    length: Annotated[int, Range("[2, 16_777_216]")] = 2048
    """Tokens of a row, image placeholders included."""
    image_slots: Annotated[int, Range("[0, 65_536]")] = 1
    """Squares of images that a row has room for; 0 for a model that reads text only.

    An image is one; with `model.grids` the whole image is one, and each of its tiles.
    """
    rows: Annotated[int, Range("[1, 1_000_000]")] = 128
    """Rows of a batch, over all devices; a multiple of `train.microbatches`."""
    pack: bool = True
    """Whether several examples share a row; attention stays within an example."""
    row_examples: Annotated[int, Range("[1, 16_777_216]")] | None = None
    """Examples that a row may hold, at most; as many as fit if none is given.

    One that would be too many begins another row. `compute.attention: cudnn` needs a limit:
    `length` / 128, 8 at least, if none is given.
    """
    window: Annotated[int, Range("[1, 1_048_576]")] = 2048
    """Consecutive examples of the mixture that are packed together."""
    over_long: Literal["drop", "cut", "fail"] = "fail"
    """What becomes of a record longer than a row: left out and counted, text cut, or an error."""
    image_fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image becomes square: cropped to its centre, padded, or stretched.

    `pad` fills with the mean colour; `stretch` does not keep the sides in proportion, as SigLIP's
    image processor.
    """
    max_pixels: Annotated[int, Range("[1, 10_000_000_000]")] = 100_000_000
    """Pixel limit per image, read off its header; protects against decompression bombs."""
    index: PathText | None = None
    """Folder of the indexes of lengths and tokens; by default beside each stream."""
    workers: Count = 0
    """Processes that make batches; 0: threads of the training process."""
    threads: Annotated[int, Range("[1, 10_000]")] = 4
    """Threads that make batches where `workers` is 0."""
    prefetch: Count = 4
    """Batches made ahead of the step."""
    image_cache: Annotated[int, Range("[0, 16_777_216]")] = 256
    """MiB of decoded images that are held in memory; small data sets are decoded once."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.rows * self.length <= TOKENS,
            f"data.rows={self.rows} x data.length={self.length} is more than the {TOKENS:,} tokens "
            "that a batch may have",
        )
        self._check_row_examples()
        require(
            len(set(self.languages)) == len(self.languages),
            f"data.languages={list(self.languages)}: a language is listed twice; list each once",
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

    def _check_row_examples(self) -> None:
        most = self.row_examples
        require(
            most is None or self.pack,
            f"data.row_examples={most} has no effect with data.pack=false; leave it out",
        )
        require(
            most is None or most >= self._unit,
            f"data.row_examples={most}: the two records of a pair share a row; give 2 or more",
        )

    @property
    def _unit(self) -> int:
        """The most examples that packing places together."""
        return 2 if any(stream.pairs is not None for stream in self.streams.values()) else 1

    @property
    def segments(self) -> int | None:
        """The most examples that a row can hold; None: as many as fit."""
        return self.row_examples if self.pack else self._unit

    def bounded(self) -> "DataConfig":
        """This section with a limit of examples in a row, for attention that needs one."""
        if self.segments is not None:
            return self
        return dataclasses.replace(self, row_examples=row_limit(self.length))

    @property
    def task_of_streams(self) -> list[str | None]:
        """The task of every stream; None where it names none."""
        return [stream.task for stream in self.streams.values()]

    @property
    def by_epochs(self) -> bool:
        """Whether the streams give epochs; then all of them do."""
        return next(iter(self.streams.values())).epochs is not None

    def weight_changes(self) -> list[tuple[int, "DataConfig"]]:
        """(step, this section with the weights from that step on) for every change, in order."""
        streams, changed = self.streams, []
        for step, weights in sorted((int(step), of) for step, of in self.changes.items()):
            streams = streams | {
                name: dataclasses.replace(streams[name], weight=weight)
                for name, weight in weights.items()
            }
            changed.append((step, dataclasses.replace(self, streams=streams, changes={})))
        return changed

    def _check_changes(self) -> None:
        for step, weights in self.changes.items():
            location = f"data.changes.{step}"
            require(step.isdecimal(), f"{location}: expected a step, 1 or later")
            check(Step, int(step), f"{location}: step")
            for name in weights:
                known = ", ".join(self.streams)
                require(
                    name in self.streams, f"{location}.{name}: no such stream; there are {known}"
                )
                require(
                    self.streams[name].epochs is None,
                    f"{location}.{name}: has no effect on streams that give epochs",
                )
        self.weight_changes()  # each checks its weights
