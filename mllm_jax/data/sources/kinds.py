"""The kinds of source a stream can name. Imports the libraries of all of them."""

from mllm_jax.data.sources.array_record_file import ArrayRecordSource
from mllm_jax.data.sources.base import Source
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.data.sources.tables import ArrowSource, ParquetSource
from mllm_jax.data.sources.text import TextSource
from mllm_jax.data.sources.tfds import TfdsSource
from mllm_jax.data.sources.web_dataset import WebDatasetSource
from mllm_jax.data_config import StreamConfig

FILES = {"json": JsonSource, "text": TextSource}
SPLITS = {
    "parquet": ParquetSource,
    "arrow": ArrowSource,
    "array_record": ArrayRecordSource,
    "tfds": TfdsSource,
    "webdataset": WebDatasetSource,
}


def open_source(stream: StreamConfig) -> Source:
    """The rows that a stream names. Raises ConfigError, see the class of its kind."""
    if stream.kind in FILES:
        return FILES[stream.kind](stream.path)
    return SPLITS[stream.kind](stream.path, stream.split)
