"""A model folder of the tiny stage, whose numbers no narrower format holds; nothing is trained."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.hf.processor import write_processor
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.params import save_params
from mllm_jax.config import loading
from mllm_jax.config.stage import FolderConfig
from mllm_jax.conversion import conversions
from tests.support import tiny


def arrays(data: Path, **sections: Any) -> dict[str, np.ndarray]:
    """Path -> numbers: the tower in float32, the language model in bfloat16 and float16.

    `sections` are of the stage, as `tiny.config` takes them.
    """
    model, random = tiny.config(data, data, **sections).model, np.random.default_rng(0)
    found = {}
    for path, x in conversions.abstract(model).items():
        numbers = random.standard_normal(x.shape, np.float32) * 0.1
        half = np.float16 if "attention" in path else ml_dtypes.bfloat16
        found[path] = numbers.astype(half) if path.startswith("language/") else numbers
    return found


def model_folder(data: Path, out: Path, **sections: Any) -> Path:
    """Writes a model folder of `arrays` with the tokenizer of the tiny stage."""
    out.mkdir(parents=True)
    hf_files.copy_files(data / "tokenizer", out)
    config = tiny.config(data, out, **sections)
    write_processor(out, config.model, config.data.image_fit)
    loading.dump(FolderConfig(config.model), out / "config.yaml")
    save(arrays(data, **sections), out)
    return out


def save(numbers: dict[str, np.ndarray], folder: Path) -> None:
    """Writes `params` of a model folder."""
    leaves = {path: Leaf(x.shape, x.dtype, lambda x=x: x) for path, x in numbers.items()}
    save_params(folder / "params", leaves)
