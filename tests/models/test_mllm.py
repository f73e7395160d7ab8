"""The join: packed = unpacked, empty slots, several images, the cache, and the axes table."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import NEWLINE, TEXT, ModelInputs
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.trees import unflatten
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.models import axes, decoding, mllm
from mllm_jax.models.connector import Connector
from mllm_jax.models.kernels.protocol import Device
from mllm_jax.models.kernels.select import Selection

P = 16
CONFIG = ModelConfig(
    VisionConfig(image_size=28, patch_size=7, width=24, mlp=48, layers=3, heads=2),
    ConnectorConfig("mlp"),
    LanguageConfig(vocab=128, width=32, mlp=48, layers=2, heads=4, kv_heads=2, head_dim=8),
    image_token=100,
)
ANYRES = dataclasses.replace(CONFIG, grids=GridsConfig("hw", sizes=((28, 56), (56, 28))))
COMPUTE = ComputeConfig(compute="float32", remat="none")


@pytest.fixture(scope="module")
def params():
    model = mllm.build(CONFIG, COMPUTE)
    return jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))


def conversation(seed, images, text):
    """tokens, seats and pixels of one conversation: text, then per image a span and text again."""
    rng = np.random.default_rng(seed)
    tokens, seats = [rng.integers(0, 100, text)], [np.full(text, -1)]
    for i in range(images):
        tokens += [np.full(P, 100), rng.integers(0, 100, text)]
        seats += [np.arange(P) + i * P, np.full(text, -1)]
    pixels = rng.integers(0, 256, (images, 28, 28, 3), dtype=np.uint8)
    return np.concatenate(tokens), np.concatenate(seats), pixels


def tiled(seed, text):
    """A conversation with an image in three tiles, of which two lines of three patches are seen."""
    rng = np.random.default_rng(seed)
    lines = [P + 5, P + 6, 2 * P + 4, NEWLINE, P + 9, P + 10, 2 * P + 8, NEWLINE]
    seats = np.concatenate([np.full(text, TEXT), np.arange(P), lines, np.full(text, TEXT)])
    tokens = np.where(seats == TEXT, rng.integers(0, 100, len(seats)), 100)
    return tokens, seats, rng.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)


def row(conversations, length, slots, P=P):
    """Hand-packs conversations into one row: what data/packing must do, written a second time."""
    arrays = {
        name: np.zeros(length, np.int32) for name in ("tokens", "segments", "positions", "targets")
    }
    arrays["image_index"], weights = np.full(length, -1, np.int32), np.zeros(length, np.float32)
    pixels, at, slot = np.zeros((slots, 28, 28, 3), np.uint8), 0, 0
    for number, (tokens, seats, images) in enumerate(conversations, start=1):
        n = len(tokens)
        arrays["tokens"][at : at + n] = tokens
        arrays["targets"][at : at + n - 1] = tokens[1:]
        weights[at : at + n - 1] = seats[1:] == TEXT
        arrays["segments"][at : at + n] = number
        arrays["positions"][at : at + n] = np.arange(n)
        index = np.where(seats >= 0, seats + slot * P, seats)
        arrays["image_index"][at : at + n] = np.where(seats == NEWLINE, slots * P, index)
        pixels[slot : slot + len(images)] = images
        at, slot = at + n, slot + len(images)
    arrays = {name: jnp.asarray(value)[None] for name, value in arrays.items()}
    return arrays | {"pixels": jnp.asarray(pixels)[None], "weights": jnp.asarray(weights)[None]}


def inputs_of(row):
    return ModelInputs(**{name: row[name] for name in ModelInputs._fields})


def summed_loss(params, model, row):
    x = mllm.hidden(model, params, inputs_of(row))
    logp = jax.nn.log_softmax(mllm.logits(x, mllm.head(params)))
    nll = -jnp.take_along_axis(logp, row["targets"][:, :, None], axis=-1)[:, :, 0]
    return jnp.sum(nll * row["weights"])


def close(gradient, expected):
    """Equal up to float32's rounding of sums taken in another order.

    That is 1e-5 of the parameter's largest gradient. The absolute term is for CLIP's key bias:
    softmax does not feel it, so its gradient is rounding noise around zero.
    """
    assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-5


loss_and_grads = jax.jit(jax.value_and_grad(summed_loss), static_argnums=1)


@pytest.mark.parametrize(
    "backend", ["dense", "blocks", pytest.param("loop", marks=pytest.mark.slow)]
)
def test_packed_equals_unpacked_loss_and_gradients(params, backend):
    """Two images, none and one image in one row = three rows of their own, in any slot."""
    model = mllm.build(CONFIG, dataclasses.replace(COMPUTE, attention=backend))
    chats = [conversation(1, 2, 5), conversation(2, 0, 30), conversation(3, 1, 9)]
    packed, packed_grads = loss_and_grads(params, model, row(chats, 150, 4))
    alone = [loss_and_grads(params, model, row([chat], 60, 2)) for chat in chats]
    np.testing.assert_allclose(packed, sum(loss for loss, _ in alone), rtol=1e-6)
    summed = jax.tree.map(lambda *g: sum(g), *(grads for _, grads in alone))
    jax.tree.map(close, packed_grads, summed)


def test_packed_equals_unpacked_with_tiles_a_plain_image_and_text():
    """One program for rows of five slots, whatever is in them; the newline's gradient adds up."""
    model = mllm.build(ANYRES, COMPUTE)
    params = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(2))
    chats = [tiled(1, 6), conversation(2, 0, 20), conversation(3, 1, 9), tiled(4, 4)]
    parts = [chats[:3], chats[3:]]
    packed = [loss_and_grads(params, model, row(part, 110, 5)) for part in parts]
    alone = [loss_and_grads(params, model, row([chat], 110, 5)) for chat in chats]
    total = sum(loss for loss, _ in packed)
    np.testing.assert_allclose(total, sum(loss for loss, _ in alone), rtol=1e-6)
    sums = [jax.tree.map(lambda *g: sum(g), *(g for _, g in runs)) for runs in (packed, alone)]
    assert np.any(sums[1]["connector/newline"])
    jax.tree.map(close, *sums)


