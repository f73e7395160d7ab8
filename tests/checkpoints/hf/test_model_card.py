"""The model card's header is YAML that says languages, base models, shares and scores."""

import dataclasses

import yaml

from mllm_jax.checkpoints.hf.model_card import model_card
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import FolderConfig

CONFIG = FolderConfig(
    model=ModelConfig(VisionConfig(), ConnectorConfig(), LanguageConfig(), 128256),
    languages=("eu", "en"),
    base_models=("openai/clip-vit-large-patch14-336", "meta-llama/Llama-3.1-8B-Instruct"),
    shares={"captions": 0.8, "text": 0.2},
    scores={"exact match (eu)": 0.93},
)


def test_header_and_tables() -> None:
    card = model_card(CONFIG, "digits")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["language"] == ["eu", "en"]
    assert header["base_model"] == list(CONFIG.base_models)
    assert header["license"] == "other"
    assert header["license_name"] == "FILL-IN"
    assert header["pipeline_tag"] == "image-text-to-text"
    assert "llava" in header["tags"]
    metric = header["model-index"][0]["results"][0]["metrics"][0]
    assert metric == {"name": "exact match (eu)", "type": "exact_match", "value": 0.93}
    assert "| captions | 80.0% |" in card
    assert "| exact match (eu) | 0.93 |" in card
    assert "LlavaForConditionalGeneration" in card


def test_a_text_model_says_nothing_of_images() -> None:
    card = model_card(FolderConfig(model=ModelConfig(language=LanguageConfig())), "llama")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["pipeline_tag"] == "text-generation"
    assert header["tags"] == ["mllm-jax"]
    assert "AutoTokenizer" in card
    assert "Processor" not in card
    assert "model-index" not in header


def test_hub_reads_the_header() -> None:
    hub = __import__("pytest").importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(CONFIG, "digits"))
    assert card.data.license == "other"
    assert card.data.eval_results[0].metric_value == 0.93


def test_a_card_says_how_images_were_cut() -> None:
    grids = GridsConfig(order="wh", rounding="original", several_images="pad")
    model = dataclasses.replace(CONFIG.model, grids=grids)
    card = model_card(dataclasses.replace(CONFIG, model=model), "next")
    assert "LlavaNextForConditionalGeneration" in card
    assert "canvases (height x width): 672x336, 336x672, 672x672, 336x1008, 1008x336" in card
    assert "(576 vectors per square)" in card
    assert "`order: wh`, `rounding: original`, `several_images: pad`" in card
    assert "396 x 704 pixels is 1968 tokens there, 1872 here" in card
    assert "one square of 577 tokens" in card
    stock = dataclasses.replace(model, grids=GridsConfig(order="hw"))
    card = model_card(dataclasses.replace(CONFIG, model=stock), "next")
    assert "`order: hw`, `rounding: hf`, `several_images: tiles`" in card
    assert "Stock transformers" not in card and "mllm_jax_grids" not in card
