"""Defines the options of a recipe: stages as a tree, what is evaluated and exported at its end.

stages: [mlp.yaml, {file: pt.yaml}, {file: it.yaml, from: mlp}, {name: pt_it, file: it.yaml,
from: pt}]
"""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Literal

from mllm_jax.common.errors import require
from mllm_jax.common.ranges import NameText, PathText, Range, Section, Size


@dataclass(frozen=True)
class StageEntry(Section, at="stages[]", shorthand="file"):
    """One stage of a recipe, in any order; `align.yaml` alone is `{file: align.yaml}`."""

    file: PathText
    """Stage file, relative to the recipe file; several stages may use the same one."""
    name: NameText | None = None
    """Name of the stage and of its run folder; by default the file's, without its ending."""
    from_: NameText | None = None
    """Stage that its weights come from; by default the entry before it in the list."""

    @property
    def label(self) -> str:
        """The stage's name."""
        return self.name if self.name is not None else PurePath(self.file).stem


@dataclass(frozen=True)
class EvaluateConfig(Section, at="evaluate"):
    """Held-out data at the end of a recipe: a LLaVA JSON file."""

    data: PathText
    """LLaVA JSON or JSONL; every record names its language."""
    images: PathText | None = None
    """Folder in which image paths start; by default `images` beside `data`, else its folder."""
    max_new_tokens: Annotated[int, Range("[1, 1_048_576]")] = 32
    """Tokens after which an answer is cut."""
    rows: Annotated[int, Range("[1, 65_536]")] = 32
    """Questions answered at the same time."""
    devices: Annotated[int, Range("[1, 65_536]")] | None = None
    """Devices of each process that share the work; all by default."""
    fsdp: Annotated[int, Range("[1, 65_536]")] = 1
    """Devices that share the parameters, as `mesh.fsdp` in training; the others divide the rows."""
    tensor: Annotated[int, Range("[1, 65_536]")] = 1
    """Devices that share heads and vocabulary, as `mesh.tensor` in training."""
    fidelity: Annotated[tuple[NameText, ...], Size("[0, 1_000]")] = ()
    """Languages to tell apart, as `[eu, es, en]`: how many answers are in that of their question.

    None by default. Questions about images are then asked without them too.
    """
    identifier: PathText | None = None
    """With `fidelity`: a fastText model such as GlotLID's, in the place of py3langid."""
    chrf: bool = False
    """Whether chrF2, chrF++ and BLEU against the true answers are computed, by sacrebleu."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.identifier is None or len(self.fidelity) > 0,
            "evaluate.identifier: is used with evaluate.fidelity alone; give the languages that it "
            "tells apart, or leave it out",
        )


@dataclass(frozen=True)
class RecipeConfig(Section):
    """Stages, each from the weights of the one before it or of the one it names, then evaluation.

    One stage can be the start of several others, so a recipe is a tree.
    """

    stages: Annotated[tuple[StageEntry, ...], Size("[1, 1_000]", "name at least one stage file")]
    """The stages; the first one starts from its own `init`."""
    out: PathText = "runs/recipe"
    """Folder of the recipe; each stage gets a run folder in it."""
    variants: Annotated[dict[NameText, NameText], Size("[0, 1_000]")] = field(default_factory=dict)
    """Names of finished models and the stages they come from, as `PT+IT: pt_it`.

    Each is evaluated and exported, in `evaluation/NAME` and `hf/NAME`. By default these are the
    stages that no other stage starts from; a single one goes to `evaluation` and `hf`.
    """
    evaluate: EvaluateConfig | None = None
    """Held-out data to evaluate the finished models on; none by default."""
    export: Literal["float32", "bfloat16", "float16"] | None = "bfloat16"
    """Number format of the Hugging Face folders at the end; null for no export."""
