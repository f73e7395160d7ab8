"""The stage of configs/latxa_instruct at a small size: its own files over given records.

Sizes of the network, of the data and of the run are replaced; rates, schedule, decay, noise,
formats and proportions are those of the files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mllm_jax.checkpoints.hf.tokenizer import special_ids
from mllm_jax.checkpoints.hf.writer import write_hf
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import FolderConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "latxa_instruct"
VOCAB = 352
LANGUAGE = {"width": 48, "mlp": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 12,
            "max_length": 512}  # fmt: skip
Record = dict[str, Any]


def chat(key: str, question: str, answer: str) -> Record:
    """A record of Magpie's columns."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"uuid": key, "conversations": turns}


def make_project(
    root: Path,
    documents: Mapping[str, Sequence[str]],
    chats: Mapping[str, Sequence[Record]],
    tokenizer: Path | None = None,
) -> Path:
    """Writes recipe, stage file, records and first weights; gives the recipe file.

    Args:
        root: an empty folder.
        documents: stream of the stage file -> texts; streams without any are removed.
        chats: likewise, in Magpie's columns; besides `aya_eu` and `magpie_ultra_en`, held out.
        tokenizer: a folder; otherwise one is made of the texts.
    """
    stage = yaml.safe_load((CONFIGS / "instruct.yaml").read_text("utf-8"))
    streams = stage["data"]["streams"]
    held = stage["train"]["evaluate"]["streams"]
    records: dict[str, Sequence[Record]] = {
        name: [{"text": text} for text in texts] for name, texts in documents.items()
    }
    records |= chats
    for name, lines in records.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (streams if name in streams else held)[name]["path"] = str(root / f"{name}.jsonl")
    stage["data"]["streams"] = {name: of for name, of in streams.items() if name in records}
    for of in held.values():
        of["layout"] = "magpie"
    if tokenizer is None:
        tokenizer = root / "tokenizer"
        make_tokenizer(_texts(records), tokenizer, TEMPLATES["llama31"], VOCAB)
    _small(stage, json.loads((tokenizer / "tokenizer.json").read_text("utf-8")))
    write_llama(root / "llama", tokenizer, stage["model"])
    stage["init"] = {"weights": str(root / "llama")}
    (root / "instruct.yaml").write_text(yaml.safe_dump(stage, sort_keys=False), "utf-8")
    heldout = [
        {"id": line["uuid"], "language": name[-2:], "conversations": line["conversations"]}
        for name in held
        for line in records[name]
    ]
    (root / "heldout.json").write_text(json.dumps(heldout, ensure_ascii=False), "utf-8")
    recipe = yaml.safe_load((CONFIGS / "recipe.yaml").read_text("utf-8"))
    recipe |= {"out": str(root / "out"), "export": "float32"}
    recipe["evaluate"] = {"data": str(root / "heldout.json"), "max_new_tokens": 4, "rows": 4}
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return file


def _texts(records: Mapping[str, Sequence[Record]]) -> list[str]:
    texts = []
    for lines in records.values():
        for line in lines:
            texts += [turn["value"] for turn in line.get("conversations", ())]
            texts += [line["text"]] if "text" in line else []
    return texts


def _small(stage: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    """The stage file's tree at the sizes above, in place."""
    added = [token["id"] for token in tokenizer["added_tokens"]]
    vocab = max([*tokenizer["model"]["vocab"].values(), *added]) + 1
    rope = stage["model"]["language"]["rope"]
    stage["model"]["language"] = {**LANGUAGE, "vocab": vocab, "rope": rope}
    stage["data"] |= {"length": 192, "rows": 4, "window": 32, "threads": 1, "prefetch": 1}
    stage["train"] |= {"save_every": 4}
    stage["train"]["evaluate"] |= {"every": 4, "records": 4}
    stage["compute"] = {"compute": "float32", "remat": "none", "loss_chunk": 32}
    stage["mesh"] = {"data": 1}


def write_llama(out: Path, files: Path, model: Mapping[str, Any]) -> None:
    """A Hugging Face folder of LlamaForCausalLM with random weights; norms are near 1."""
    config = loading.build(ModelConfig, dict(model))
    random = np.random.default_rng(0)
    leaves = {}
    for path, shape in conversions.abstract(config).items():
        noise = random.standard_normal(shape.shape, np.float32)
        numbers = 1 + 0.1 * noise if path.endswith("scale") else 0.15 * noise
        leaves[path] = Leaf(numbers.shape, numbers.dtype, lambda x=numbers: x)
    out.mkdir()
    write_hf(out, FolderConfig(config, "float32"), leaves, files, special_ids(files), "crop")


# ------------------------------------------------------------------------------------- made records

WORDS = "etxe mendi ibai itsaso zuhaitz lore hodei eguzki ilargi izar harri sute".split()
ENGLISH = "house mountain river sea tree flower cloud sun moon star stone fire".split()


def made() -> tuple[dict[str, list[str]], dict[str, list[Record]]]:
    """Documents of two streams, one of them longer than a row, and conversations of both languages.

    Held out are conversations of other words.
    """
    pairs = [(a, b) for a in range(12) for b in range(12) if a != b]
    documents = {
        "egunkaria": [f"{WORDS[a]} {WORDS[b]} " * (1 + a) for a, b in pairs[:20]],
        "wikipedia": [f"{WORDS[a]}: {WORDS[b]}." for a, b in pairs[20:31]],
    }
    documents["wikipedia"].append(" ".join(WORDS * 24))
    chats = {
        "magpie_eu": _talks(WORDS, pairs[:9], "?"),
        "magpie_en": _talks(ENGLISH, pairs[9:22], "?"),
        "aya_eu": _talks(WORDS, pairs[40:46], "!"),
        "magpie_ultra_en": _talks(ENGLISH, pairs[46:52], "!"),
    }
    return documents, chats


def _talks(words: Sequence[str], pairs: Sequence[tuple[int, int]], mark: str) -> list[Record]:
    return [
        chat(f"{words[0]}{mark}{n}", f"{words[a]}{mark}", f"{words[b]} {words[a]}")
        for n, (a, b) in enumerate(pairs)
    ]
