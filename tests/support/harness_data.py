"""Prepared data of two of our tasks, as `prepare --task` leaves them: stories, Italian POPE."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm_jax.__main__ import main
from mllm_jax.evaluation.answers import read_answers
from tests.support.task_data import png

STORIES = [
    ("Mikelek euritakoa hartu zuen.", "Ez zen busti.", "Mendia jan zuen."),
    ("Anek lau sagar erosi zituen.", "Itsasontzia zen.", "Tarta bat egin zuen."),
    ("Haurrak plazan zeuden.", "Jolasean ibili ziren.", "Elurra erosi zuten."),
    ("Txakurra galdu zen.", "Etxera itzuli zen azkenean.", "Gorria."),
    ("Liburua irakurri zuen.", "Urdina.", "Asko gustatu zitzaion amaiera."),
]
OBJECTS = ("gatto", "cane", "ombrello", "bicicletta", "tavolo")


def make(root: Path) -> Path:
    """Writes both into a folder, as if it were `data/tasks`."""
    stories = []
    for number, (story, first, second) in enumerate(STORIES):
        sentences = {f"input_sentence_{n}": f"{story} {n}." for n in range(1, 5)}
        endings = {"sentence_quiz1": first, "sentence_quiz2": second}
        right = {"answer_right_ending": 1 + number % 2}
        stories.append({"story_id": f"s{number}", **sentences, **endings, **right})
    _write(root, "juletxara/xstory_cloze", "eu/eval", stories)
    for number, category in enumerate(("adversarial", "popular", "random")):
        rows = [
            {
                "id": str(n),
                "question": f"C'è un {name} nell'immagine?" + " Guarda bene." * (n % 3),
                "answer": "sì" if (n + number) % 2 else "no",
                "image": {"bytes": png(40 * n), "path": None},
            }
            for n, name in enumerate(OBJECTS)
        ]
        _write(root, "swap-uniba/POPE_IT", f"data/{category}", rows)
    return root


def evaluated(model: Path, task: str, root: Path, out: Path) -> tuple[dict[str, float], list[dict]]:
    """What `mllm-jax evaluate` makes of the prepared data: (metrics, lines of answers.jsonl).

    A question at a time, on one device.
    """
    words = ["evaluate", str(model), "--task", task, "--folder", str(root), "--out", str(out)]
    assert main([*words, "--rows", "1", "--devices", "1"]) == 0
    (result,) = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return result["metrics"], read_answers(out / "answers.jsonl")


def shades(folder: Path, count: int) -> list[Path]:
    """Pictures of noise, which a model without training tells apart."""
    from PIL import Image

    rng = np.random.default_rng(3)
    files = [folder / f"{n}.png" for n in range(count)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file)
    return files


def _write(root: Path, hub: str, name: str, rows: list[dict]) -> None:
    folder = root / hub.replace("/", "--")
    file = folder / f"{name}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    (folder / "hub.json").write_text(json.dumps({"hub": hub, "revision": "abc"}), encoding="utf-8")
