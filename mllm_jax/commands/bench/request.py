"""What the command line of `mllm-jax bench` asks for; imports nothing slow."""

from collections.abc import Sequence
from dataclasses import dataclass

from mllm_jax.common.errors import require
from mllm_jax.config.loading import split_flags

WARMUP = 2  # steps before the clock starts: caches and allocators settle
STEPS, ROUNDS = 5, 5  # timed steps; rounds with --baseline
SIZED = {"stage": "instruct", "length": 1024, "batch": 2, "dtype": "float32", "remat": "none"}
RANKS = "[1, 65_536]"
SAME = {  # options of a stage that have a flag: give one of the two
    "--compute.attention": "attention",
    "--compute.remat": "remat",
    "--data.rows": "batch",
    "--data.length": "length",
    "--train.microbatches": "microbatches",
}


@dataclass(frozen=True)
class Request:
    """The flags, by name; None or empty: as the stage file has it, or a size's default."""

    config: str | None = None  # a stage file; excludes size and stage
    size: str | None = None  # a key of `work.SIZES`
    stage: str | None = None  # what is trained: a key of `work.TRAINED`
    lora: int | None = None  # rank of adapters in the language layers, which are then frozen
    length: int | None = None  # tokens in a row
    batch: Sequence[int] = ()  # rows of an update
    microbatches: Sequence[int] = ()
    attention: Sequence[str] = ()
    remat: Sequence[str] = ()
    dtype: str | None = None  # number format of parameters and products
    text_only: bool = False  # rows without images
    steps: int = STEPS  # that are timed
    sweep: bool = False  # several values of every setting that no flag names
    profile: str | None = None  # folder of a trace
    baseline: bool = False  # PyTorch in turn
    rounds: int | None = None  # with the baseline
    json_file: str | None = None  # takes the objects that are printed
    overrides: Sequence[str] = ()  # options of the stage, or of a size's compute, optimizer, mesh

    @property
    def several(self) -> bool:
        """Whether more than one setting is measured."""
        axes = (self.batch, self.microbatches, self.attention, self.remat)
        return self.sweep or any(len(values) > 1 for values in axes)

    def check(self) -> None:
        """Raises ConfigError for flags that exclude each other."""
        require(
            (self.config is None) != (self.size is None),
            "bench: give --config FILE or --size tiny|small|1b|8b, exactly one",
        )
        require(
            self.stage is None or self.config is None,
            f"bench: --stage {self.stage} has no effect with --config; its optimizer.parts say "
            "what is trained",
        )
        require(
            self.lora is None or (self.config is None and self.stage in (None, "instruct")),
            f"bench: --lora {self.lora} is for --size with --stage instruct; a stage file has "
            "its own adapter section",
        )
        require(
            self.profile is None or not (self.several or self.baseline),
            "bench: --profile takes one setting; leave out --sweep, --baseline and lists",
        )
        require(
            not self.baseline or (self.size is not None and not self.sweep),
            "bench: --baseline takes --size and no --sweep: PyTorch's model has the same size",
        )
        require(
            not self.baseline or (len(self.batch) < 2 and tuple(self.microbatches) in ((), (1,))),
            "bench: --baseline takes one --batch and one microbatch, as PyTorch's step has",
        )
        require(
            self.rounds is None or self.baseline,
            f"bench: --rounds {self.rounds} has no effect without --baseline",
        )
        for word, _ in split_flags(self.overrides):
            require("." in word, f"bench: {word}: unknown option; mllm-jax bench --help lists all")
            flag = SAME.get(word)
            require(
                flag is None or not (self.sweep or getattr(self, flag)),
                f"bench: {word} says what --{flag} does; give --{flag} alone",
            )
