"""What is read: the streams of a mixture, and the shape of a batch. Ground floor."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from mllm_jax.errors import require


@dataclass(frozen=True)
class StreamConfig:
    """One weighted source of records: a file or a folder of shards, and the folder of its images.

    `kind` says how the rows are stored, `layout` what their columns are called, `columns` renames
    single ones of them: {caption: caption_eu}.
    """

    path: str
    images: str | None = None  # where image paths start; default: the folder of `path`
    language: str | None = None  # of records that do not name their own
    weight: float = 1.0  # share of the mixture, relative to the other streams
    format: Literal["plain", "llama3", "llama31"] = "llama31"
    kind: Literal["json", "text", "parquet", "arrow", "array_record", "tfds", "webdataset"] = "json"
    layout: Literal[
        "llava", "caption", "text", "conceptual_captions", "pixmo_ama", "magpie", "cauldron", "wit"
    ] = "llava"
    columns: dict[str, str] = field(default_factory=dict)
    # of a folder with files of several, as `train`; `all` for every file
    split: str | None = None
    # folders outside of its own to which links in its data and image folders may lead
    links: tuple[str, ...] = ()
    # instead of a weight: how often it is gone through while the mixture is gone through once
    epochs: float | None = None
    hub: str | None = None  # data set on the Hugging Face Hub that `prepare` puts into `path`
    revision: str | None = None  # its commit or tag
    # code of a fault (data/faults.py) -> share of the records that may be left out because of it
    skip: dict[str, float] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether its records are documents, read from end to end, not conversations."""
        return self.layout == "text" or self.kind == "text"

    @property
    def index_home(self) -> str:
        """The folder beside the data in which its indexes stand."""
        return f"{self.path.rstrip('/')}.index"

    def __post_init__(self):
        require(
            self.weight > 0,
            f"data.streams.*.weight={self.weight} must be positive; remove the stream instead",
        )
        require(
            self.epochs is None or self.epochs > 0,
            f"data.streams.*.epochs={self.epochs} must be positive",
        )
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
        for code, share in self.skip.items():
            require(
                0 < share <= 1,
                f"data.streams.*.skip.{code}={share} must lie in (0, 1]: the share of records that "
                "may be left out",
            )


@dataclass(frozen=True)
class DataConfig:
    """The mixture, and the shape of a batch.

    A batch is `rows` rows of `length` tokens with `image_slots` images each.
    """

    streams: dict[str, StreamConfig]
    languages: tuple[str, ...]
    weights: Literal["records", "tokens"] = "records"  # what the streams' weights are shares of
    # step -> stream -> weight from that step on, e.g. {1000: {captions_en: 0.1}}
    changes: dict[str, dict[str, float]] = field(default_factory=dict)
    temperature: float = 1.0  # over languages: 1 leaves their shares, larger ones even them out
    length: int = 2048
    image_slots: int = 1
    rows: int = 128
    pack: bool = True
    window: int = 2048  # positions of the mixture that are packed together
    over_long: Literal["drop", "cut", "fail"] = "fail"
    image_fit: Literal["crop", "pad"] = "crop"
    max_pixels: int = 100_000_000  # of one image; larger ones are taken for bombs
    index: str | None = None  # folder of the length indexes; default: beside each stream
    workers: int = 0  # processes that make batches; 0: threads of this process
    threads: int = 4  # that make batches where there are no workers
    prefetch: int = 4  # batches made ahead of the step
    image_cache: int = 256  # MiB of decoded images kept; small data sets are decoded once

    def __post_init__(self):
        require(len(self.streams) > 0, "data.streams: empty; name at least one stream")
        require(len(self.languages) > 0, "data.languages: empty; list the language of every record")
        for name in ("length", "rows", "window", "threads", "max_pixels"):
            require(getattr(self, name) > 0, f"data.{name}={getattr(self, name)} must be positive")
        for name in ("image_slots", "prefetch", "workers", "image_cache"):
            require(
                getattr(self, name) >= 0, f"data.{name}={getattr(self, name)} must not be negative"
            )
        require(self.temperature > 0, f"data.temperature={self.temperature} must be positive")
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
        self._check_changes()
        for name, stream in self.streams.items():
            if stream.language is not None:
                require(
                    stream.language in self.languages,
                    f"data.streams.{name}.language={stream.language!r} is not in data.languages "
                    f"{list(self.languages)}",
                )

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
            require(step.isdecimal() and int(step) > 0, f"{where}: expected a step, 1 or later")
            for name in weights:
                known = ", ".join(self.streams)
                require(name in self.streams, f"{where}.{name}: no such stream; there are {known}")
                require(
                    self.streams[name].epochs is None,
                    f"{where}.{name}: has no effect on streams that give epochs",
                )
        self.weight_changes()  # each checks its weights
