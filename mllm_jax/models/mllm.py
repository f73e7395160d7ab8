"""Joins the three modules: image vectors replace the placeholders, then the language model reads.

    pixels --vision--> image_features --connector--> image_embeddings
                                                           |  one gather over image_index
                                                           v
    tokens --embed--> token_embeddings ------------------> row --language--> hidden --head--> logits

    tokens        <bos>  <image> <image> <image> <image>  What  is  it
    image_index    -1      0       1       2       3       -1   -1  -1

An image index is i * P + p: patch p in image slot i of the row; a slot is a square that the vision
tower reads: a whole image, or one of LLaVA-NeXT's tiles. I * P, one behind the last patch of the
row's I slots, is the newline vector `connector/newline`, which models with `grids` have. Several
images, several conversations, or none: the same program with other indices. A slot that no index
names is never gathered, so its gradient is exactly zero.

Parameters are one flat dict by path ("language/layers/attention/q/kernel"); they are nested here,
for Flax's `init` and `apply`, and nowhere else outside of Orbax.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from mllm_jax.batch import TEXT, ModelInputs, Pixels
from mllm_jax.common.arithmetic import add_shared, einsum, take_rows
from mllm_jax.common.trees import flatten, unflatten
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.distributed import context
from mllm_jax.distributed.sharding import constrain, parts_of
from mllm_jax.models import lora, neftune
from mllm_jax.models.clip import CLIP
from mllm_jax.models.connector import Connector
from mllm_jax.models.kernels.protocol import CPU, Call, Device
from mllm_jax.models.kernels.select import Selection
from mllm_jax.models.llama import Llama
from mllm_jax.models.siglip import SigLIP

Params = Mapping[str, Any]  # path -> array

NEWLINE = "connector/newline"  # path of the newline vector
TOWERS: dict[str, type[CLIP] | type[SigLIP]] = {"clip": CLIP, "siglip": SigLIP}
DRAWN = Selection("dense")  # see `init`
ADAPTER_DRAW = 3  # folded into the key of `init`: other draws stay as they are without adapters


@dataclass(frozen=True)
class MLLM:
    """Three Flax modules and the config they were made from; holds no arrays."""

    config: ModelConfig
    compute: ComputeConfig
    vision: CLIP | SigLIP | None
    connector: Connector | None
    language: Llama | None
    adapter: AdapterConfig | None = None
    neftune_alpha: float = 0.0


def build(
    config: ModelConfig,
    compute: ComputeConfig,
    device: Device = CPU,
    adapter: AdapterConfig | None = None,
    neftune_alpha: float = 0.0,
    segments: int | None = None,
) -> MLLM:
    """The modules for a config.

    Args:
        config: what the network is.
        compute: number formats, remat, attention.
        device: the chip that it runs on, from `kernels.select.device_of`; settles what `auto` is,
            and whether a few layers are compiled one by one (`layers.stack`).
        adapter: what is trained beside frozen matrices; its parameters are among the model's.
        neftune_alpha: of the noise on token embeddings while the model is trained.
        segments: the most examples that a row holds; None: as many as fit.

    Raises:
        ConfigError: an attention backend that cannot be used on the chip.
    """
    backend = Selection(compute.attention, device, segments)
    if (c := config.language) is not None:
        heads = c.heads, c.kv_heads, c.head_dim
        backend.backend(Call(1, 1, *heads, compute.compute, True, True, segments))
    unroll = device.platform == "cpu"
    vision, language = config.vision, config.language
    connector = None
    if vision is not None and language is not None and config.connector is not None:
        connector = Connector(
            config.connector,
            vision.width,
            language.width,
            jnp.dtype(compute.compute),
            jnp.dtype(compute.reduce),
            newline=config.grids is not None,
        )
    return MLLM(
        config,
        compute,
        TOWERS[vision.kind](vision, compute, backend, unroll) if vision is not None else None,
        connector,
        Llama(language, compute, backend, unroll) if language is not None else None,
        adapter,
        neftune_alpha,
    )


def init(model: MLLM, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters by path, float32; each path starts with vision, connector or language.

    Layers are drawn side by side (`layers.stack`). Not every attention can be batched so, and none
    has parameters: it is the dense one here, of which nothing is computed.
    """
    vision_key, connector_key, language_key = jax.random.split(key, 3)
    nested: dict[str, Any] = {}
    if model.vision is not None:
        size = model.vision.config.image_size
        pixels = jnp.zeros((1, size, size, 3), jnp.uint8)
        tower = model.vision.clone(backend=DRAWN)
        nested["vision"] = tower.init(vision_key, pixels)["params"]
    if model.connector is not None:
        features = jnp.zeros((1, 1, model.connector.features), model.compute.compute)
        nested["connector"] = model.connector.init(connector_key, features)["params"]
    if model.language is not None:
        x = jnp.zeros((1, 1, model.language.config.width), model.compute.compute)
        ones = jnp.ones((1, 1), jnp.int32)
        decoder = model.language.clone(backend=DRAWN)
        nested["language"] = decoder.init(language_key, x, ones, ones)["params"]
    params = flatten(nested)
    if model.adapter is not None:
        params |= lora.init(model.adapter, params, jax.random.fold_in(key, ADAPTER_DRAW))
    return params


