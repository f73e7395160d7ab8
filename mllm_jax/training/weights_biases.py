"""Write a run's metrics to Weights & Biases too, where `train.wandb` asks for it."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_jax.common.errors import ConfigError, one_line, require
from mllm_jax.config.stage import WandbConfig


def check(config: WandbConfig | None) -> None:
    """Refuses `train.wandb` where its package is missing. Raises ConfigError."""
    require(
        config is None or importlib.util.find_spec("wandb") is not None,
        "train.wandb: the package wandb is missing; pip install 'mllm-jax[wandb]', or remove the "
        "section",
    )


class WandbRun:
    """One start of a run as a Weights & Biases run; starts of one run folder form a group.

    Args:
        config: `train.wandb`.
        run: the run folder; files of an offline run are in its wandb/.
        settings: the stage as nested dicts.

    Raises:
        ConfigError: Weights & Biases refuses to begin, say for want of a key.
    """

    def __init__(self, config: WandbConfig, run: Path, settings: Mapping[str, Any]):
        wandb: Any = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=config.project,
                mode=config.mode,
                dir=str(run),
                group=run.name,
                config=dict(settings),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"train.wandb: {one_line(str(error), 200)}; fix it, or set mode: offline"
            ) from error

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Ends the run; online, waits until all is sent."""
        self._run.finish()
