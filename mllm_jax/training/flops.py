"""Counts the arithmetic of a step by formula: with the chips' peak rates it gives the MFU.

The compiler's own count sees the body of a scan once, so it cannot be used (and it counts
recomputation, which is not useful). The formula, per step of `rows` rows of `length` tokens (T)
with `images` images in all:

    language layers   tokens x (f N + g L d T)         N weights of products, d = heads x head_dim
    head              targets x f V D                  positions that have logits: trained ones
    connector         images x P x f N
    vision layers     images x (P + 1) x (f N + 2 g L d (P + 1))
    patch embedding   images x P x f N
    adapters          tokens of their matrix x 6 rank (inputs + outputs)

    f = 6  trained: 2 forward (a multiply and an add), 2 for the gradient of the activations,
           2 for that of the weights
    f = 4  frozen, but the gradient passes through to something trained before it
    f = 2  frozen, forward only
    g = 6  attention that is trained or that a gradient passes through; g = 2 forward only

The input embedding is a look-up and counts nothing.

Attention: scores q.k and the sum over values take 2 x 2 d T per token and layer forward; causal
rows need half of it, 2 d T; the backward pass needs twice the forward one (both products have two
inputs that want a gradient). So 6 L d T causal, and 12 L d T for the vision tower, where every
patch sees all. As usual for an MFU (PaLM, arXiv 2204.02311, appendix B), recomputation by remat is
not counted, norms and activations are not, and a packed row counts as one row of length T.
"Trained" products count 6 also where nothing before them wants a gradient, those of adapters too.
What DoRA adds (lengths of columns, once a microbatch whatever its tokens) is not counted.
"""

from collections.abc import Collection
from typing import NamedTuple

from mllm_jax.config.adapter import KERNEL, A
from mllm_jax.config.model import LanguageConfig, ModelConfig, VisionConfig


class Weights(NamedTuple):
    """What stands in a product: `layers` matrices [inputs, outputs]."""

    inputs: int
    outputs: int
    layers: int = 1

    @property
    def size(self) -> int:
        return self.layers * self.inputs * self.outputs


class Part(NamedTuple):
    """A stretch of the forward pass."""

    prefixes: tuple[str, ...]  # of the paths of its parameters, products or not
    tokens: float  # that go through it in a step
    weights: dict[str, Weights]  # path -> the weights that stand in a product
    attention: float  # FLOPs forward per token; 0 but for a tower's layers


def flops_per_step(
    model: ModelConfig,
    trainable: Collection[str],
    rows: int,
    length: int,
    images: int,
    rank: int = 0,
    targets: float | None = None,
) -> float:
    """Useful FLOPs of one update, all devices together, by the formula at the top of this file.

    Args:
        model: what the network is.
        trainable: paths of the trained parameters.
        rows: of the batch.
        length: of a row, padding included (it is computed).
        images: in the batch: used slots for the useful work, all slots for what is computed.
        rank: of the adapters whose parameters are among the trained ones.
        targets: positions with a loss: the others have no logits. None: all of them.
    """
    total = 3 * adapters_forward(model, trainable, rows, length, images, rank)
    through = False  # through: something here or before is trained
    for part in forward_parts(model, rows, length, images, targets):
        through = through or any(path.startswith(part.prefixes) for path in trainable)
        for path, weights in part.weights.items():
            factor = 6 if path in trainable else 4 if through else 2
            total += part.tokens * weights.size * factor
        total += part.tokens * part.attention * (3 if through else 1)
    return total


def adapters_forward(
    model: ModelConfig,
    trainable: Collection[str],
    rows: int,
    length: int,
    images: int,
    rank: int,
) -> float:
    """FLOPs of the adapters' products in one forward pass; arguments as `flops_per_step`'s."""
    products = [
        part.tokens * rank * one.layers * (one.inputs + one.outputs)
        for part in forward_parts(model, rows, length, images)
        for path, one in part.weights.items()
        if path.removesuffix(KERNEL) + A in trainable
    ]
    return 2.0 * sum(products)


def matmul_parameters(model: ModelConfig) -> dict[str, int]:
    """Sizes of the weights that stand in a product, by path.

    Vision layers behind the feature layer are not used and do not count. A tied head is under
    "language/embedding", whose only product it is.
    """
    parts = forward_parts(model, 1, 1, 1)
    return {path: one.size for part in parts for path, one in part.weights.items()}


def forward_parts(
    model: ModelConfig, rows: int, length: int, images: int, targets: float | None = None
) -> list[Part]:
    """The parts in the order of the forward pass; arguments as `flops_per_step`'s."""
    way: list[Part] = []
    vision, language = model.vision, model.language
    if vision is not None:
        way += _vision(vision, images)
    if vision is not None and language is not None and model.connector is not None:
        inputs = vision.width * (4 if model.connector.pool == "shuffle" else 1)
        weights = {"connector/linear_1/kernel": Weights(inputs, language.width)}
        if model.connector.kind == "mlp":
            weights["connector/linear_2/kernel"] = Weights(language.width, language.width)
        way.append(Part(("connector/",), images * model.patches, weights, 0.0))
    if language is not None:
        tokens = rows * length
        way += _language(language, tokens, length, float(tokens if targets is None else targets))
    return way


def _vision(c: VisionConfig, images: int) -> list[Part]:
    layers, tokens = c.used_layers, c.tokens
    square = Weights(c.width, c.width, layers)
    sizes = dict.fromkeys(("attention/q", "attention/k", "attention/v", "attention/out"), square)
    sizes |= {"mlp/in": Weights(c.width, c.mlp, layers), "mlp/out": Weights(c.mlp, c.width, layers)}
    weights = {f"vision/layers/{name}/kernel": one for name, one in sizes.items()}
    patch = {"vision/patch_embedding/kernel": Weights(c.patch_size**2 * 3, c.width)}
    first = tuple(f"vision/{n}" for n in ("class", "patch", "position", "pre_norm"))
    return [
        Part(first, images * c.patches, patch, 0.0),
        Part(("vision/layers/",), images * tokens, weights, 4.0 * layers * c.width * tokens),
    ]


def _language(c: LanguageConfig, tokens: int, length: int, targets: float) -> list[Part]:
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    ends = {
        "attention/q": (c.width, queries),
        "attention/k": (c.width, keys),
        "attention/v": (c.width, keys),
        "attention/out": (queries, c.width),
        "mlp/gate": (c.width, c.mlp),
        "mlp/up": (c.width, c.mlp),
        "mlp/down": (c.mlp, c.width),
    }
    weights = {
        f"language/layers/{name}/kernel": Weights(*pair, c.layers) for name, pair in ends.items()
    }
    path = "language/embedding" if c.tied else "language/head/kernel"
    attention = 2.0 * c.layers * queries * length
    return [
        Part(("language/embedding", "language/layers/"), tokens, weights, attention),
        Part(("language/norm", "language/head"), targets, {path: Weights(c.width, c.vocab)}, 0.0),
    ]
