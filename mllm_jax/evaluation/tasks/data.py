"""States where the rows of a task are: the sections `data.*` of a task file."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import Bound, NameText, PathText, Section, Size, Text

LONGEST = 100_000  # characters of a text in a task file


@dataclass(frozen=True)
class Lines(Bound):
    """Text of several lines, as a prompt."""

    def problem(self, value: Any) -> str | None:
        if len(value) > LONGEST:
            return f"has {len(value):,} characters; at most {LONGEST:,} are allowed"
        return None if value.isprintable() or "\n" in value else "holds control characters"


Prompt = Annotated[str, Lines()]
Prompts = Annotated[dict[NameText, Prompt], Size("[0, 1_000]")]
Column = Annotated[str, Text(200)]
Columns = Annotated[dict[NameText, Column], Size("[0, 100]")]
Names = Annotated[tuple[Column, ...], Size("[0, 100]")]


@dataclass(frozen=True)
class Pictures(Section, at="data.*.pictures"):
    """A table of images, by which questions that name an image by a key find it."""

    path: PathText
    """Folder or file of the table, in the folder of its data set."""
    hub: NameText | None = None
    """Data set on the Hub, if not that of the questions."""
    revision: NameText | None = None
    """Commit or tag of `hub`."""
    key: Column = "id"
    """Column with the key."""
    image: Column = "image"
    """Column with the image."""


@dataclass(frozen=True)
class Data(Section, at="data.*"):
    """The rows of one language of a task."""

    hub: NameText | None = None
    """Data set on the Hugging Face Hub, which `mllm-jax prepare --task` downloads."""
    revision: NameText | None = None
    """Commit or tag of `hub`; without it `prepare` asks for one."""
    files: Names = ()
    """Which files of `hub` are downloaded, as `data/test-*`; by default all."""
    path: PathText | None = None
    """File or folder of the rows: inside of `hub`, else beside the task file."""
    split: NameText | None = None
    """Which files of a folder with several splits are read, as `test`."""
    categories: Names = ()
    """Splits that are read one after the other; each is the category of its questions."""
    images: PathText | None = None
    """Folder in which image paths start; by default that of the rows."""
    image_name: Column = "{}"
    """File name of an image, where {} is the value of its column, as `{}.jpg`."""
    pictures: Pictures | None = None
    """A table of images by key, where rows hold a key."""
    columns: Columns = field(default_factory=dict)
    """Columns under other names than the task's."""
    only: Columns = field(default_factory=dict)
    """Rows that are read: those whose columns have these values, as `{lang: IT}`."""

    def __post_init__(self):
        super().__post_init__()
        stated = self.hub is not None or self.path is not None
        require(stated, "data.*: give a path, or a hub to fetch from")

    def hubs(self) -> dict[str, str | None]:
        """Data sets that are fetched, with their revisions."""
        parts = [one for one in (self, self.pictures) if one is not None]
        return {one.hub: one.revision for one in parts if one.hub is not None}
