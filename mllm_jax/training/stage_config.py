"""Reads a stage file for Python programs, with overrides as a dict."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.config import loading
from mllm_jax.config.stage import Config


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a stage file, as the commands do.

        load_config("align.yaml", {"train.steps": 100, "optimizer.learning_rate": 1e-4})

    Args:
        path: the YAML file.
        overrides: key of an option with its section -> value; docs/config.md lists all keys.

    Raises:
        ConfigError: one line naming the key, the value and what is allowed.
    """
    # JSON is YAML: so the same reader checks what comes from here and from the command line
    words = [f"--{k}={json.dumps(v, default=os.fspath)}" for k, v in (overrides or {}).items()]
    return loading.load(Config, path, words)
