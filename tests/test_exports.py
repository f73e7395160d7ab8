"""Exports open in transformers 4 and 5 with equal logits, token ids and pixels, and equal to ours.

transformers 4.57 lives in an environment of its own, made once in pytest's cache folder
(.pytest_cache/d/transformers-4.57, 300 MB); torch, numpy and Pillow are those of this one.
"""

import dataclasses
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mllm_jax.batch import NEWLINE, ModelInputs
from mllm_jax.checkpoints.hf.tensor_files import DTYPES
from mllm_jax.checkpoints.hf.tokenizer import special_ids
from mllm_jax.checkpoints.hf.writer import write_hf
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    RopeConfig,
    VisionConfig,
)
from mllm_jax.config.stage import ComputeConfig, FolderConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.images.decode import normalise
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from tests.support import tiny

pytestmark = pytest.mark.slow

RELEASE = "4.57"
PROMPT = "Zein kolore daude irudian?"
VISION = VisionConfig(
    image_size=28, patch_size=7, width=48, mlp=96, layers=3, heads=4, projection=32
)
LLAMA3 = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64)
TEXT = LanguageConfig(
    vocab=tiny.VOCAB, width=64, mlp=160, layers=3, heads=4, kv_heads=2, head_dim=16,
    norm_eps=1e-5, max_length=512, rope=LLAMA3,
)  # fmt: skip
PLAIN = LanguageConfig(
    vocab=tiny.VOCAB, width=64, mlp=160, layers=3, heads=4, kv_heads=4, head_dim=24,
    norm_eps=1e-6, tied=True, max_length=512, rope=RopeConfig(1e4),
)  # fmt: skip
# so narrow that a linear connector takes the gelu form
NARROW = dataclasses.replace(VISION, width=32)
# its last hidden state, before the post-norm, of 4 x 4 patches: 3 pixels of a side are left out
SIGLIP = VisionConfig(
    image_size=31, patch_size=7, width=48, mlp=96, layers=3, heads=4, feature_layer=-1,
    activation="gelu_pytorch_tanh", norm_eps=1e-6, kind="siglip", pooling_head=True,
    image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5),
)  # fmt: skip
IMAGE = tiny.VOCAB - 1
TILES = GridsConfig("hw", ((28, 56), (56, 28), (56, 56), (84, 28)))
ORIGINAL = GridsConfig("wh", ((28, 56), (56, 28), (56, 56)), "original", "pad")
Format = Literal["float32", "bfloat16"]
MODELS: dict[str, tuple[ModelConfig, Format]] = {
    "llava_mlp": (ModelConfig(VISION, ConnectorConfig("mlp"), TEXT, IMAGE), "float32"),
    "llava_linear": (ModelConfig(VISION, ConnectorConfig("linear"), TEXT, IMAGE), "float32"),
    "llava_linear_gelu": (ModelConfig(NARROW, ConnectorConfig("linear"), TEXT, IMAGE), "float32"),
    "llava_tied": (ModelConfig(VISION, ConnectorConfig("mlp", False), PLAIN, IMAGE), "float32"),
    "llava_bfloat16": (ModelConfig(VISION, ConnectorConfig("mlp"), TEXT, IMAGE), "bfloat16"),
    "llava_next": (ModelConfig(VISION, ConnectorConfig("mlp"), TEXT, IMAGE, TILES), "float32"),
    "llava_next_original": (
        ModelConfig(VISION, ConnectorConfig("linear"), TEXT, IMAGE, ORIGINAL),
        "bfloat16",
    ),
    "llava_siglip": (ModelConfig(SIGLIP, ConnectorConfig("mlp"), TEXT, IMAGE), "float32"),
    "llama": (ModelConfig(language=TEXT), "float32"),
    "llama_tied": (ModelConfig(language=PLAIN), "float32"),
    "clip": (ModelConfig(vision=VISION), "float32"),
}
READ = {"joined", *MODELS} - {"clip"}  # those that read a prompt