def test_an_unused_slot_has_exactly_zero_gradient(params):
    """Text only, but a slot with a picture in it: vision and connector move by no rounding."""
    model = mllm.build(CONFIG, COMPUTE)
    text = row([conversation(2, 0, 30)], 40, 2)
    text["pixels"] = jnp.full_like(text["pixels"], 77)
    _, grads = loss_and_grads(params, model, text)
    images = [g for path, g in grads.items() if path.startswith(("vision/", "connector/"))]
    assert images and not any(np.any(g) for g in images)
    assert np.any(grads["language/embedding"])


@pytest.mark.slow
def test_newlines_are_one_more_row_behind_the_image_vectors():
    """I * P takes the newline vector; its gradient is the sum over its places in all rows."""
    model = mllm.build(ANYRES, COMPUTE)
    params = mllm.init(model, jax.random.key(3))
    newline, table = params["connector/newline"], params["language/embedding"]
    pair = [row([conversation(seed, 1, 6)], 40, 2) for seed in (1, 2)]
    both = {name: jnp.concatenate([one[name] for one in pair]) for name in pair[0]}
    inputs = inputs_of(both)
    index = np.array(inputs.image_index)
    index[0, 10], index[1, [7, 12, 21]] = 2 * P, 2 * P
    inputs = inputs._replace(image_index=jnp.asarray(index))
    vectors = mllm.image_embeddings(model, params, inputs.pixels)
    rows = jnp.concatenate([vectors, jnp.broadcast_to(newline, (2, 1, 32))], axis=1)
    expected = jnp.where(
        (index >= 0)[:, :, None],
        jnp.take_along_axis(rows, np.maximum(index, 0)[:, :, None], axis=1),
        table[inputs.tokens],
    )
    np.testing.assert_array_equal(mllm.embed(model, params, inputs), expected)
    down = jax.random.normal(jax.random.key(5), expected.shape)
    gradient = jax.grad(lambda p: jnp.sum(mllm.embed(model, p, inputs) * down))(params)
    places = down[(index == 2 * P)]
    assert places.shape == (4, 32)
    np.testing.assert_allclose(gradient["connector/newline"], places.sum(axis=0), rtol=1e-5)


def test_the_newline_vector_is_there_with_grids_and_changes_no_other_parameter(params):
    """Drawn as LLaVA-NeXT's, standard deviation 1 / sqrt(D)."""
    model = mllm.build(ANYRES, COMPUTE)
    drawn = jax.jit(lambda key: mllm.init(model, key))(jax.random.key(0))
    assert drawn.keys() - params.keys() == {"connector/newline"}
    for path, x in params.items():
        np.testing.assert_array_equal(drawn[path], x, err_msg=path)
    assert ANYRES.language is not None
    wide = dataclasses.replace(ANYRES, language=dataclasses.replace(ANYRES.language, width=4096))
    shapes = mllm.abstract_params(mllm.build(wide, COMPUTE))
    assert shapes["connector/newline"].shape == (4096,)
    connector = Connector(ConnectorConfig("linear"), 8, 4096, jnp.dtype("float32"), newline=True)
    features = jnp.zeros((1, 1, 8))
    newline: Any = connector.init(jax.random.key(0), features)["params"]["newline"]
    assert abs(float(jnp.std(newline)) * 64 - 1) < 0.05


