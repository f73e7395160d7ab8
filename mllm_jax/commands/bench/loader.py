"""`mllm-jax bench --data`: how fast batches are made, without a model, and a far step is found.

Field names as in tests/benchmarks/pytorch_loader.py. CPU seconds are those of this process and of
its workers, so images_per_cpu_second says what one core does. Images are decoded again every time.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints import stage_file
from mllm_jax.common.folders import check_file, write_whole
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.training.run_folder import tokenizer_folder

FAR = 100_000  # the step that is sought
WARMUP = 8  # batches before the clock starts


def main(
    config: str, steps: int, json_file: str | None = None, overrides: Sequence[str] = ()
) -> None:
    """`mllm-jax bench --data --config FILE`: times a stage's loader and prints one JSON object.

    Args:
        config: a stage file.
        steps: timed batches, after WARMUP.
        json_file: where the object is also written.
        overrides: options of the stage, as in `stage_file.load`.

    Raises:
        ConfigError: bad input, as in a run.
    """
    if json_file is not None:
        check_file(json_file)
    text = json.dumps(measure(stage_file.load(config, overrides), steps))
    print(text)
    if json_file is not None:
        write_whole(Path(json_file), text + "\n")


def measure(config: Config, steps: int) -> dict[str, Any]:
    """The figures of a run."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_cache=0))
    tokenizer = load_tokenizer(tokenizer_folder(config.init))
    _timed(config, tokenizer)  # an index that is missing is built here, and not timed
    start_seconds, loader = _timed(config, tokenizer)
    begin = time.perf_counter()
    loader.count(FAR + 1)
    plan_seconds = time.perf_counter() - begin
    fresh = _timed(config, tokenizer)[1]
    begin = time.perf_counter()
    fresh.batch(FAR)
    seek_seconds = time.perf_counter() - begin
    return {
        "workers": config.data.workers,
        **_speed(loader, steps),
        "start_seconds": round(start_seconds, 3),
        "plan_seconds": round(plan_seconds, 3),
        "seek_seconds": round(seek_seconds, 3),
    }


def _timed(config: Config, tokenizer: Any) -> tuple[float, Loader]:
    begin = time.perf_counter()
    loader = Loader(config.data, config.model, tokenizer, config.seed)
    return time.perf_counter() - begin, loader


def _speed(loader: Loader, steps: int) -> dict[str, Any]:
    """The first batches, during which workers start, are not timed."""
    batches = loader.iterate(0, steps + WARMUP)
    for _ in range(WARMUP):
        next(batches)
    before, begin = _cpu_seconds(), time.perf_counter()
    records = images = tiles = tokens = places = slots = 0
    for batch in batches:
        records += len(batch.records)
        images += int(batch.contents.images.sum())
        tiles += int(batch.contents.tiles.sum())
        tokens += int((batch.batch.segments > 0).sum())
        places += batch.batch.segments.size
        slots += batch.batch.pixels.shape[0] * batch.batch.pixels.shape[1]
    seconds, used = time.perf_counter() - begin, _cpu_seconds() - before
    return {
        "records_per_second": round(records / seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "images_per_cpu_second": round(images / used, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "useful_tokens": round(tokens / places, 4),
        "slots_used": round(tiles / slots, 4) if slots else None,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
    }


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
