"""What the backward pass computes again: by hand, and as JAX's own traces have it."""

import functools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import pytest

from mllm_jax.batch import Batch
from mllm_jax.config import loading
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import Config
from mllm_jax.models import layers
from mllm_jax.models.kernels.select import BACKENDS
from mllm_jax.preflight import gpu_target, hardware, work
from mllm_jax.preflight.plans import Plans
from mllm_jax.preflight.recompute import UNNAMED, Tower, keeps_attention, recomputed
from mllm_jax.preflight.roofline import Split
from mllm_jax.training import optimizer
from mllm_jax.training.flops import matmul_parameters
from mllm_jax.training.setup import apply_of
from tests.support import exact_sums, valid_config

# 4 patches of 2 x 2; 3 layers of which 2 are used
VISION = VisionConfig(image_size=4, patch_size=2, width=4, mlp=8, layers=3, heads=2)
LANGUAGE = LanguageConfig(vocab=10, width=6, mlp=5, layers=2, heads=4, kv_heads=2, head_dim=2)
MODEL = ModelConfig(VISION, ConnectorConfig("mlp"), LANGUAGE, image_token=9)
PATHS = list(matmul_parameters(MODEL))
TOKENS, T, IMAGES = 3 * 7, 7, 2
# of a token, 2 layers: all products but down; scores and sums over values, half of a square
PRODUCTS = 2 * 2 * (6 * 8 + 2 * 6 * 4 + 8 * 6 + 2 * 6 * 5)
ATTENTION = 2 * 2 * 8 * T
# of a patch or the class: q k v out, in; a whole square of five
OF_TOWER, SQUARE = 2 * 2 * (4 * 16 + 32), 4 * 2 * 4 * 5


def again(remat: str, vision: str, trained: list[str], rank: int = 0, backend: str = "blocks"):
    towers = {"language": Tower(remat, backend), "vision": Tower(vision, backend)}
    return recomputed(MODEL, towers, trained, 3, T, IMAGES, rank)


@pytest.mark.parametrize(
    ("remat", "backend", "products", "attention"),
    [
        ("none", "blocks", 0, 0),
        ("dots", "blocks", 0, 1),
        ("attention", "blocks", 1, 0),
        ("attention", "cudnn", 1, 0),
        ("attention", "dense", 1, 1),
        ("offload", "blocks", 1, 0),
        ("offload", "cudnn", 1, 1),
        ("full", "blocks", 1, 1),
    ],
)
def test_by_hand(remat: str, backend: str, products: int, attention: int):
    """With a frozen tower, through which no gradient passes."""
    trained = [path for path in PATHS if not path.startswith("vision/")]
    found = again(remat, "full", trained, backend=backend)
    assert found.products == products * TOKENS * PRODUCTS
    assert found.attention == attention * TOKENS * ATTENTION
    names = ("attention/k", "attention/out", "attention/q", "attention/v", "mlp/gate", "mlp/up")
    read = [f"language/layers/{name}/kernel" for name in names] if products else []
    assert sorted(found.weights) == read


def test_the_image_tower_has_a_remat_of_its_own():
    found = again("none", "full", PATHS)
    assert (found.products, found.attention) == (IMAGES * 5 * OF_TOWER, IMAGES * 5 * SQUARE)
    both, kept = again("full", "full", PATHS), again("full", "none", PATHS)
    assert both.products - kept.products == found.products
    assert both.attention - kept.attention == found.attention
    # from the connector on, and from the output table on, where no layer is behind
    assert again("full", "full", ["connector/linear_1/kernel"]) == again("full", "none", PATHS)
    assert again("full", "full", ["language/head/kernel"]) == (0, 0, ())


def test_adapters_by_hand():
    """x A again everywhere, and times B but for the last one; DoRA needs the last as well."""
    sides = ["language/layers/attention/q/lora_a", "language/layers/mlp/down/lora_a"]
    narrow = 2 * 2 * 3 * (6 + 5)  # rank 3, two layers: inputs of q and of down
    assert again("dots", "full", sides, 3).products == TOKENS * narrow
    wide = 2 * 2 * 3 * 8
    assert again("full", "full", sides, 3).products == TOKENS * (PRODUCTS + narrow + wide)
    dora = [*sides, "language/layers/mlp/down/lora_magnitude"]
    last = 2 * 2 * (5 * 6 + 3 * 6)
    found = again("full", "full", dora, 3)
    assert found.products == TOKENS * (PRODUCTS + narrow + wide + last)
    assert "language/layers/mlp/down/kernel" in found.weights


# ------------------------------------------------------------------------------------------ traces


def plans(folder: Path, word: str, *flags: str) -> Plans:
    """On pretended devices, whatever compilers are here."""
    target = hardware.parse(word)
    tracing = functools.partial(gpu_target.as_if_here, target.chip)
    tracing = nullcontext if target.chip.cores is None else tracing
    devices = hardware.Devices(jax.devices()[: target.count], False, tracing=tracing)
    return Plans(loading.load(Config, valid_config.write(folder), flags), target, devices)