def test_the_placeholder_row_of_the_token_table_gets_no_gradient(params):
    _, grads = loss_and_grads(
        params, mllm.build(CONFIG, COMPUTE), row([conversation(1, 1, 5)], 40, 1)
    )
    assert not np.any(grads["language/embedding"][100])


def test_the_unused_last_layer_of_the_tower_gets_no_gradient(params):
    _, grads = loss_and_grads(
        params, mllm.build(CONFIG, COMPUTE), row([conversation(1, 1, 5)], 40, 1)
    )
    kernel = grads["vision/layers/mlp/in/kernel"]
    assert np.any(kernel[1]) and not np.any(kernel[2])
    assert not np.any(grads["vision/post_norm/scale"])


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"remat": "attention", "attention": "blocks"},
        {"remat": "offload", "attention": "blocks"},
        {"remat": "none", "remat_vision": "full"},
    ],
    ids=str,
)
def test_remat_changes_no_number(params, changes):
    chat = row([conversation(1, 1, 5)], 40, 1)
    _, base = loss_and_grads(params, mllm.build(CONFIG, COMPUTE), chat)
    _, other = loss_and_grads(
        params, mllm.build(CONFIG, dataclasses.replace(COMPUTE, **changes)), chat
    )
    jax.tree.map(close, other, base)


def test_remat_decides_what_is_kept():
    """Bytes that the backward pass finds: a layer's input, some results too, or everything.

    Offloaded: input and results in the host's memory, and neither of them on the device.
    """
    language = LanguageConfig(
        vocab=64, width=32, mlp=48, layers=2, heads=4, kv_heads=2, head_dim=8, max_length=128
    )
    text = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    none = jnp.zeros((1, 0, 1, 1, 3), jnp.uint8)

    def kept(remat: str, place: Any = jax.memory.Space.Device) -> int:
        compute = dataclasses.replace(COMPUTE, remat=remat, attention="blocks")
        model = mllm.build(ModelConfig(None, None, language), compute)

        def pull(params, x):
            inputs = ModelInputs(x, x, x, x, none)
            return jax.vjp(lambda p: mllm.hidden(model, p, inputs), params)[1]

        made = jax.make_jaxpr(pull)(mllm.abstract_params(model), text).out_avals
        there: Any = [x for x in made if x.memory_space == place]
        return sum(x.size * x.dtype.itemsize for x in there)

    products = language.layers * 128 * 2 * language.mlp * 4  # gate and up alone, in float32
    assert kept("full") + products < kept("dots") < kept("none")
    outputs = language.layers * 128 * language.heads * (language.head_dim + 1) * 4  # and log-sums
    assert kept("attention") == kept("full") + outputs
    inputs = language.layers * 128 * language.width * 4
    assert kept("offload", jax.memory.Space.Host) == inputs + outputs
    assert kept("offload") == kept("full") - inputs


NAMES = ModelInputs._fields


