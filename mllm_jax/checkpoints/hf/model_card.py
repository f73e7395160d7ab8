"""README.md of an exported folder: the hub's model card, with its YAML header.

Header fields: https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from typing import Any

import yaml

from mllm_jax.checkpoints.hf.connector_form import Form
from mllm_jax.checkpoints.hf.tiles_text import tiles_text
from mllm_jax.checkpoints.hf.write_config import architecture
from mllm_jax.config.stage import FolderConfig

USE = """```python
from transformers import {auto}, AutoProcessor

processor = AutoProcessor.from_pretrained("PATH")
model = {auto}.from_pretrained("PATH")
```"""

TOWERS = {"clip": "CLIP", "siglip": "SigLIP"}
# how a linear connector is stored, by its form
STORED: dict[Form | None, str] = {
    None: "",
    "gelu": ", one matrix, stored as two layers with GELU between: gelu(x) - gelu(-x) = x",
    "linear": ", one matrix, stored with an identity as linear_2 and no activation",
}


def model_card(config: FolderConfig, name: str, form: Form | None = None) -> str:
    """The card's text; the license is left for a person to fill in.

    Args:
        config: of the model.
        name: the model's title.
        form: in which a linear connector is stored.
    """
    multimodal = config.model.patches > 0
    header: dict[str, Any] = {
        "language": list(config.languages),
        "license": "other",
        "license_name": "FILL-IN",
        "base_model": list(config.base_models),
        "library_name": "transformers",
        "pipeline_tag": _task(config),
        "tags": [
            "mllm-jax",
            *(
                ["llava" if config.model.grids is None else "llava-next", "multimodal"]
                if multimodal
                else []
            ),
        ],
    }
    if config.scores:
        header["model-index"] = [
            {"name": name, "results": [_result(config, *score) for score in config.scores.items()]}
        ]
    header = {key: value for key, value in header.items() if value}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n",
        f"# {name}\n",
        _summary(config, form),
    ]
    if config.model.grids is not None:
        parts.append("## Image tiles\n\n" + tiles_text(config.model))
    parts.append(
        "**License: to be filled in** by whoever publishes this model; the licenses of the base "
        "models apply.\n"
    )
    if config.shares:
        parts.append(
            "## Training data\n\nShare of trained tokens per stream.\n\n"
            + _table("stream", "share", config.shares, "{:.1%}")
        )
    if config.scores:
        parts.append("## Evaluation\n\n" + _table("score", "value", config.scores, "{:.4g}"))
    if config.model.language is not None:
        auto = architecture(config.model) if multimodal else "AutoModelForCausalLM"
        use = USE.format(auto=auto)
        parts.append(
            "## Use\n\n"
            + (
                use
                if multimodal
                else use.replace("AutoProcessor", "AutoTokenizer").replace("processor", "tokenizer")
            )
            + "\n"
        )
    return "\n".join(parts)


def _task(config: FolderConfig) -> str:
    if config.model.language is None:
        return "image-feature-extraction"
    return "image-text-to-text" if config.model.patches else "text-generation"


def _summary(config: FolderConfig, form: Form | None) -> str:
    lines = []
    vision, language, connector = config.model.vision, config.model.language, config.model.connector
    square = "image" if config.model.grids is None else "square"
    if vision is not None:
        vectors = config.model.patches or vision.patches
        lines.append(
            f"- vision: {TOWERS[vision.kind]}, {vision.layers} layers of width {vision.width}, "
            f"{vision.image_size} px in patches of {vision.patch_size} ({vectors} vectors "
            f"per {square}), features of layer {vision.feature_layer}"
        )
    if connector is not None:
        lines.append(f"- connector: {connector.kind}{STORED[form]}")
    if language is not None:
        lines.append(
            f"- language: Llama, {language.layers} layers of width {language.width}, "
            f"{language.vocab} rows of vocabulary"
        )
    lines.append("- trained and converted with mllm_jax")
    return "\n".join(lines) + "\n"


def _result(config: FolderConfig, name: str, value: float) -> dict[str, Any]:
    return {
        "task": {"type": _task(config)},
        "dataset": {"name": "held-out data of the run", "type": "held-out"},
        "metrics": [
            {"name": name, "type": name.split(" (")[0].replace(" ", "_"), "value": float(value)}
        ],
    }


def _table(left: str, right: str, values: dict[str, float], form: str) -> str:
    rows = [f"| {name} | {form.format(value)} |" for name, value in values.items()]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *rows]) + "\n"
