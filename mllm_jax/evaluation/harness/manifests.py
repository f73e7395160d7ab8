"""Tells lmms-eval about our models (entry point `lmms_eval.models`; imported by it alone)."""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

MODULE = "mllm_jax.evaluation.harness.lmms_eval_model"


def manifests() -> list[ModelManifest]:
    """One model with two classes; lmms-eval takes the simple one by --force_simple."""
    return [
        ModelManifest(
            "mllm_jax",
            simple_class_path=f"{MODULE}.MllmJaxSimple",
            chat_class_path=f"{MODULE}.MllmJax",
        )
    ]