def test_cache_equals_whole_row_left_padded(params):
    """Two left-padded prompts of different lengths, token by token = the whole rows at once."""
    model = mllm.build(CONFIG, COMPUTE)
    long, short = row([conversation(1, 1, 8)], 32, 1), row([conversation(4, 0, 20)], 20, 1)
    whole = [
        jax.jit(lambda p, r: mllm.logits(mllm.hidden(model, p, r), mllm.head(p)))(
            params, inputs_of(r)
        )[0]
        for r in (long, short)
    ]
    pad = 12
    left = {
        n: jnp.pad(short[n], ((0, 0), (pad, 0)), constant_values=-1 if n == "image_index" else 0)
        for n in NAMES[:4]
    }
    both = {n: jnp.concatenate([long[n], left[n]]) for n in NAMES[:4]}
    pixels = jnp.concatenate([long["pixels"], short["pixels"]])
    prompt = ModelInputs(**{n: both[n][:, :28] for n in NAMES[:4]}, pixels=pixels)
    prefill = jax.jit(functools.partial(decoding.prefill, model, slots=40))
    decode = jax.jit(functools.partial(decoding.decode, model))
    scores, cache = prefill(params, prompt)
    decoder = decoding.decoder(model, params)
    for t in range(28, 32):
        np.testing.assert_allclose(
            scores, jnp.stack([whole[0][t - 1], whole[1][t - 1 - pad]]), atol=2e-5
        )
        scores, cache = decode(
            params, decoder, both["tokens"][:, t], both["positions"][:, t], cache
        )
    np.testing.assert_allclose(scores, jnp.stack([whole[0][31], whole[1][19]]), atol=2e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_unstacked_layers_answer_alike(params, layers):
    """To the bit: whole rows, prompts, and a token behind them."""
    assert CONFIG.language is not None
    language = dataclasses.replace(CONFIG.language, layers=layers)
    model = mllm.build(dataclasses.replace(CONFIG, language=language), COMPUTE)
    params = {p: x[:layers] if p.startswith(decoding.LAYERS) else x for p, x in params.items()}
    inputs = inputs_of(row([conversation(1, 1, 8)], 32, 1))
    token, position = jnp.array([5]), jnp.array([32])

    @jax.jit
    def run(params):
        scores, cache = decoding.prefill(model, params, inputs, 40)
        decoder = decoding.decoder(model, params)
        read = decoding.decode(model, params, decoder, token, position, cache)
        return mllm.hidden(model, params, inputs), scores, cache, read

    apart = decoding.unstack(dict(params))
    assert f"language/layers/{layers - 1}/mlp/up/kernel" in apart
    jax.tree.map(np.testing.assert_array_equal, run(apart), run(params))


@pytest.mark.parametrize(
    ("kind", "bias"), [("linear", True), ("linear", False), ("mlp", True), ("mlp", False)]
)
def test_connector_parameters(kind, bias):
    model = mllm.build(dataclasses.replace(CONFIG, connector=ConnectorConfig(kind, bias)), COMPUTE)
    layers = ("linear_1",) if kind == "linear" else ("linear_1", "linear_2")
    names = ("kernel", "bias") if bias else ("kernel",)
    expected = {f"connector/{layer}/{name}" for layer in layers for name in names}
    assert {p for p in mllm.abstract_params(model) if p.startswith("connector/")} == expected


def test_backbones_alone():
    assert CONFIG.language is not None
    language = ModelConfig(language=dataclasses.replace(CONFIG.language, tied=True))
    paths = mllm.abstract_params(mllm.build(language, COMPUTE))
    assert all(path.startswith("language/") for path in paths)
    assert "language/head/kernel" not in paths
    tower = mllm.abstract_params(mllm.build(ModelConfig(vision=CONFIG.vision), COMPUTE))
    assert all(path.startswith("vision/") for path in tower)


def test_every_parameter_has_axes(params):
    names = axes.logical_axes(params)
    assert names["language/layers/attention/k/kernel"] == (
        "layers",
        "embed",
        "kv_heads",
        "head_dim",
    )
    assert names["vision/layers/norm1/scale"] == ("layers", "none")
    with pytest.raises(AssertionError, match="other/thing: claimed by 0 rows"):
        axes.logical_axes({"other/thing": jnp.zeros(3)})


def test_both_towers_know_the_chip_that_they_run_on():
    model = mllm.build(CONFIG, COMPUTE, Device("tpu"))
    assert model.vision is not None and model.language is not None
    assert model.vision.backend == model.language.backend == Selection("auto", Device("tpu"))


def test_a_backend_that_the_chip_cannot_run_is_refused_before_anything_is_computed():
    compute = dataclasses.replace(COMPUTE, attention="splash")
    with pytest.raises(ConfigError, match="attention=splash: needs a TPU, not a cpu; choose "):
        mllm.build(CONFIG, compute)


def test_what_the_forward_pass_does_not_read():
    """The tower's last layer and norm; without image slots the tower and the connector."""
    paths = ["vision/layers/norm1/scale", "vision/post_norm/bias", "vision/class_embedding"]
    paths += ["connector/linear_1/bias", "connector/newline", "language/embedding"]
    assert mllm.used_layers(CONFIG, paths, True) == {paths[0]: 2, paths[1]: 0}
    assert mllm.used_layers(CONFIG, paths, False) == dict.fromkeys(paths[:5], 0)
    assert CONFIG.vision is not None
    whole = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, feature_layer=-1))
    assert mllm.used_layers(whole, paths, True) == {paths[1]: 0}


def test_flat_paths_sort_as_the_nested_tree_does(params):
    """JAX adds up over a tree in the order of its sorted keys: norms keep every bit either way."""
    nested = jax.tree_util.tree_leaves_with_path(unflatten(params))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in nested]
    assert sorted(params) == names


def test_full_size_counts():
    """Llama-3.1-8B, CLIP ViT-L/14-336 and a linear connector, by their published sizes."""
    model = mllm.build(
        ModelConfig(
            VisionConfig(),
            ConnectorConfig("linear"),
            LanguageConfig(vocab=128256),
            image_token=128255,
        ),
        COMPUTE,
    )
    sizes = collections.Counter()
    for path, leaf in mllm.abstract_params(model).items():
        sizes[path.split("/")[0]] += int(np.prod(leaf.shape))
    assert sizes["language"] == 8_030_261_248  # transformers' count for Meta-Llama-3.1-8B
    assert sizes["connector"] == 4_198_400
    assert sizes["vision"] == 303_507_456  # CLIPVisionModel of openai/clip-vit-large-patch14-336
