"""Writes a linear connector as the two layers that LLaVA always has, and recognises it again.

    form      linear_1        activation   linear_2           opens in
    gelu      [I; -I; 0], 0   gelu         [W, -W, 0], bias   every runtime
    linear    W, bias         linear       I, 0               transformers

gelu(x) - gelu(-x) = x, so both compute W x + bias. vLLM has no activation "linear" and llama.cpp
always applies GELU, so `gelu` is the default. It needs a text width of at least twice the vision
width C: the matrices above are Hugging Face's, [D, C] and [D, D].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mllm_jax.checkpoints.hf.names import C
from mllm_jax.checkpoints.leaves import Index, Leaf
from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.json_file import read_json
from mllm_jax.config.model import ModelConfig

Form = Literal["gelu", "linear"]
FORMS: tuple[Form, ...] = ("gelu", "linear")
KERNEL, BIAS = "connector/{}/kernel", "connector/{}/bias"  # of linear_1 and linear_2


# --------------------------------------------------------------------------------------- exporting


def choose_form(model: ModelConfig, forced: Form | None = None) -> Form | None:
    """The form in which a model's connector is exported; None where there is no choice.

    Args:
        model: what the network is.
        forced: the form to take; default gelu where it fits.

    Raises:
        ConfigError: `forced` does not fit, the model has no linear connector, or one that pools,
            which no class of transformers can hold.
    """
    vision, connector, language = model.vision, model.connector, model.language
    require(
        connector is None or connector.pool == "none",
        f"model.connector.pool={connector and connector.pool}: LlavaForConditionalGeneration has "
        "no pooling, so this model cannot be exported; use its model folder or run",
    )
    if vision is None or language is None or connector is None or connector.kind != "linear":
        kind = "no" if connector is None else f"an {connector.kind}"
        require(
            forced is None,
            f"--connector-form {forced}: the model has {kind} connector; only a linear one has "
            "several forms; leave it out",
        )
        return None
    fits = 2 * vision.width <= language.width
    require(
        fits or forced != "gelu",
        f"--connector-form gelu: needs a text width of at least twice the vision width, but "
        f"{language.width} < 2 x {vision.width}; use linear",
    )
    return forced or ("gelu" if fits else "linear")


def form_beside(base: Path, model: ModelConfig) -> Form | None:
    """The form that a linear connector has in a base model's Hugging Face folder.

    Where `base` is none, that of an export; None where the connector is not linear.
    """
    exported, config = choose_form(model), base / "config.json"
    if exported is None or not config.is_file():
        return exported
    return "linear" if read_json(config).get("projector_hidden_act") == "linear" else "gelu"


def describe(form: Form | None) -> str | None:
    """One line about what a form costs its users; None where every runtime opens the export."""
    if form != "linear":
        return None
    return (
        'connector: exported with projector_hidden_act "linear", which transformers opens, but '
        "vLLM and llama.cpp do not"
    )


def as_two_layers(leaves: Mapping[str, Leaf], width: int, form: Form) -> dict[str, Leaf]:
    """The connector's leaves as linear_1 and linear_2; `leaves` may hold others, left out here.

    Args:
        leaves: path -> leaf, with the connector's single layer as linear_1.
        width: of the language model, D.
        form: one of FORMS.
    """
    kernel, bias = leaves[KERNEL.format("linear_1")], leaves.get(BIAS.format("linear_1"))
    features, dtype = kernel.shape[0], kernel.dtype
    # in our order of the axes, [in, out]
    if form == "linear":
        first, second = kernel, Leaf((width, width), dtype, lambda: np.eye(width, dtype=dtype))
    else:
        first = Leaf((features, width), dtype, lambda: _signed(features, width).astype(dtype))
        second = Leaf((width, width), dtype, lambda: _difference(kernel.read(), width))
    layers = {KERNEL.format("linear_1"): first, KERNEL.format("linear_2"): second}
    if bias is not None:
        zero = Leaf((width,), bias.dtype, lambda: np.zeros((width,), bias.dtype))
        pair = (bias, zero) if form == "linear" else (zero, bias)
        layers |= {BIAS.format(f"linear_{n}"): leaf for n, leaf in enumerate(pair, 1)}
    return layers


def _signed(features: int, width: int) -> np.ndarray:
    """[I, -I, 0], float32 [features, width]; its zeros are positive."""
    matrix, row = np.zeros((features, width), np.float32), np.arange(features)
    matrix[row, row], matrix[row, features + row] = 1, -1
    return matrix


def _difference(kernel: np.ndarray, width: int) -> np.ndarray:
    """[W; -W; 0] with `width` rows."""
    matrix = np.zeros((width, width), kernel.dtype)
    matrix[: len(kernel)], matrix[len(kernel) : 2 * len(kernel)] = kernel, -kernel
    return matrix


# --------------------------------------------------------------------------------------- importing


@dataclass(frozen=True)
class Columns:
    """The first columns of a stored matrix, as a stored tensor of its own."""

    matrix: Any
    columns: int

    @property
    def format(self) -> str:
        """The matrix's number format."""
        return self.matrix.format

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrix.shape[0], self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of these columns."""
        return self.matrix.nbytes // self.matrix.shape[1] * self.columns

    def check(self) -> None:
        """As the matrix's."""
        self.matrix.check()

    def read(self, index: Index | None = None) -> np.ndarray:
        """The columns, or the part at `index`."""
        return self.matrix.read(index or tuple(slice(0, n) for n in self.shape))


