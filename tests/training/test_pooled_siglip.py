"""A stage with SigLIP's tower and a pooling connector: trains, answers, and is not exported."""

from pathlib import Path

import jax
import pytest

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.conversion import conversions
from mllm_jax.generation.answer import generate
from mllm_jax.training.loop import train
from tests.support import tiny

# 3 x 3 patches, so 2 x 2 vectors, of a side that holds no whole number of patches
TOWER = {
    "image_size": 16, "patch_size": 5, "width": 16, "mlp": 32, "layers": 2, "heads": 2,
    "kind": "siglip", "activation": "gelu_pytorch_tanh", "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "resample": "bilinear",
}  # fmt: skip


@pytest.mark.slow
def test_it_trains_and_answers(data: Path, tmp_path: Path) -> None:
    model = tiny.tree(data, tmp_path)["model"]
    model |= {"vision": TOWER, "connector": {"kind": "mlp", "pool": "shuffle"}}
    config = tiny.config(
        data,
        tmp_path / "run",
        model=model,
        data={"image_fit": "stretch"},
        train={"steps": 2, "save_every": 2},
    )
    train(config, devices=jax.devices()[:1])
    lines = tiny.numbers(tmp_path / "run")
    assert any(line.get("loss", 0) > 0 for line in lines)
    opened = open_model(tmp_path / "run")
    assert opened.image_fit == "stretch"
    assert opened.config.model.patches == 4
    image = data / "images" / "0.png"
    answer = generate(tmp_path / "run", "Zein?", [image], max_new_tokens=2, end_ids=())
    assert answer.prompt_tokens.count(tiny.VOCAB - 1) == 4
    assert len(answer.tokens) == 2
    with pytest.raises(ConfigError, match=r"connector\.pool=shuffle: .*cannot be exported"):
        conversions.to_hf(tmp_path / "run", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
