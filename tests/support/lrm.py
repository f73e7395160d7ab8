"""LRM-LLaVA at a small size: configs/lrm/llama3 over what `corpus tasks` makes of aligned records.

Sizes of the network, of the data and of the run are replaced, and the streams by those of
streams.yaml; what is trained, learning rates and formats are those of the files.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mllm_jax.corpus.tasks.files import TASKS, Options
from mllm_jax.corpus.tasks.files import run as make_tasks
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.sources.json_file import JsonSource
from mllm_jax.digits.tokenizer import make_tokenizer
from tests.support import ndino

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lrm" / "llama3"
STEPS = 4
STAGES = {"align": ("mvqa",), "instruct": TASKS}
Record = dict[str, Any]
# easy-VQA's words in other languages: ours
QUESTIONS = {
    "what shape is in the image?": {
        "eu": "zer forma dago irudian?",
        "it": "che forma c'è nell'immagine?",
        "es": "¿qué forma hay en la imagen?",
    },
    "what color is the shape?": {
        "eu": "zer koloretakoa da forma?",
        "it": "di che colore è la forma?",
        "es": "¿de qué color es la forma?",
    },
}
ANSWERS = {
    "circle": ("zirkulua", "cerchio", "círculo"),
    "rectangle": ("laukizuzena", "rettangolo", "rectángulo"),
    "triangle": ("triangelua", "triangolo", "triángulo"),
    "red": ("gorria", "rosso", "rojo"),
    "green": ("berdea", "verde", "verde"),
    "blue": ("urdina", "blu", "azul"),
    "black": ("beltza", "nero", "negro"),
    "gray": ("grisa", "grigio", "gris"),
    "brown": ("marroia", "marrone", "marrón"),
    "yellow": ("horia", "giallo", "amarillo"),
    "teal": ("berde-urdina", "verde acqua", "verde azulado"),
}


def aligned(key: str, image: str, question: str, answer: str) -> Record:
    """A question of QUESTIONS about a picture, in four languages."""
    answers = dict(zip(("eu", "it", "es"), ANSWERS[answer], strict=True))
    return {
        "id": key,
        "image": image,
        "q": {"en": question, **QUESTIONS[question]},
        "a": {"en": answer, **answers},
    }


def make_project(
    root: Path, captions: Sequence[Record], questions: Sequence[Record], images: Path
) -> Path:
    """Writes tasks, tokenizer, first weights, stage files and recipe; gives the recipe file.

    Args:
        root: an empty folder.
        captions, questions: aligned records of the two stages.
        images: where their image paths start.
    """
    texts, blocks = [], {}
    for (stage, tasks), records in zip(STAGES.items(), (captions, questions), strict=True):
        file, out = root / f"{stage}.jsonl", root / "data" / stage
        file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        options = Options(tasks=tasks, images=str(images), format="llama3")
        make_tasks(JsonSource(file), str(file), out, options)
        blocks[stage] = yaml.safe_load((out / "streams.yaml").read_text("utf-8"))
        for made in sorted(out.glob("*.jsonl")):
            lines = map(json.loads, made.read_text("utf-8").splitlines())
            texts += [turn["value"] for line in lines for turn in line["conversations"]]
    make_tokenizer(texts, root / "tokenizer", TEMPLATES["llama3"], ndino.VOCAB)
    heldout = root / "data" / "instruct" / "mvqa_eu.jsonl"
    few = root / "heldout.jsonl"
    few.write_text("".join(heldout.read_text("utf-8").splitlines(keepends=True)[:4]), "utf-8")
    for stage, block in blocks.items():
        tree = ndino.small(yaml.safe_load((CONFIGS / f"{stage}.yaml").read_text("utf-8")))
        tree["data"] |= {**block, "length": 512}
        own = {"path": str(few), "images": str(images), "format": "llama3", "task": "mvqa"}
        held = {"streams": {"few": own}, "every": STEPS, "records": 4}
        tree["train"] |= {"steps": STEPS, "save_every": STEPS, "evaluate": held}
        tree["init"] = {"weights": str(root / ("start" if stage == "align" else "out/align"))}
        tree["out"] = str(root / "out" / stage)
        (root / f"{stage}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
        if stage == "align":
            ndino.write_start(root / "start", root / "tokenizer", tree["model"])
    recipe = yaml.safe_load((CONFIGS / "recipe.yaml").read_text("utf-8"))
    evaluate = {"data": str(few), "images": str(images), "max_new_tokens": 4, "rows": 4}
    recipe |= {"out": str(root / "out"), "export": "float32", "evaluate": evaluate}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return root / "recipe.yaml"