def single_layer(where: str, activation: Form, tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tensors with a linear connector's two layers as one; None for a real mlp.

    An mlp is taken for a linear connector only if every number of it is as in the table above: it
    then computes the same, whoever made it.

    Args:
        where: the folder's config, for messages.
        activation: its projector_hidden_act.
        tensors: the table's names -> stored tensors, all of a folder's.

    Raises:
        ConfigError: no activation between two layers that are not one layer and the identity.
    """
    rest = {name: x for name, x in tensors.items() if not name.startswith(f"{C}linear_2.")}
    if activation == "linear":
        if not _is_identity(tensors):
            raise ConfigError(
                f"{where}: projector_hidden_act='linear' with a linear_2 that is not the identity "
                "with zero bias; multiply it into linear_1 first, then convert"
            )
        return rest
    if not _is_gelu_form(tensors):
        return None
    first, second = (tensors[f"{C}linear_{n}.weight"] for n in (1, 2))
    rest[f"{C}linear_1.weight"] = Columns(second, first.shape[1])
    if f"{C}linear_2.bias" in tensors:
        rest[f"{C}linear_1.bias"] = tensors[f"{C}linear_2.bias"]
    return rest


def _is_identity(tensors: Mapping[str, Any]) -> bool:
    """Whether linear_2 changes nothing; a folder without one is fine."""
    second, bias = (tensors.get(f"{C}linear_2.{name}") for name in ("weight", "bias"))
    if second is None:
        return True
    matrix = second.read()
    square = matrix.ndim == 2 and np.array_equal(matrix, np.eye(len(matrix), dtype=matrix.dtype))
    return square and (bias is None or not bias.read().any())


def _is_gelu_form(tensors: Mapping[str, Any]) -> bool:
    """Whether every number of both layers is as the form says."""
    first, second = (tensors.get(f"{C}linear_{n}.weight") for n in (1, 2))
    bias, other = (tensors.get(f"{C}linear_{n}.bias") for n in (1, 2))
    if first is None or second is None or (bias is None) != (other is None):
        return False
    if len(first.shape) != 2 or second.shape != (first.shape[0],) * 2:
        return False
    width, features = first.shape
    if 2 * features > width or (bias is not None and bias.read().any()):
        return False
    # one row tells nearly every mlp apart
    if not np.array_equal(first.read((slice(0, 1), slice(0, features)))[0], np.eye(features)[0]):
        return False
    if not np.array_equal(first.read(), _signed(features, width).T):
        return False
    matrix = second.read()
    plus, minus = matrix[:, :features], matrix[:, features : 2 * features]
    return np.array_equal(plus, -minus) and not matrix[:, 2 * features :].any()
