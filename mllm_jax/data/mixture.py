"""Config -> how often each stream's records come: weights by record or token, epochs, temperature.

weight w by records     a position of the mixture is of this stream with w / sum of w
weight w by tokens      the same for a token: records weigh w / mean tokens of a record
epochs e                the stream is gone through e times while the mixture is gone through
                        once: records weigh e x records
temperature T           shares p of the languages become p^(1/T), normed (T = 1: as they are,
                        large T: equal); Devlin 2018 (multilingual BERT), Arivazhagan et al.
                        2019 (arXiv 1907.05019, section 4)
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from mllm_jax.data_config import DataConfig
from mllm_jax.errors import require


@runtime_checkable
class Measured(Protocol):
    """What is known of a stream without reading it: its examples' lengths, and its languages."""

    sizes: Int64[np.ndarray, "n"]  # tokens
    images: Int64[np.ndarray, "n"]
    languages: tuple[str, ...]

    def __len__(self) -> int: ...


def record_weights(streams: Sequence[Measured], data: DataConfig) -> list[float]:
    """Relative number of positions of each stream.

    Raises:
        ConfigError: a temperature over streams that hold several languages.
    """
    configs = list(data.streams.values())
    counts = np.array([len(stream) for stream in streams], np.float64)
    if configs[0].epochs is not None:  # then all have them, see DataConfig
        weights = np.array([config.epochs for config in configs], np.float64) * counts
    else:
        weights = np.array([config.weight for config in configs], np.float64)
        if data.weights == "tokens":
            weights /= np.array([stream.sizes.mean() for stream in streams])
    if data.temperature != 1:
        weights *= _factors(streams, weights, data)
    return (weights / weights.sum()).tolist()


def passes(streams: Sequence[Measured], data: DataConfig) -> float:
    """Positions in which the mixture is gone through once: all records, or `epochs` times each."""
    epochs = [config.epochs or 1.0 for config in data.streams.values()]
    return sum(times * len(stream) for times, stream in zip(epochs, streams, strict=True))


def _factors(
    streams: Sequence[Measured], weights: Float64[np.ndarray, "s"], data: DataConfig
) -> Float64[np.ndarray, "s"]:
    """What the temperature multiplies the weight of each stream by."""
    languages = []
    for name, stream in zip(data.streams, streams, strict=True):
        require(
            len(stream.languages) == 1,
            f"data.temperature={data.temperature}: stream {name} holds the languages "
            f"{', '.join(stream.languages)}; give every language a stream of its own",
        )
        languages.append(stream.languages[0])
    shares = {
        language: sum(w for w, own in zip(weights, languages, strict=True) if own == language)
        for language in dict.fromkeys(languages)
    }
    total = sum(shares.values())
    return np.array([(shares[own] / total) ** (1 / data.temperature - 1) for own in languages])
