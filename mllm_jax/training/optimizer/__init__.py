"""AdamW over the trainable parameters: which ones, how far, and what is stored for them."""

from mllm_jax.training.optimizer.adamw import AdamState, Gradient, Optimizer, make_optimizer
from mllm_jax.training.optimizer.parts import assign, check_adapter, merge, split, with_adapter
from mllm_jax.training.optimizer.schedules import make_schedule

__all__ = [
    "AdamState",
    "Gradient",
    "Optimizer",
    "assign",
    "check_adapter",
    "make_optimizer",
    "make_schedule",
    "merge",
    "split",
    "with_adapter",
]
