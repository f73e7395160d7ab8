"""Reads a connector alone, as the original LLaVA saves it after its first stage.

`mm_projector.bin` (or the same as safetensors) holds `model.mm_projector.weight` and `.bias`, or
`model.mm_projector.0.*` and `.2.*` of an mlp2x_gelu. So a published first stage can be continued
with the tower and the language model that it was trained for.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm_jax.checkpoints.hf.names import BY_NAME, BY_PATH, canonical, hf_shape, to_ours
from mllm_jax.checkpoints.hf.pickled import read_pickled
from mllm_jax.checkpoints.hf.tensor_files import FORMATS, StoredTensor, read_header
from mllm_jax.checkpoints.leaves import Leaf, compare
from mllm_jax.common.errors import quoted, require
from mllm_jax.config.model import ConnectorConfig

LINEAR = "connector/linear_"


class Projector:
    """An opened file: its `config`, and the connector's parameters, not read yet."""

    def __init__(self, path: str | Path):
        """Opens the file.

        Raises:
            ConfigError: no such file, one that cannot be read, or with other tensors.
        """
        self.path = Path(path)
        read = read_header if self.path.suffix == ".safetensors" else read_pickled
        self._tensors: dict[str, StoredTensor] = {}
        for name, tensor in read(self.path).items():
            row = BY_NAME.get(canonical(name) or "")
            require(
                row is not None and row.path.startswith(LINEAR),
                f"{self.path}: {quoted(name)} is not of a connector of one or two linear layers "
                "(linear, mlp2x_gelu)",
            )
            assert row is not None
            require(
                row.path not in self._tensors,
                f"{self.path}: two tensors are {row.name}; remove one",
            )
            tensor.check()
            self._tensors[row.path] = tensor
        self.config = ConnectorConfig(
            kind="mlp" if f"{LINEAR}2/kernel" in self._tensors else "linear",
            bias=f"{LINEAR}1/bias" in self._tensors,
        )

    def leaves(self, abstract: Mapping[str, Any]) -> dict[str, Leaf]:
        """The connector's leaves.

        Args:
            abstract: path -> shape, of a whole model with this connector.

        Raises:
            ConfigError: a tensor is missing, or of another shape than the model's.
        """
        shapes = {p: tuple(x.shape) for p, x in abstract.items() if p.startswith("connector/")}
        compare(
            str(self.path),
            {BY_PATH[p].name: np.broadcast_to(0, hf_shape(p, x)) for p, x in shapes.items()},
            {BY_PATH[p].name: tensor for p, tensor in self._tensors.items()},
            "it was trained for another tower or language model",
        )
        return {path: self._leaf(path, shape) for path, shape in shapes.items()}

    def _leaf(self, path: str, shape: tuple[int, ...]) -> Leaf:
        tensor = self._tensors[path]
        return Leaf(shape, FORMATS[tensor.format], partial(_read, path, tensor, shape))


def _read(path: str, tensor: StoredTensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(to_ours(path, tensor.read(), shape))
