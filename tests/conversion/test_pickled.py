"""Folders whose weights are files of torch.save, through every command that opens a folder."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mllm_jax import __main__ as command_line
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.images import decode
from mllm_jax.distributed import sharding
from mllm_jax.generation.answer import generate
from mllm_jax.models import mllm
from mllm_jax.models.axes import logical_axes
from tests.checkpoints.folders import read_all

FLOAT32 = ComputeConfig(compute="float32", remat="none")


def published_clip():
    pytest.importorskip("torch", reason="the folder is written by torch.save")
    from tests.support import published_clip

    return published_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_clip().make(tmp_path_factory.mktemp("published") / "clip")


@pytest.fixture(scope="module")
def joined(clip: Path, oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "model"
    conversions.join(out, vision=clip, language=oracle / "llama31")
    return out


def test_the_published_folder_has_no_safetensors(clip: Path) -> None:
    assert sorted(path.name for path in clip.iterdir()) == [
        "config.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
    ]
    stored = stored_tensors(clip)
    assert stored["vision_model.embeddings.position_ids"].format == "I64"
    assert "text_model.embeddings.token_embedding.weight" in stored


def test_the_readmes_join_opens_clip_as_published(joined: Path, clip: Path) -> None:
    """Image features through our tower equal those of stock transformers from the same folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    stock = transformers.CLIPVisionModel.from_pretrained(clip).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(clip)
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (41, 67, 3), np.uint8))
    image.save(joined.parent / "image.png")
    given = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = stock(given, output_hidden_states=True).hidden_states[-2][0, 1:].numpy()

    source = open_model(joined)
    config = source.config.model
    assert config.vision is not None
    assert config.vision.feature_layer == -2
    model = mllm.build(config, FLOAT32)
    params = source.load(mllm.abstract_params(model))
    pixels = decode.load_pixels(
        joined.parent / "image.png", config.vision.image_size, "crop", config.vision.image_mean
    )
    kernel = np.asarray(params["connector/linear_1/kernel"])
    with jax.default_matmul_precision("highest"):
        found = mllm.image_embeddings(model, params, jax.numpy.asarray(pixels[None, None]))
    np.testing.assert_allclose(found[0], expected @ kernel, atol=2e-5, rtol=0)


def test_the_export_holds_the_published_numbers(joined: Path, clip: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    conversions.to_hf(joined, tmp_path / "hf")
    published = torch.load(clip / "pytorch_model.bin", weights_only=True)
    exported = read_all(tmp_path / "hf")
    tower = {name for name in exported if name.startswith("vision_tower.")}
    assert {f"vision_tower.{name}" for name in published if name.startswith("vision_model.")} == (
        tower | {"vision_tower.vision_model.embeddings.position_ids"}
    )
    for name in tower:
        original = published[name.removeprefix("vision_tower.")].numpy()
        assert exported[name].tobytes() == original.tobytes(), name
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}


def test_a_connector_of_the_original_llava(clip: Path, oracle: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    given = {
        f"model.mm_projector.{layer}.{part}": torch.randn(shape, dtype=torch.bfloat16)
        for layer, inputs in ((0, 48), (2, 64))
        for part, shape in (("weight", (64, inputs)), ("bias", (64,)))
    }
    torch.save(given, tmp_path / "mm_projector.bin")
    words = ["--vision", str(clip), "--language", str(oracle / "llama31"), "--connector-weights"]
    words = ["convert", "join", str(tmp_path / "model"), *words, str(tmp_path / "mm_projector.bin")]
    assert command_line.main(words) == 0
    config = open_model(tmp_path / "model").config.model
    assert config.connector is not None
    assert config.connector.kind == "mlp"
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    exported = read_all(tmp_path / "hf")
    for name, x in given.items():
        layer = {"0": "linear_1", "2": "linear_2"}[name.split(".")[2]]
        found = exported[f"multi_modal_projector.{layer}.{name.split('.')[3]}"]
        assert found.tobytes() == x.view(torch.int16).numpy().tobytes(), name


@pytest.mark.parametrize("name", ["llava_mlp", "llava_bf16", "llama32_tied"])
def test_any_folder_opens_as_well_from_torch_files(name: str, oracle: Path, tmp_path: Path) -> None:
    """One file or shards, every number format: what safetensors hold, to the bit, and in parts."""
    source = published_clip().save_as_bin(oracle / name, tmp_path / "src")
    assert not list(source.glob("*.safetensors"))
    conversions.from_hf(source, tmp_path / "model")
    expected, found = (open_model(path) for path in (oracle / name, tmp_path / "model"))
    direct = open_model(source)
    shapes = conversions.abstract(expected.config.model)
    assert direct.config.model == found.config.model == expected.config.model
    trees = [opened.leaves(shapes) for opened in (expected, found, direct)]
    for path, leaf in trees[0].items():
        whole = leaf.read()
        assert trees[1][path].read().tobytes() == whole.tobytes(), path
        assert trees[2][path].read().tobytes() == whole.tobytes(), path
        part = tuple(slice(n // 2, n) for n in leaf.shape)
        assert trees[2][path].at(part).tobytes() == whole[part].tobytes(), path


def test_a_folder_of_torch_files_answers_and_fills_a_mesh(
    oracle: Path, tmp_path: Path, make_mesh: Callable[..., Mesh]
) -> None:
    """The greedy tokens of transformers; every device holds its own part of every parameter."""
    source = published_clip().save_as_bin(oracle / "llava_mlp", tmp_path / "src")
    expected = np.load(source / "expected.npz")
    pictures = sorted(source.glob("image_*.png"))
    question = str(expected["question"])
    answer = generate(source, question, pictures, max_new_tokens=12, end_ids=())
    assert answer.tokens == expected["greedy"].tolist()

    shapes = conversions.abstract(open_model(source).config.model)
    places = sharding.shardings(make_mesh(fsdp=4, tensor=2), logical_axes(shapes))
    placed = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[path])
        for path, x in shapes.items()
    }
    loaded = open_model(source).load(placed)
    for path, leaf in open_model(oracle / "llava_mlp").leaves(shapes).items():
        np.testing.assert_array_equal(loaded[path], leaf.read(), path)
