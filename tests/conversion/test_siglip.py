"""SigLIP folders through `convert`: towers alone, with a text half, and joined with a Llama."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.conversion import conversions
from mllm_jax.data.images.decode import load_pixels, normalise
from tests.checkpoints.folders import make_siglip, read_all


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_siglip(tmp_path_factory.mktemp("siglip"))


def opened(name: str, folder: Path):
    """Stock transformers' model of a folder: it misses nothing, and nothing is unexpected."""
    transformers = pytest.importorskip("transformers")
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize("name", ["vision", "full"])
def test_round_trip(name: str, siglip: Path, tmp_path: Path) -> None:
    """The image tower of a SiglipModel, and one without a pooling head; every tensor to the bit."""
    conversions.from_hf(siglip / name, tmp_path / "model")
    vision = open_model(tmp_path / "model").config.model.vision
    assert vision is not None
    assert (vision.kind, vision.pooling_head, vision.patches) == ("siglip", name == "full", 16)
    assert vision.image_mean == vision.image_std == (0.5, 0.5, 0.5)
    assert vision.resample == ("bilinear" if name == "full" else "bicubic")
    assert open_model(tmp_path / "model").image_fit == "stretch"
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    assert opened("SiglipVisionModel", tmp_path / "hf").use_head == (name == "full")
    prefix = "vision_model."
    original = {n.removeprefix(prefix): x for n, x in read_all(siglip / name).items()}
    tower = {n: x for n, x in original.items() if not n.startswith(("text_model.", "logit_"))}
    written = {n.removeprefix(prefix): x for n, x in read_all(tmp_path / "hf").items()}
    assert tower.keys() == written.keys()
    for key, x in written.items():
        assert x.tobytes() == tower[key].tobytes(), key


def test_join(siglip: Path, oracle: Path, tmp_path: Path) -> None:
    """Token counts and pixels are those of transformers' processor on the exported folder."""
    transformers = pytest.importorskip("transformers")
    conversions.join(tmp_path / "model", siglip / "full", oracle / "llama31", "mlp")
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    model = opened("LlavaForConditionalGeneration", tmp_path / "hf")
    assert model.config.vision_feature_select_strategy == "full"
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "hf")
    assert processor.num_additional_image_tokens == 0
    source = open_model(tmp_path / "model")
    vision = source.config.model.vision
    assert vision is not None
    for number, (height, width) in enumerate([(90, 33), (20, 75), (30, 30)]):
        path = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(path)
        made = processor(text="<image>?", images=[Image.open(path)], return_tensors="np")
        ids = made["input_ids"]
        assert (ids == source.config.model.image_token).sum() == source.config.model.patches == 16
        ours = load_pixels(path, 30, "stretch", resample=vision.resample)
        ours = normalise(ours, vision.image_mean, vision.image_std)
        theirs = made["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_processor_that_crops_survives(siglip: Path, oracle: Path, tmp_path: Path) -> None:
    """Images may be cropped or padded for a SigLIP tower as well: any fit has a processor."""
    transformers = pytest.importorskip("transformers")
    conversions.join(tmp_path / "model", siglip / "vision", oracle / "llama31", "mlp")
    cropping = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, image_mean=[0.5] * 3
    )
    cropping.save_pretrained(tmp_path / "crop")
    settings = json.loads((tmp_path / "crop" / "preprocessor_config.json").read_text())
    path = tmp_path / "model" / "processor_config.json"
    changed = json.loads(path.read_text()) | {"image_processor": settings}
    path.write_text(json.dumps(changed))
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert open_model(tmp_path / "model").image_fit == "crop"
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "hf")
    assert type(processor.image_processor).__name__.startswith("CLIPImageProcessor")


def test_the_original_code_is_not_read_with_siglip(oracle: Path, tmp_path: Path) -> None:
    """Its SigLIP towers lack their last layer, and its configs do not say so."""
    source = tmp_path / "src"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (source / name).write_bytes((oracle / "llava_siglip" / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    original = config["text_config"] | {
        "model_type": "llava_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "vision_config": config["vision_config"],
    }
    (source / "config.json").write_text(json.dumps(original))
    with pytest.raises(ConfigError, match="the original code's SigLIP towers are not read"):
        open_model(source)
