"""Continues a finished run of four steps from its checkpoint before."""

import dataclasses
import shutil
from pathlib import Path

import jax

from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.training.loop import train


def resumed(run: Path, folder: Path) -> Path:
    """A copy of the run in `folder`, continued on one device without its checkpoint of step 4."""
    again = folder / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    config = dataclasses.replace(loading.load(Config, run / "config.yaml"), out=str(again))
    train(config, resume=True, devices=jax.devices()[:1])
    return again