@pytest.fixture(scope="module")
def transformers4(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment with transformers 4.57; made when it is not there."""
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir(f"transformers-{RELEASE}"))
    python, done = folder / "bin" / "python", folder / "done"
    with open(folder / "lock", "w") as lock:  # several test processes make one
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder, with_pip=True, clear=False)
            pip = [python, "-m", "pip", "install", "--quiet", f"transformers=={RELEASE}.*"]
            subprocess.run(pip, check=True, timeout=900)
            (site,) = (folder / "lib").glob("python3.*/site-packages")
            rest = [path for path in sys.path if path.endswith("site-packages")]
            (site / "rest.pth").write_text("\n".join(rest) + "\n")
            done.touch()
    return python


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of MODELS as an exported folder; and `joined`, of clip and llama."""
    base = tmp_path_factory.mktemp("exports")
    tiny.make_data(base / "data")
    for name, (model, dtype) in MODELS.items():
        _write(base / "source" / name, base / "data" / "tokenizer", model, dtype)
        conversions.from_hf(base / "source" / name, base / "models" / name)
        conversions.to_hf(base / "models" / name, base / name)
    conversions.join(base / "models" / "joined", base / "clip", base / "llama", "mlp")
    conversions.to_hf(base / "models" / "joined", base / "joined")
    random = np.random.default_rng(1)
    for name, (height, width) in {"tall": (90, 33), "wide": (30, 75)}.items():
        noise = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(base / f"{name}.png")
    return base


def _write(out: Path, files: Path, model: ModelConfig, dtype: Format) -> None:
    """A folder of random weights: deviation 1 / sqrt(width), norms near 1, and so are logits."""
    random = np.random.default_rng(0)
    width = (model.language or VISION).width

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.standard_normal(shape, np.float32)
        if path.endswith("scale"):
            return (1 + 0.1 * noise).astype(DTYPES[dtype])
        if path.endswith("bias"):
            return (0.1 * noise).astype(DTYPES[dtype])
        return (noise / np.float32(width**0.5)).astype(DTYPES[dtype])

    shapes = {p: tuple(x.shape) for p, x in conversions.abstract(model).items()}
    arrays = {path: draw(path, shape) for path, shape in shapes.items()}
    leaves = {p: Leaf(x.shape, x.dtype, lambda x=x: x) for p, x in arrays.items()}
    out.mkdir(parents=True)
    fit = "stretch" if model.vision is SIGLIP else "crop"
    write_hf(out, FolderConfig(model, dtype), leaves, files, special_ids(files), fit)


def see(python: str | Path, exports: Path, out: Path) -> dict[str, np.ndarray]:
    """What the transformers of `python` makes of every folder."""
    script = Path(__file__).parent / "support" / "open_exports.py"
    folders = [exports / name for name in (*MODELS, "joined")]
    images = ["--images", exports / "wide.png", exports / "tall.png"]
    prompt = f"<image>\n<image>\n{PROMPT}"
    command = [python, script, *folders, "--prompt", prompt, *images, "--out", out]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


@pytest.fixture(scope="module")
def seen(exports: Path, transformers4: Path) -> tuple[dict, dict]:
    """What transformers 4 and 5 make of the folders."""
    pytest.importorskip("torch")
    old = see(transformers4, exports, exports / "old.npz")
    new = see(sys.executable, exports, exports / "new.npz")
    assert str(old["version"]).startswith(f"{RELEASE}.")
    assert str(new["version"]).startswith("5.")
    return old, new


@pytest.mark.parametrize("name", [*MODELS, "joined"])
def test_both_find_every_tensor_and_compute_the_same(name: str, seen: tuple[dict, dict]) -> None:
    old, new = seen
    assert old[f"{name}/wrong"].tolist() == new[f"{name}/wrong"].tolist() == []
    np.testing.assert_allclose(old[f"{name}/logits"], new[f"{name}/logits"], atol=1e-5, rtol=0)
    if name in READ:
        assert np.array_equal(old[f"{name}/ids"], new[f"{name}/ids"])
        np.testing.assert_allclose(old[f"{name}/pixels"], new[f"{name}/pixels"], atol=1e-6)


@pytest.mark.parametrize("name", sorted(READ))
def test_ours_are_equal(name: str, exports: Path, seen: tuple[dict, dict]) -> None:
    """From the model folder: logits, and pixels from the picture files."""
    folder, expected = exports / "models" / name, seen[1]
    if name == "llava_next_original":  # as stock transformers does, which knows no other way
        folder = _as_stock(exports, name)
    opened = Answerer(folder, ComputeConfig(compute="float32", remat="none"))
    assert (opened.config.patches == 0) == name.startswith("llama")
    images = [exports / f"{x}.png" for x in ("wide", "tall")] if opened.config.patches else []
    tokens = expected[f"{name}/ids"]
    pictures, layouts = opened.pictures(images), opened.layouts(images)
    pixels = np.zeros((1, 0, 1, 1, 3), np.float32)
    index = np.full(tokens.shape, -1, np.int32)
    if images:
        vision = opened.config.vision
        assert vision is not None
        raw = np.concatenate([picture.pixels for picture in pictures])
        pixels = normalise(raw, vision.image_mean, vision.image_std)[None]
        given = expected[f"{name}/pixels"]
        given = given if given.ndim == 5 else given[:, None]
        given = np.concatenate([x[: of.tiles] for x, of in zip(given, layouts, strict=True)])
        np.testing.assert_allclose(pixels[0], given.transpose(0, 2, 3, 1), atol=1e-5)
        newline = len(raw) * vision.patches
        places = np.concatenate(opened.placeholders(images) or [np.arange(newline)])
        index[tokens == opened.config.image_token] = np.where(places == NEWLINE, newline, places)
    ours = logits(opened.model, opened.params, tokens.astype(np.int32), index, pixels)
    np.testing.assert_allclose(np.asarray(ours), expected[f"{name}/logits"], atol=1e-5, rtol=0)


def _as_stock(exports: Path, name: str) -> Path:
    """The export without the choices of its training."""
    folder = Path(shutil.copytree(exports / name, exports / f"{name}_as_stock"))
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("mllm_jax_grids")["rounding"] == "original"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, index, pixels):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    inputs = ModelInputs(tokens, jnp.ones_like(tokens), positions, index, pixels)
    return mllm.logits(mllm.hidden(model, params, inputs), mllm.head(params))
