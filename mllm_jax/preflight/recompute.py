"""Counts what remat computes a second time, in the backward pass: it takes time and is not useful.

Of a layer, by what its policy keeps (`models/layers.REMAT`):

    none        nothing
    dots        attention, whose results have another name than products with weights
    attention   the products with weights
    full        both
    offload     as attention; with cuDNN as full, since its results have no name to offload them by

but for the layer's last product: nothing of the backward pass reads its result. DoRA's magnitude
does. Of an adapter's update (x A) B the backward pass reads x A, which no policy keeps but `none`.

A kernel that computes scores again within its backward pass does so under every policy, and is not
counted. Tests compare with the products of traced backward passes.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from mllm_jax.config.adapter import KERNEL, MAGNITUDE, A
from mllm_jax.config.model import ModelConfig
from mllm_jax.training import flops
from mllm_jax.training.flops import Part

LAST = ("/mlp/down/kernel", "/mlp/out/kernel")  # of a layer, language and vision
# backends of attention whose results a policy cannot name, so that they are computed again
UNNAMED = {"attention": ("dense",), "offload": ("dense", "cudnn")}


class Recomputed(NamedTuple):
    """What the backward pass computes again; FLOPs of all devices together."""

    products: float  # with weights and adapters
    attention: float  # scores, and the sum over values
    weights: tuple[str, ...]  # paths of those that are read for it


class Tower(NamedTuple):
    """How the layers of one module are computed."""

    remat: str  # as `compute.remat`
    backend: str  # of attention


def keeps_attention(tower: Tower) -> bool:
    """Whether the backward pass finds attention's results."""
    if tower.remat == "none":
        return True
    return tower.remat in UNNAMED and tower.backend not in UNNAMED[tower.remat]


def recomputed(
    model: ModelConfig,
    towers: Mapping[str, Tower],
    trained: Collection[str],
    rows: int,
    length: int,
    images: int,
    rank: int = 0,
) -> Recomputed:
    """Of one step.

    Args:
        model: what the network is.
        towers: "vision" and "language" -> how they are computed; a tower through which no gradient
            passes may be missing.
        trained: paths of the trained parameters.
        rows: of the batch.
        length: of a row.
        images: slots of the batch.
        rank: of the adapters whose parameters are among the trained ones.
    """
    products, attention, weights = 0.0, 0.0, list[str]()
    for part in parts_with_backward(model, trained, rows, length, images):
        if not part.attention:  # no layers: nothing is rematerialised
            continue
        tower = towers[next(iter(part.weights)).partition("/")[0]]
        attention += 0.0 if keeps_attention(tower) else part.tokens * part.attention
        for path, again in _products(part, tower.remat, trained, rank):
            products += part.tokens * again
            weights += [path] if _whole(path, tower.remat, trained) else []
    return Recomputed(products, attention, tuple(weights))


def parts_with_backward(
    model: ModelConfig, trained: Collection[str], rows: int, length: int, images: int
) -> Iterator[Part]:
    """The parts that a gradient comes back to: from the first trained one on."""
    through = False
    for part in flops.forward_parts(model, rows, length, images):
        through = through or any(path.startswith(part.prefixes) for path in trained)
        if through:
            yield part


def _products(
    part: Part, remat: str, trained: Collection[str], rank: int
) -> Iterator[tuple[str, float]]:
    """(path, FLOPs a token) of the products that are computed again."""
    for path, one in part.weights.items() if remat != "none" else ():
        adapted = path.removesuffix(KERNEL) + A in trained
        sides = rank * one.layers if adapted else 0
        again = sides * one.inputs  # x A
        if _whole(path, remat, trained):
            again += one.size + sides * one.outputs
        yield path, 2.0 * again


def _whole(path: str, remat: str, trained: Collection[str]) -> bool:
    """Whether the product with these weights is computed again."""
    if remat in ("none", "dots"):
        return False
    return not path.endswith(LAST) or path.removesuffix(KERNEL) + MAGNITUDE in trained