def products(here: Plans, remat: str) -> int:
    """FLOPs of the products in a traced forward and backward pass, loops by their iterations."""
    setup = here.setup(remat)
    apply = apply_of(setup.model)

    def passes(trainable: Any, frozen: Any, batch: Batch, d_hidden: Any) -> Any:
        hidden = lambda moving: apply(optimizer.merge(moving, frozen), batch, None)[0]  # noqa: E731
        y, back = jax.vjp(hidden, trainable)
        return y, back(d_hidden)

    batch = here.batch(here.configured.rows)
    shape = (*batch.tokens.shape, here.language.width)
    d_hidden = jax.ShapeDtypeStruct(shape, jax.numpy.float32)
    traced = jax.make_jaxpr(passes)(setup.abstract.trainable, setup.frozen, batch, d_hidden)
    return _counted(traced.jaxpr)


def _counted(program: Any) -> int:
    count = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            count += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        count += times * sum(map(_counted, exact_sums.inner(equation.params)))
    return count


ALL = ("--optimizer.parts", '{"all": {"match": ".*"}}')
CONNECTOR = ("--optimizer.parts",)
CONNECTOR += (
    '{"connector": {"match": "connector/.*"}, "rest": {"match": "[vl].*", "train": false}}',
)
ADAPTER = (*CONNECTOR, "--adapter.match", ".*/layers/.*/kernel", "--adapter.rank", "8")


@pytest.mark.parametrize(
    "flags",
    [
        ("--compute.attention", "blocks"),
        ("--compute.attention", "dense"),
        ("--compute.attention", "blocks", *CONNECTOR),
        ("--compute.attention", "blocks", *ALL),
        ("--compute.attention", "blocks", *ALL, "--compute.remat_vision", "attention"),
        ("--compute.attention", "blocks", *ADAPTER),
    ],
    ids=["instruct", "dense", "align", "all", "remat_vision", "adapter"],
)
def test_as_many_flops_as_traced(tmp_path: Path, flags: tuple[str, ...], monkeypatch):
    """Rows of 128 are one block: a whole square of scores, where the formula has half of it."""
    monkeypatch.setattr(layers, "UNROLLED", 0)
    here = plans(tmp_path, "cpu:1", "--compute.compute", "float32", *flags)
    # against none: the image tower's own policy is then none as well, unless it is named
    still = here.config.compute.remat_vision is not None
    nothing = products(here, "none")
    for remat in ("dots", "attention", "full", "offload"):
        found = work.computed_again(here, here.configured._replace(remat=remat))
        square = _of_language(here, remat)
        assert products(here, remat) - nothing == (
            found.products + found.attention + square - (_of_vision(here) if still else 0)
        ), remat


def _of_language(here: Plans, remat: str) -> float:
    """The formula's attention of the language layers."""
    c, data = here.language, here.config.data
    backend = here.config.compute.attention
    if keeps_attention(Tower(remat, backend)):
        return 0.0
    return 2.0 * c.layers * c.heads * c.head_dim * data.length * data.rows * data.length


def _of_vision(here: Plans) -> float:
    """What `remat_vision` computes again under `none` too."""
    found = work.computed_again(here, here.configured._replace(remat="none"))
    return found.products + found.attention


WORDS = {"splash": "v5e:2x2", **dict.fromkeys(("cudnn", "tokamax", "triton"), "h100:4")}


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_whose_results_can_be_kept(tmp_path: Path, backend: str):
    """More than with `full` is kept, and more than the layers' inputs are in the host's memory."""
    word = WORDS.get(backend, "h100:4")
    flags = ("--compute.attention", backend, "--data.length", "512", "--data.rows", "4")
    here = plans(tmp_path, word, *flags, "--model.vision.heads", "3", "--mesh.fsdp", "4")
    full, attention, offload = (here._kept(r, 1) for r in ("full", "attention", "offload"))
    keeps = {remat: keeps_attention(Tower(remat, backend)) for remat in UNNAMED}
    assert keeps == {
        "attention": attention.device > full.device,
        "offload": offload.host > here.language.layers * 512 * here.language.width * 2,
    }


def test_weights_are_read_as_often_as_they_are_needed(tmp_path: Path):
    """Bytes of memory: weights forward, backward and again; the layers' results, out and in.

    Those are written and read whether they were kept or are computed again.
    """
    here = plans(tmp_path, "cpu:1", "--data.rows", "8", "--train.microbatches", "2")
    sizes = matmul_parameters(here.config.model)
    parts = ("vision", "connector", "language")
    vision, connector, language = (
        2 * sum(size for path, size in sizes.items() if path.startswith(part)) for part in parts
    )
    last = 2 * sizes["language/layers/mlp/down/kernel"]
    head = 2 * sizes["language/head/kernel"]
    forward, backward = vision + connector + language, language
    results = here.memory(here.configured._replace(remat="none")).activations
    for remat, again in (("none", 0), ("dots", 0), ("attention", 1), ("full", 1)):
        setting = here.configured._replace(remat=remat)
        bytes_now = here.memory(setting)
        state = 2 * (bytes_now.trainable + bytes_now.moments) + bytes_now.gradients
        read = forward + backward + again * (language - head - last)
        of_microbatch = read + 2 * results
        assert work.work(here, setting, 0).memory == 2 * of_microbatch + state
    assert setting.split == Split(1, 1, 1)