def abstract_params(model: MLLM) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `init`, without any array.

    Loaders, shardings and converters are checked against them.
    """
    return dict(_abstract_params(model))


@functools.lru_cache(32)  # tracing takes half a second, and a command asks several times
def _abstract_params(model: MLLM) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def used_layers(config: ModelConfig, paths: Iterable[str], images: bool) -> dict[str, int]:
    """{path: layers that the forward pass reads} of the parameters that it does not read whole.

    The others get no gradient, whatever the batch. 0 for a parameter that is not read at all.

    Args:
        config: of the model.
        paths: of its parameters.
        images: whether rows have image slots.
    """
    vision = config.vision
    used: dict[str, int] = {}
    behind = ("vision/post_norm/", "vision/head/")
    unread = behind if images else ("vision/", "connector/")
    for path in paths:
        if path.startswith(unread):
            used[path] = 0
        elif path.startswith("vision/layers/") and vision and vision.used_layers < vision.layers:
            used[path] = vision.used_layers
    return used


def head(params: Params) -> Float[Array, "V D"]:
    """The table that turns hidden states into logits: the output table, or a tied token table."""
    path = "language/head/kernel"
    return params[path] if path in params else params["language/embedding"]


def image_embeddings(model: MLLM, params: Params, pixels: Pixels) -> Float[Array, "B J D"]:
    """The connector's outputs for the images of each row, slot after slot: J = I * P."""
    B, I = pixels.shape[:2]  # noqa: E741
    if parts_of("slots") > 1:
        pixels = constrain(jnp.asarray(pixels), "batch", "slots", "none", "none", "none")
    features = apply(model, params, "vision", pixels.reshape(B * I, *pixels.shape[2:]))
    vectors = apply(model, params, "connector", features)
    return vectors.reshape(B, I * vectors.shape[1], vectors.shape[2])


def embed(
    model: MLLM, params: Params, inputs: ModelInputs, vectors: Float[Array, "B J D"] | None = None
) -> Float[Array, "B T D"]:
    """Token embeddings, with the image vectors and the newline vector at the placeholders.

    Args:
        model: the network.
        params: path -> array.
        inputs: of the rows.
        vectors: `image_embeddings` of the rows where they are known: pixels are not read then.
    """
    x = apply(model, params, "language", inputs.tokens, method="embed")
    if model.connector is None or (vectors is None and inputs.pixels.shape[1] == 0):
        return x
    vectors = image_embeddings(model, params, inputs.pixels) if vectors is None else vectors
    index, reduce = jnp.asarray(inputs.image_index), jnp.dtype(model.compute.reduce)
    if not model.connector.newline:
        return _replace_placeholders(x, vectors, index, reduce)
    is_newline = index == vectors.shape[1]
    x = _replace_placeholders(x, vectors, jnp.where(is_newline, TEXT, index), reduce)
    # added where it belongs, not gathered: its gradient is the sum over all rows in float32
    newline = add_shared(jnp.zeros_like(x), params[NEWLINE])
    return jnp.where(is_newline[:, :, None], newline, x)


