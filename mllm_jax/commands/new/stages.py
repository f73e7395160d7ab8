"""Builds the trees of the stage files and of the recipe, a reason beside every chosen value."""

from pathlib import Path
from typing import Any, NamedTuple

from mllm_jax.commands.new import choices, machine
from mllm_jax.commands.new.choices import Choice, Shape
from mllm_jax.commands.new.dataset import Dataset, Stream
from mllm_jax.commands.new.measure import Measured
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import Config

PARTS = {
    "align": {
        "connector": {"match": "connector/.*"},
        "rest": {"match": "(vision|language)/.*", "train": False},
    },
    "instruct": {
        "connector": {"match": "connector/.*"},
        "language": {"match": "language/.*"},
        "vision": {"match": "vision/.*", "train": False},
    },
}
FREEZING = {
    "align": Choice(PARTS["align"], "LLaVA-1.5, pretrain.sh: only the connector learns"),
    "instruct": Choice(PARTS["instruct"], "LLaVA-1.5, finetune.sh: the image tower stays frozen"),
}


FITS = {
    "clip": Choice("crop", "ours: CLIP's resize and centre crop, as LLaVA-1.5 aligns"),
    "siglip": Choice("stretch", "ours: both sides resized, as SigLIP was trained"),
}


class Model(NamedTuple):
    """What is trained."""

    config: ModelConfig
    parameters: int  # of the language model
    out: Path  # the project's folder

    @property
    def large(self) -> bool:
        """Whether the published values are for such a model."""
        return self.parameters >= choices.LARGE


def stage_tree(
    stage: str,
    project_language: str,
    dataset: Dataset,
    measured: Measured,
    model: Model,
    weights: Path,
) -> tuple[dict[str, Any], int]:
    """The tree of a stage file, and about how many steps the stage has.

    Args:
        stage: align or instruct.
        project_language: the project's language.
        dataset: what was written.
        measured: the stage's records in tokens.
        model: what is trained.
        weights: where the stage begins.
    """
    assert model.config.language is not None
    shape = choices.shape(
        stage, measured, model.config.language.max_length, model.config.patches, model.large
    )
    tree = _tree(stage, project_language, dataset, model, weights, shape)
    config = loading.build(Config, plain(tree | {"model": loading.to_dict(model.config)}))
    fit = machine.fit(config, shape.rows)
    tree["data"]["rows"] = fit.rows
    tree["train"]["microbatches"] = fit.microbatches
    tree["compute"]["remat"] = fit.remat
    if not fit.fits:
        why = f"{fit.microbatches.why}: too much; see mllm-jax preflight for a machine that fits"
        tree["train"]["microbatches"] = fit.microbatches._replace(why=why)
    return tree, shape.steps


def _tree(
    stage: str, project_language: str, dataset: Dataset, model: Model, weights: Path, shape: Shape
) -> dict[str, Any]:
    streams = dataset.stages[stage]
    single = len(streams) == 1
    shares = choices.weights(
        {name: stream.records for name, stream in streams.items()},
        {name: stream.language for name, stream in streams.items()},
        project_language,
    )
    every, vision = max(1, shape.steps // 4), model.config.vision
    return {
        "init": {"weights": Choice(str(weights), "the model, and its architecture")},
        "data": {
            "languages": sorted({stream.language for stream in streams.values()}),
            "length": shape.length,
            "image_slots": shape.image_slots,
            "rows": shape.rows,
            "over_long": Choice("drop", "ours: what does not fit a row is left out and counted"),
            "image_fit": FITS["clip" if vision is None else vision.kind],
            "streams": {
                name: _stream(stream, dataset.images, None if single else shares[name])
                for name, stream in streams.items()
            },
        },
        "optimizer": {
            "learning_rate": choices.rate(stage, model.parameters),
            "schedule": Choice("cosine", "ours: LLaVA-1.5"),
            "warmup_ratio": Choice(0.03, "ours: LLaVA-1.5"),
            "weight_decay": Choice(0.0, "ours: LLaVA-1.5"),
            "clip_norm": Choice(1.0, "ours: the Hugging Face trainer's default"),
            "parts": FREEZING[stage],
        },
        "train": {
            "epochs": shape.epochs,
            "microbatches": 1,
            "save_every": Choice(every, "ours: four checkpoints in a run"),
            "log_every": Choice(max(1, min(10, shape.steps // 20)), "ours"),
            **_held_out(stage, project_language, dataset, every),
        },
        "compute": {
            "compute": machine.compute_format(),
            "parameters": Choice("float32", "ours: LLaVA-1.5 (float32 master copies)"),
            "remat": "full",
        },
        "mesh": Choice({"data": 1, "fsdp": -1}, "ours: parameters over all devices"),
        "out": str(model.out / "runs" / stage),
    }


def _held_out(stage: str, project_language: str, dataset: Dataset, every: int) -> dict[str, Any]:
    """The section that measures the loss of a stage's held-out records; none where it has none."""
    if stage not in dataset.heldout:
        return {}
    formats = {stream.format for stream in dataset.stages[stage].values()} - {"document"}
    stream = {
        "path": str(dataset.heldout[stage]),
        "images": str(dataset.images),
        "language": project_language,
        "format": min(formats),
    }
    evaluate = {
        "every": Choice(every, "ours: with every checkpoint"),
        "streams": {"heldout": stream},
    }
    return {"evaluate": evaluate}


def _stream(stream: Stream, images: Path, weight: Choice | None) -> dict[str, Any]:
    tree: dict[str, Any] = {"path": str(stream.path), "language": stream.language}
    if stream.format == "document":
        tree["layout"] = "text"
    else:
        tree |= {"images": str(images), "format": stream.format}
    return tree if weight is None else tree | {"weight": weight}


def recipe_tree(out: Path, dataset: Dataset, last: Measured, stages: list[str]) -> dict[str, Any]:
    """The tree of the recipe file."""
    tree: dict[str, Any] = {
        "stages": [f"{stage}.yaml" for stage in stages],
        "out": str(out / "runs"),
    }
    if stages[-1] in dataset.heldout:
        tree["evaluate"] = {
            "data": Choice(str(dataset.heldout[stages[-1]]), "never trained"),
            "images": str(dataset.images),
            "max_new_tokens": choices.answer_tokens(last),
            "rows": 32,
        }
    exported = "bfloat16" if machine.compute_format().value == "bfloat16" else "float32"
    return tree | {"export": Choice(exported, "as it was computed")}


def plain(tree: Any) -> Any:
    """A tree without the reasons."""
    if isinstance(tree, Choice):
        return tree.value
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return tree
