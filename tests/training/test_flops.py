"""The FLOPs formula by hand, and against what the compiler counts where it counts right."""

import jax
import jax.numpy as jnp
import pytest

from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.training.flops import flops_per_step, matmul_parameters
from tests.training import toy

# 4 patches of 2 x 2 x 3; 3 layers of which 2 are used
VISION = VisionConfig(image_size=4, patch_size=2, width=4, mlp=8, layers=3, heads=2)
LANGUAGE = LanguageConfig(vocab=10, width=6, mlp=5, layers=2, heads=4, kv_heads=2, head_dim=2)
MODEL = ModelConfig(VISION, ConnectorConfig("mlp"), LANGUAGE, image_token=9)
PATHS = [*matmul_parameters(MODEL), "language/embedding", "vision/pre_norm/scale"]
PATHS += ["vision/position_embedding", "vision/class_embedding"]

PATCH = 12 * 4  # 2 x 2 pixels x 3 colours x width
VISION_LAYERS = 2 * (4 * 16 + 2 * 32)  # q k v out, in out
CONNECTOR = 4 * 6 + 6 * 6
LAYERS = 2 * (6 * 8 + 2 * 6 * 4 + 8 * 6 + 3 * 6 * 5)  # q, k v, out, gate up down
HEAD = 10 * 6
TOKENS, T, IMAGES = 3 * 7, 7, 2


def stage(*names):
    return [path for path in PATHS if path.startswith(names)]


def by_hand(vision, connector, layers, head, see, read, patch=None):
    """FLOPs with these factors f for the products and (see, read) forward shares of attention.

    `patch`: factor of the patch embedding where it is not that of the tower's layers.
    """
    total = IMAGES * 4 * PATCH * (patch or vision) + IMAGES * 5 * VISION_LAYERS * vision
    total += IMAGES * 5 * see * (4 * 2 * 4 * 5)  # 4 L d (P + 1)
    total += IMAGES * 4 * CONNECTOR * connector
    total += TOKENS * (LAYERS * layers + HEAD * head)
    return total + TOKENS * read * (2 * 2 * 8 * T)  # 2 L d T


@pytest.mark.parametrize(
    ("trained", "factors"),
    [
        (("vision", "connector", "language"), (6, 6, 6, 6, 3, 3)),
        (("connector", "language"), (2, 6, 6, 6, 1, 3)),  # instruct
        (("connector",), (2, 6, 4, 4, 1, 3)),  # align: the gradient passes through the language
        (("language",), (2, 2, 6, 6, 1, 3)),
        (("vision",), (6, 4, 4, 4, 3, 3)),
        (("vision/pre_norm",), (4, 4, 4, 4, 3, 3)),  # no product, but before everything
        (("vision/position_embedding",), (4, 4, 4, 4, 3, 3)),
        (("vision/class_embedding",), (4, 4, 4, 4, 3, 3)),
        (("vision/patch_embedding",), (4, 4, 4, 4, 3, 3, 6)),
        (("language/head",), (2, 2, 2, 6, 1, 1)),
        (("language/embedding",), (2, 2, 4, 4, 1, 3)),
        (("nothing",), (2, 2, 2, 2, 1, 1)),
    ],
)
def test_by_hand(trained, factors):
    assert flops_per_step(MODEL, stage(*trained), 3, T, IMAGES) == by_hand(*factors)


def test_positions_without_a_loss_have_no_logits():
    found = [
        flops_per_step(MODEL, stage("language"), 3, T, IMAGES, targets=n)
        for n in (0.0, 5.0, 3.0 * T)
    ]
    assert found[1] - found[0] == 5 * HEAD * 6
    assert found[2] == flops_per_step(MODEL, stage("language"), 3, T, IMAGES)


