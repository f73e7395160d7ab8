"""A small byte-level tokenizer of the Llama-3 kind, and writers of small streams."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mllm_jax.config.data import DataConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
]
# meta-llama/llama-models, models/llama3/tokenizer.py
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "Zer ikusten da irudian? Txakur beltz bat belardian korrika, eta ume bi atzetik.",
    "What is in the picture? A black dog runs on the grass, and two children follow it.",
    "user assistant system Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """About 350 tokens; merges within words, so spans do not fall on single characters."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[4],
        extra_special_tokens=[SPECIAL[1], *SPECIAL[2:4], SPECIAL[5]],
    )


@pytest.fixture(scope="session")
def image_token(tokenizer: PreTrainedTokenizerFast) -> int:
    token = tokenizer.convert_tokens_to_ids("<image>")
    assert isinstance(token, int)
    return token


@pytest.fixture(scope="session")
def model(image_token: int) -> ModelConfig:
    """Images of 4 pixels in 4 patches."""
    return ModelConfig(
        vision=VisionConfig(image_size=4, patch_size=2, width=8, mlp=8, layers=2, heads=2),
        connector=ConnectorConfig(),
        language=LanguageConfig(
            vocab=512, width=8, mlp=8, layers=1, heads=2, kv_heads=1, head_dim=4
        ),
        image_token=image_token,
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("a.json", objects)` or `write("a.jsonl", objects)` or raw text; gives the path."""

    def put(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, str):
            text = content
        elif path.suffix == ".jsonl":
            text = "\n".join(json.dumps(item, ensure_ascii=False) for item in content) + "\n"
        else:
            text = json.dumps(content, ensure_ascii=False, indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    """`picture("a.png", 7)` writes a plain 5 x 4 image of that grey value."""

    def put(name: str, grey: int = 100, size: tuple[int, int] = (5, 4)) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(tmp_path / name)
        return name

    return put


@pytest.fixture
def make_data() -> Callable[..., DataConfig]:
    """A data section with small defaults."""

    def make(streams: dict[str, Any], **changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "languages": ("eu", "en"),
            "length": 96,
            "image_slots": 3,
            "rows": 4,
            "window": 16,
            "over_long": "drop",
            "threads": 2,
            "prefetch": 2,
        }
        return DataConfig(streams=streams, **(values | changes))

    return make
