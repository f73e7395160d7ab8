"""The tree of configs/ndino at a small size: its own recipe and stage files over given records.

Sizes of the network, of the data and of the run are replaced; what is trained, the learning rates,
schedules, formats and the switches of the tiles are those of the files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.hf.processor import write_processor
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import FolderConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer
from tests.support import weights

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "ndino"
FILES = ("mlp", "pt", "it", "long")
STEPS, SAVE_EVERY, VOCAB = 6, 2, 352
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "mlp": 64, "layers": 3, "heads": 2,
          "feature_layer": -2}  # fmt: skip
LANGUAGE = {"vocab": VOCAB, "width": 48, "mlp": 96, "layers": 2, "heads": 4, "kv_heads": 2,
            "head_dim": 12, "max_length": 512, "rope": {"theta": 500000.0}}  # fmt: skip
GRIDS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]  # those of the files, in small
Record = dict[str, Any]


class Source(NamedTuple):
    """Records of one stage, and where their images are."""

    records: Sequence[Record]
    images: Path
    language: str = "it"


def record(
    key: str, question: str, answer: str, images: Sequence[str] = (), language: str = "it"
) -> Record:
    """A LLaVA record of one round; its images come first, as in LLaVA-NeXT."""
    turns = [
        {"from": "human", "value": "<image>\n" * len(images) + question},
        {"from": "gpt", "value": answer},
    ]
    pictures = {"image": list(images) if len(images) > 1 else images[0]} if images else {}
    return {"id": key, **pictures, "language": language, "conversations": turns}


def make_project(root: Path, sources: Mapping[str, Source], heldout: Source) -> Path:
    """Writes recipe, stage files, records, tokenizer and first weights; gives the recipe file.

    Args:
        root: an empty folder.
        sources: of each of FILES.
        heldout: what the variants are evaluated on.
    """
    for name, source in {**sources, "heldout": heldout}.items():
        text = json.dumps(source.records, ensure_ascii=False)
        (root / f"{name}.json").write_text(text, encoding="utf-8")
    texts = [
        turn["value"]
        for source in sources.values()
        for one in source.records
        for turn in one["conversations"]
    ]
    make_tokenizer(texts, root / "tokenizer", TEMPLATES["llama3"], VOCAB)
    for name in FILES:
        tree = small(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8")))
        (stream,) = {of["format"] for of in tree["data"]["streams"].values()}
        tree["data"]["streams"] = {name: {"path": str(root / f"{name}.json"), "format": stream,
                                          "images": str(sources[name].images),
                                          "language": sources[name].language}}  # fmt: skip
        tree["init"] = {"weights": str(root / "start")}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
        if name == "mlp":
            write_start(root / "start", root / "tokenizer", tree["model"])
    recipe = yaml.safe_load((CONFIGS / "recipe.yaml").read_text("utf-8"))
    recipe |= {
        "out": str(root / "out"),
        "export": "float32",
        "evaluate": {
            "data": str(root / "heldout.json"),
            "images": str(heldout.images),
            "max_new_tokens": 4,
            "rows": 4,
        },
    }
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return file


def small(tree: dict[str, Any]) -> dict[str, Any]:
    """A stage file's tree at the sizes above."""
    model, data, train = tree["model"], tree["data"], tree["train"]
    model |= {"vision": VISION, "language": LANGUAGE, "image_token": VOCAB - 1}
    if "grids" in model:
        model["grids"]["sizes"] = GRIDS
    packed = {"pack": True, "rows": 2, "length": 256, "image_slots": 8, "window": 16}
    data |= packed | {"threads": 1, "prefetch": 1}
    train.pop("epochs", None)
    train |= {"steps": STEPS, "save_every": SAVE_EVERY, "microbatches": 1, "keep": 3}
    tree["compute"] = {"compute": "float32", "remat": "none", "loss_chunk": 64}
    tree["mesh"] = {"data": 1}
    return tree


def write_start(out: Path, files: Path, model: dict[str, Any]) -> None:
    """A model folder of random weights; norms near 1, so that all layers count."""
    config = loading.build(ModelConfig, model)
    random = np.random.default_rng(0)
    numbers = {}
    for path, leaf in conversions.abstract(config).items():
        noise = random.standard_normal(leaf.shape, np.float32)
        numbers[path] = 1 + 0.1 * noise if path.endswith("scale") else 0.15 * noise
    out.mkdir()
    hf_files.copy_files(files, out)
    write_processor(out, config, "crop")
    loading.dump(FolderConfig(config), out / "config.yaml")
    weights.save(numbers, out)


# ------------------------------------------------------------------------------------- made records

COLOURS = {"rosso": (200, 30, 30), "verde": (30, 160, 60), "blu": (40, 60, 200),
           "nero": (10, 10, 10), "bianco": (245, 245, 245), "giallo": (240, 220, 40)}  # fmt: skip
ENGLISH = dict(zip(COLOURS, ("red", "green", "blue", "black", "white", "yellow"), strict=True))
SIZES = ((40, 40), (64, 32), (30, 70), (100, 24), (48, 90), (20, 20))  # width, height


def made_sources(images: Path, count: int = 24) -> tuple[dict[str, Source], Source]:
    """Records about pictures of two colours, of several shapes; the folder `images` is made."""
    images.mkdir(parents=True)
    names = list(COLOURS)
    pairs = [(names[n % 6], names[(n // 3 + 2) % 6]) for n in range(count)]
    for n, (left, right) in enumerate(pairs):
        width, height = SIZES[n % len(SIZES)]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2], pixels[:, width // 2 :] = COLOURS[left], COLOURS[right]
        Image.fromarray(pixels).save(images / f"{n}.png")
    captions, sections, questions, long = [], [], [], []
    for n, (a, b) in enumerate(pairs):
        key, file = str(n), f"{n}.png"
        captions.append(record(key, "Describe.", f"{ENGLISH[a]} beside {ENGLISH[b]}", [file], "en"))
        sections.append(record(key, "", f"La figura mostra il {a} accanto al {b}.", [file]))
        both = [file, f"{(n + 1) % count}.png"] if n % 6 == 0 else [file]
        questions.append(record(key, "Che colore c'è a sinistra?", a.capitalize(), both))
        long.append(
            record(key, "Descrivi la figura.", f"A sinistra c'è il {a}, a destra il {b}.", [file])
        )
    streams = {"mlp": captions, "pt": sections, "it": questions, "long": long}
    sources = {
        name: Source(of, images, "en" if name == "mlp" else "it") for name, of in streams.items()
    }
    return sources, Source(questions[:4], images)
