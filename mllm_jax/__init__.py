"""Trains multimodal large language models for low-resource languages, in JAX.

    import mllm_jax

    config = mllm_jax.load_config("align.yaml", {"train.steps": 100})
    run = mllm_jax.train(config)
    print(mllm_jax.generate(run, "Zer ikusten da?", images=["1.png"]).text)

The names of `__all__` are the public interface; each is imported when it is first used, so that
`import mllm_jax` loads neither JAX nor NumPy. docs/python.md shows all of them at work.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; `_PUBLIC` is the same for a program
    from mllm_jax.checkpoints.open_model import open_model as open_model
    from mllm_jax.checkpoints.stage_file import load_config as load_config
    from mllm_jax.conversion import conversions as convert
    from mllm_jax.evaluation.runner import evaluate as evaluate
    from mllm_jax.generation.answer import generate as generate
    from mllm_jax.training.loop import train as train
    from mllm_jax.training.mixture import open_mixture as open_mixture

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "convert",
    "evaluate",
    "generate",
    "load_config",
    "open_mixture",
    "open_model",
    "train",
]

_PUBLIC = {  # name -> module:attribute, or the module itself
    "convert": "mllm_jax.conversion.conversions",
    "evaluate": "mllm_jax.evaluation.runner:evaluate",
    "generate": "mllm_jax.generation.answer:generate",
    "load_config": "mllm_jax.checkpoints.stage_file:load_config",
    "open_mixture": "mllm_jax.training.mixture:open_mixture",
    "open_model": "mllm_jax.checkpoints.open_model:open_model",
    "train": "mllm_jax.training.loop:train",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mllm_jax' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
