"""The kinds of source a stream can name. Imports the libraries of all of them."""

from collections.abc import Callable
from pathlib import Path

from mllm_jax.data.sources.array_record_file import ArrayRecordSource
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.data.sources.tables import ArrowSource, ParquetSource
from mllm_jax.data.sources.text import TextSource
from mllm_jax.data.sources.tfds import TfdsSource
from mllm_jax.data.sources.web_dataset import WebDatasetSource

KINDS: dict[str, Callable[[str | Path], Source]] = {
    "json": JsonSource,
    "text": TextSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "array_record": ArrayRecordSource,
    "tfds": TfdsSource,
    "webdataset": WebDatasetSource,
}