def test_adapters_by_hand():
    """6 rank (inputs + outputs) of each matrix, layer and token; frozen matrices before it count 2.

    q: 6 -> 8, out: 8 -> 6 in two layers; the tower's mlp/in: 4 -> 8 in its two used layers of 3.
    """
    tower, language = "vision/layers/mlp/in", "language/layers/attention"
    sides = ("lora_a", "lora_b")
    of_language = [f"{language}/{name}/{side}" for name in ("q", "out") for side in sides]
    found = flops_per_step(MODEL, of_language, 3, T, IMAGES, rank=3)
    narrow = TOKENS * 2 * 6 * 3 * ((6 + 8) + (8 + 6))
    assert found == by_hand(2, 2, 4, 4, 1, 3) + narrow
    of_tower = [f"{tower}/{side}" for side in sides] + stage("connector")
    found = flops_per_step(MODEL, of_tower, 3, T, IMAGES, rank=5)
    assert found == by_hand(4, 6, 4, 4, 3, 3, patch=2) + IMAGES * 5 * 2 * 6 * 5 * (4 + 8)
    linear = ["connector/linear_1/lora_a", "connector/linear_1/lora_magnitude"]
    found = flops_per_step(MODEL, linear, 3, T, IMAGES, rank=2)
    assert found == by_hand(2, 4, 4, 4, 1, 3) + IMAGES * 4 * 6 * 2 * (4 + 6)


def test_lora_of_llama_8b():
    """Rank 16 everywhere: 41,943,040 parameters, as PEFT counts them; 4 N and 6 of theirs."""
    model = ModelConfig(language=LanguageConfig(vocab=128256))
    kernels = [path for path in matmul_parameters(model) if "/layers/" in path]
    trained = [path.replace("/kernel", "/lora_a") for path in kernels]
    found = flops_per_step(model, trained, 1, 8192, 0, rank=16) / 8192
    assert found == 4 * 7504658432 + 6 * 41943040 + 6 * 32 * 4096 * 8192


def test_llama_8b():
    """Llama 3.1 8B: 8.03e9 parameters less the look-up of 128,256 x 4,096; Meta's model card."""
    model = ModelConfig(language=LanguageConfig(vocab=128256))
    sizes = matmul_parameters(model)
    assert sum(sizes.values()) == 7504658432
    per_token = flops_per_step(model, sizes, 1, 8192, 0) / 8192
    assert per_token == 6 * 7504658432 + 6 * 32 * 4096 * 8192


def test_tied_head_is_counted_where_it_lives():
    model = ModelConfig(language=LanguageConfig(vocab=10, width=6, tied=True))
    assert matmul_parameters(model)["language/embedding"] == 60


def test_equals_the_compiler_on_an_unrolled_tower():
    """A vision tower in plain products, no scan: the compiler counts softmax too."""
    c = VisionConfig(image_size=64, patch_size=8, width=64, mlp=256, layers=3, heads=4)
    tokens, images = c.patches + 1, 4

    def tower(weights, x):
        for q, k, v, out, up, down in weights:
            heads = [(x @ w).reshape(images, tokens, 4, 16) for w in (q, k, v)]
            scores = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", heads[0], heads[1]))
            seen = jnp.einsum("bnts,bsnh->btnh", scores, heads[2])
            x = x + seen.reshape(x.shape) @ out
            x = x + jnp.tanh(x @ up) @ down
        return jnp.sum(x * x)

    square, wide = jnp.ones((64, 64)), jnp.ones((64, 256))
    weights = [(square, square, square, square, wide, wide.T)] * c.used_layers
    lowered = jax.jit(jax.grad(tower, (0, 1))).lower(weights, jnp.ones((images, tokens, 64)))
    counted = toy.flops(lowered.compile())
    model = ModelConfig(vision=c)
    formula = flops_per_step(model, [*matmul_parameters(model)], 0, 0, images)
    patch = 6 * images * c.patches * 8 * 8 * 3 * 64
    assert formula - patch == pytest.approx(counted, rel=0.1)
    assert counted > formula - patch
