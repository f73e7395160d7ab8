"""Digests of what the stages of a sweep read: first weights, tokenizer, records.

So another file under the same path makes another stage, not a mixture of two.
"""

import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.commands.recipe.summary import checkpoint_digest
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.index.cache import Mixture, open_streams
from mllm_jax.data.index.freshness import sample
from mllm_jax.data.loader import check
from mllm_jax.training import run_folder


class Digests:
    """Digests by what they are of; each is computed once."""

    def __init__(self):
        self._known: dict[str, Any] = {}
        self._tokenizers: dict[Path, Any] = {}

    def __call__(self, path: Sequence[Config]) -> dict[str, Any]:
        """What the last of some stages reads; of a first stage also weights and tokenizer.

        Args:
            path: the stages from the first one on.

        Raises:
            ConfigError: the weights, the tokenizer or the data cannot be read.
        """
        first, stage = path[0], path[-1]
        files = run_folder.tokenizer_folder(first.init)
        if files not in self._tokenizers:
            self._tokenizers[files] = load_tokenizer(files)
        data, model = loading.to_dict(stage.data), loading.to_dict(stage.model)
        key = json.dumps([data["streams"], data, model, str(files)], sort_keys=True)
        if key not in self._known:
            check(stage.data, stage.model, self._tokenizers[files])
            workers = os.cpu_count() or 1
            mixture = Mixture(stage.data, stage.model, self._tokenizers[files], workers)
            self._known[key] = {stream.name: stream.digest for stream in open_streams(mixture)}
        about = {"streams": self._known[key]}
        return about if len(path) > 1 else about | {"start": self._start(first, files)}

    def _start(self, config: Config, files: Path) -> dict[str, Any]:
        tokenizer = self._tokenizers[files].backend_tokenizer.to_str()
        about = {"tokenizer": blake2b(tokenizer.encode(), digest_size=16).hexdigest()}
        weights = config.init.weights
        if weights is not None:
            if weights not in self._known:
                self._known[weights] = weights_digest(Path(weights))
            about["weights"] = self._known[weights]
        return about


def weights_digest(folder: Path) -> str:
    """Of a run's last checkpoint, or of the files of a model or Hugging Face folder.

    Large files are sampled: a copy of another model differs everywhere.

    Raises:
        ConfigError: not a model.
    """
    open_model(folder)
    if checkpoint_steps(folder / "checkpoints"):
        return checkpoint_digest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, sample(path)) for path in files
    ]
    return blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