def _replace_placeholders(
    token_embeddings: Float[Array, "B T D"],
    image_embeddings: Float[Array, "B J D"],
    image_index: Int[Array, "B T"],
    reduce: jnp.dtype,
) -> Float[Array, "B T D"]:
    """Takes row `image_index[b, t]` of `image_embeddings[b]` wherever it is not negative."""
    index = jnp.maximum(image_index, 0)
    if parts_of("length") > 1:
        taken = context.take_vectors(image_embeddings, index, reduce)
    else:
        take = functools.partial(take_rows, dtype=image_embeddings.dtype)
        taken = jax.vmap(take)(image_embeddings, index)
    return jnp.where((image_index >= 0)[:, :, None], taken, token_embeddings)


def hidden(
    model: MLLM,
    params: Params,
    inputs: ModelInputs,
    key: Key[Array, ""] | None = None,
    vectors: Float[Array, "B J D"] | None = None,
    rows: Int[Array, " B"] | None = None,
) -> Float[Array, "B T D"]:
    """Final hidden states of packed rows; `hidden @ head(params).T` are the logits.

    With a context axis they are in the order of `distributed.context.balanced`.

    Args:
        model: the network.
        params: path -> array.
        inputs: of the rows.
        key: of the update, for the adapters' dropout and NEFTune's noise; None where nothing is
            trained.
        vectors: see `embed`.
        rows: their numbers in the update's batch, for the noise; given where a key is.
    """
    if key is not None and model.adapter is not None and model.adapter.dropout:
        identities = _identities(model, inputs)
        params = lora.with_dropout(model.adapter, params, identities, key)
    of_positions = ("tokens", "segments", "positions", "image_index")
    inputs = inputs._replace(
        **{name: context.balanced(getattr(inputs, name)) for name in of_positions}
    )
    x = embed(model, params, inputs, vectors)
    if key is not None and model.neftune_alpha:
        assert rows is not None, "NEFTune needs the numbers of the rows"
        index = jnp.asarray(inputs.image_index)
        x = neftune.with_noise(x, index, model.neftune_alpha, key, rows)
    return apply(model, params, "language", x, inputs.segments, inputs.positions)


def _identities(model: MLLM, inputs: ModelInputs) -> dict[str, UInt32[Array, "rows positions"]]:
    """What tells the positions apart that each module reads, for dropout."""
    pixels = jnp.asarray(inputs.pixels)
    of_text = lora.text_identities(jnp.asarray(inputs.tokens), jnp.asarray(inputs.positions))
    of_text = context.balanced(of_text)
    images = pixels.reshape(-1, *pixels.shape[2:])
    of_images = lora.image_identities(images, model.config.patches + 1)  # and the class token
    return {"vision": of_images, "connector": of_images, "language": of_text}


def logits(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Scores of every token, float32."""
    return einsum("BTD,VD->BTV", hidden, table.astype(hidden.dtype), out=jnp.float32)


def apply(model: MLLM, params: Params, name: str, *args: Any, **options: Any) -> Any:
    """Calls one of the three modules with its part of the parameters."""
    module = getattr(model, name)
    assert module is not None, f"the model has no {name} part"
    return module.apply({"params": part_of(model, params, name)}, *args, **options)


def part_of(model: MLLM, params: Params, name: str) -> dict[str, Any]:
    """The parameters of one of the three modules, nested as Flax wants them."""
    part = {path: x for path, x in params.items() if path.startswith(f"{name}/")}
    if model.adapter is not None:
        part = lora.scaled(model.adapter, part)
    nested: dict[str, Any] = unflatten(part)[name]
    return nested
