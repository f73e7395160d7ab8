"""Computes how many records of each stream a pass has, from weights, epochs and temperature.

weight w by records     a position of the mixture is of this stream with w / sum of w
weight w by tokens      the same for a token: records weigh w / mean tokens of a record
epochs e                the stream is repeated e times while the mixture is passed through
                        once: e x records of it in every pass, exactly
temperature T           shares p of the languages become p^(1/T), normed (T = 1: as they are,
                        large T: equal); Devlin 2018 (multilingual BERT), Arivazhagan et al.
                        2019 (arXiv 1907.05019, section 4)
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from mllm_jax.common.errors import require
from mllm_jax.config.data import DataConfig
from mllm_jax.data.mixture.passes import BLOCK, Passes


@runtime_checkable
class Measured(Protocol):
    """What is known of a stream without reading it: its examples' lengths, and its languages."""

    sizes: Int64[np.ndarray, "n"]  # tokens
    tiles: Int64[np.ndarray, "n"]  # image slots
    languages: tuple[str, ...]

    def __len__(self) -> int: ...


def record_weights(streams: Sequence[Measured], data: DataConfig) -> list[float]:
    """Each stream's share of the positions.

    Raises:
        ConfigError: a temperature over streams that hold several languages.
    """
    configs = list(data.streams.values())
    if data.by_epochs:
        counts = [float(rate) for rate in _rates(streams, data)]
        return [count / sum(counts) for count in counts]
    weights = np.array([config.weight for config in configs], np.float64)
    if data.weights == "tokens":
        weights /= np.array([stream.sizes.mean() for stream in streams])
    if data.temperature != 1:
        weights *= _factors(streams, weights, data)
    return (weights / weights.sum()).tolist()


def stream_passes(streams: Sequence[Measured], data: DataConfig) -> Passes:
    """Records of each stream: exactly `epochs` times all, or by weights in periods of BLOCK.

    No share by weights is further from its target than 1 / BLOCK.

    Raises:
        ConfigError: a share below half a record in BLOCK, or a pass of less than one record.
    """
    if data.by_epochs:
        rates = _rates(streams, data)
        require(
            sum(rates) >= 1,
            f"data.streams: with these epochs the mixture is gone through in {float(sum(rates)):.3}"
            " records; raise the epochs",
        )
        return Passes(rates)
    return Passes(apportion(list(data.streams), record_weights(streams, data)).tolist())


def mixture_passes(streams: Sequence[Measured], data: DataConfig) -> Passes:
    """What `train.epochs` counts: `epochs` times each stream, or as many records as there are."""
    if data.by_epochs:
        return stream_passes(streams, data)
    return Passes([sum(len(stream) for stream in streams)])


def apportion(names: Sequence[str], weights: Sequence[float]) -> Int64[np.ndarray, "s"]:
    """Positions of each stream in BLOCK of them: largest remainders (Hamilton's method).

    Raises:
        ConfigError: see `stream_passes`.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * BLOCK
    for name, share in zip(names, exact.tolist(), strict=True):
        require(
            share >= 0.5,
            f"data.streams.{name}.weight: its share {share / BLOCK:.1e} of the records is too "
            f"small to be sampled (minimum {0.5 / BLOCK:.1e}); increase it or remove the stream",
        )
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    rest = BLOCK - int(counts.sum())
    by_remainder = np.argsort(counts - exact, kind="stable")
    if rest >= 0:
        counts[by_remainder[:rest]] += 1
    else:  # streams that were raised to one position: the largest gives it
        counts[np.argmax(counts)] += rest
    return counts


def _rates(streams: Sequence[Measured], data: DataConfig) -> list[Fraction]:
    """Records of each stream in a pass, by its epochs as they are written: 0.1 is a tenth."""
    configs = data.streams.values()
    return [
        Fraction(str(config.epochs)) * len(stream)
        for config, stream in zip(configs, streams, strict=True)
    ]


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
        language: sum(w for w, code in zip(weights, languages, strict=True) if code == language)
        for language in dict.fromkeys(languages)
    }
    total = sum(shares.values())
    return np.array([(shares[code] / total) ** (1 / data.temperature - 1) for code in languages])
