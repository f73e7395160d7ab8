"""How the index of millions of caption records is built and opened; the tokenizer alone beside it.

Writes synthetic captions (JSONL; they share a thousand pictures), builds their index with all
cores, then measures a fresh start and the plan of far steps in a process of its own. Prints one
JSON object. Images are judged by their headers, as a run does; `prepare` would decode them.

    python tests/benchmarks/big_index.py --records 3000000 --tokenizer DIR --out DIR
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mllm_jax.config.data import StreamConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import DataConfig
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.loader import Loader

WORDS = (
    "txakur beltz bat belardian korrika dabil eta ume bi atzetik doaz etxe zuri handi baten "
    "ondoan ibaia mendia zubia gizon emakume zahar gazte gorri urdin berde kalean hondartzan"
).split()
PICTURES = 1000
FAR = range(100_000, 100_050)  # steps that are planned


def write(records: int, out: Path) -> None:
    """Captions of 5 to 20 words."""
    (out / "images").mkdir(parents=True)
    for n in range(PICTURES):
        Image.new("RGB", (64, 48), (n % 256, n // 4 % 256, 90)).save(out / "images" / f"{n}.jpg")
    random = np.random.default_rng(0)
    with (out / "captions.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, records, 10_000):
            count = min(10_000, records - start)
            lengths = random.integers(5, 21, count)
            words = random.choice(WORDS, int(lengths.sum())).tolist()
            for n, length in enumerate(lengths.tolist(), start=start):
                caption = " ".join(words[:length])
                del words[:length]
                line = {"id": str(n), "image": f"{n % PICTURES}.jpg", "caption": caption}
                file.write(json.dumps(line) + "\n")


def config(out: Path) -> DataConfig:
    """A stage of captions."""
    stream = StreamConfig(
        str(out / "captions.jsonl"), str(out / "images"), "eu", format="plain", layout="caption"
    )
    return DataConfig({"captions": stream}, ("eu",), image_slots=4, rows=8)


def model(tokenizer) -> ModelConfig:
    """CLIP ViT-L/14-336 and Llama's head sizes; no array is made of it."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    language = LanguageConfig(vocab=-(-len(tokenizer) // 64) * 64)
    return ModelConfig(VisionConfig(), ConnectorConfig(), language, image_token=image)


def tokenizer_alone(out: Path, tokenizer, records: int) -> dict[str, float]:
    """Records a second of the same texts, all cores: the tokenizer as called, and its backend."""
    with (out / "captions.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["caption"] for line, _ in zip(file, range(records), strict=False)]
    found = {}
    tokenizer(texts)  # both find words in its cache
    for name, encode in (
        ("transformers_tokenizer", tokenizer),
        ("its_rust_backend", tokenizer.backend_tokenizer.encode_batch),
    ):
        start = time.perf_counter()
        for first in range(0, len(texts), 4096):
            encode(texts[first : first + 4096])
        found[f"{name}_records_per_second"] = round(len(texts) / (time.perf_counter() - start))
    return found


class Watch(threading.Thread):
    """The most memory that this process and its children held at one time, without mapped files.

    Pages of mapped files count in every process's peak, but lie in memory once and can be dropped.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_gib, self._over = 0.0, threading.Event()

    def run(self) -> None:
        """Looks every tenth of a second."""
        while not self._over.wait(0.1):
            own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            held = sum(map(_anonymous, [str(os.getpid()), *own]))
            self.peak_gib = max(self.peak_gib, held / 2**20)

    def stop(self) -> float:
        """Ends, and gives the peak in GiB."""
        self._over.set()
        self.join()
        return self.peak_gib


def _anonymous(process: str) -> int:
    """KiB that a process holds for itself; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def fresh(options: argparse.Namespace) -> None:
    """In a process of its own: opens what is there, finds far steps."""
    tokenizer = load_tokenizer(options.tokenizer)
    begin = time.perf_counter()
    loader = Loader(config(options.out), model(tokenizer), tokenizer, 0)
    loader.rows(0)
    start = time.perf_counter() - begin
    begin = time.perf_counter()
    loader.count(FAR.stop)
    counted = time.perf_counter() - begin
    loader = Loader(config(options.out), model(tokenizer), tokenizer, 0)
    begin = time.perf_counter()
    loader.rows(FAR.start)
    seek = time.perf_counter() - begin
    begin = time.perf_counter()
    for step in FAR:
        loader.rows(step)
    plan = (time.perf_counter() - begin) / len(FAR)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = {"fresh_start_seconds": start, "count_100k_steps_seconds": counted}
    figures |= {"seek_seconds": seek, "plan_milliseconds": 1000 * plan, "fresh_peak_gib": peak}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--records", type=int, default=3_000_000)
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--workers", type=int, default=os.cpu_count())
    p.add_argument("--fresh", action="store_true")
    options = p.parse_args()
    if options.fresh:
        fresh(options)
        return
    if not options.out.is_dir():
        write(options.records, options.out)
    tokenizer = load_tokenizer(options.tokenizer)
    mixture = Mixture(config(options.out), model(tokenizer), tokenizer, workers=options.workers)
    watch = Watch()
    watch.start()
    begin = time.perf_counter()
    open_streams(mixture)
    seconds = time.perf_counter() - begin
    held = watch.stop()
    peaks = [
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    alone = tokenizer_alone(options.out, tokenizer, min(options.records, 300_000))
    words = [sys.executable, __file__, "--fresh", "--out", str(options.out)]
    again = subprocess.run(
        [*words, "--tokenizer", str(options.tokenizer)], check=True, capture_output=True, text=True
    )
    made = {
        "records": options.records,
        "workers": options.workers,
        "build_seconds": round(seconds, 1),
        "records_per_second": round(options.records / seconds),
        **alone,
        "all_processes_peak_gib": round(held, 2),
        "peak_gib": round(peaks[0], 2),  # mapped files included
        "worker_peak_gib": round(peaks[1], 2),  # of the largest
        **json.loads(again.stdout),
    }
    print(json.dumps(made))


if __name__ == "__main__":
    main()
