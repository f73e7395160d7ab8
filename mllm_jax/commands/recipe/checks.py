"""Everything that can be wrong with a recipe, looked at before its first step.

    names -> configs -> weights, tokenizer -> data indexes, steps, layout of every stage
          -> questions of the evaluation, with the tokenizer and template that the model will have

A later stage's weights do not exist yet, but what it inherits is known: the tokenizer is that of
the first stage's source, the chat template that of the last stage before it with conversations.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mllm_jax.checkpoints.hf.files import TEMPLATE
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.recipe.results import extras_of
from mllm_jax.commands.recipe.tree import Tree
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.recipe import EvaluateConfig
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.index.cache import check_paths
from mllm_jax.data.loader import Loader
from mllm_jax.distributed import sharding
from mllm_jax.evaluation import runner
from mllm_jax.evaluation.items import make_items
from mllm_jax.evaluation.parts import questions_of
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.samples import sampler
from mllm_jax.training import long_rows, run_folder, run_inputs, step, weights_biases
from mllm_jax.training.heldout import is_complete, open_heldout
from mllm_jax.training.setup import make_setup
from mllm_jax.training.start import check_samples, check_source


def check_folders(stages: Mapping[str, Config], tree: Tree) -> None:
    """Looks whether the stages' data are there and their folders free, or of these stages."""
    for name, config in stages.items():
        with naming(name):
            _check_start(config, tree.parents[name])
            for stream, section in config.data.streams.items():
                check_paths(stream, section)
            run_folder.check(config, resume="auto")
            _check_length(config)


def _check_start(config: Config, start: str | None) -> None:
    """Refuses to continue a stage that began from another one than the recipe says now."""
    begun = Path(config.out) / "config.yaml"
    if start is None or not begun.is_file():
        return
    before = loading.load(Config, begun).init.weights
    require(
        before is not None and Path(before).name == start,
        f"out={config.out}: began from {quoted(before)}, but starts from {start} now; put the "
        f"recipe back, or delete {config.out} and rerun it",
    )


def _check_length(config: Config) -> None:
    """Refuses to continue a stage to another end: its learning rates would no longer fit.

    `train` alone may be told to; here it is an override that was not repeated.
    """
    begun = Path(config.out) / "config.yaml"
    if not begun.is_file():
        return
    for name in ("steps", "epochs"):
        before = getattr(loading.load(Config, begun).train, name)
        now = getattr(config.train, name)
        require(
            before == now,
            f"out={config.out}: cannot continue with another length: train.{name} was {before}, is "
            f"{now}; give the overrides again that the recipe began with (--train.{name} "
            f"{'null' if before is None else before}), or continue the stage alone by mllm-jax "
            "train",
        )


class Checked(NamedTuple):
    """What is known of a recipe's stages before the first step."""

    pending: list[str]  # names of those that are not finished
    # stage -> chat template that its model will have; None: the first source's own
    templates: Mapping[str, str | None]


def check_stages(
    stages: Mapping[str, Config], tree: Tree, devices: Sequence[Any] | None
) -> Checked:
    """Opens what every stage that is not finished will read, and lays it out on the devices.

    Args:
        stages: by name, in order, as `recipe.load_stages` gives them.
        tree: of these.
        devices: the mesh's; all there are when None.

    Raises:
        ConfigError: as `train.train` would when the stage's turn comes.
    """
    pending: list[str] = []
    templates: dict[str, str | None] = {}
    for name, config in stages.items():
        start = tree.parents[name]
        template = None if start is None else templates[start]
        if is_complete(config, config.train.steps):
            file = Path(config.out) / "model" / TEMPLATE
            templates[name] = file.read_text(encoding="utf-8") if file.is_file() else template
            continue
        with naming(name):
            if start is None and config.init.weights is not None:
                check_source(config, open_model(config.init.weights))
            steps, chats = _check_stage(config, source_files(stages, tree.path(name)), devices)
        templates[name] = chats or template
        if not is_complete(config, steps):
            pending.append(name)
    return Checked(pending, templates)


def source_files(stages: Mapping[str, Config], path: Sequence[str] = ()) -> Path:
    """The folder of the tokenizer that the stages of a recipe have: the first one's.

    Args:
        stages: by name.
        path: of a tree, up to the stage in question; not needed where all begin with one stage.

    Raises:
        ConfigError: its weights are not a model.
    """
    first = stages[path[0]] if path else next(iter(stages.values()))
    if is_complete(first, first.train.steps):  # where it came from may be gone
        return open_model(first.out).files
    return run_folder.tokenizer_folder(first.init)


def check_questions(
    c: EvaluateConfig,
    stages: Mapping[str, Config],
    templates: Mapping[str, str | None],
    tree: Tree,
) -> None:
    """Reads the evaluation's questions as `evaluate` will, and makes their prompts.

    Args:
        c: the section.
        stages: of the recipe, the first one included.
        templates: stage that is evaluated -> chat template, see `Checked`.
        tree: of the stages.

    Raises:
        ConfigError: as `evaluate.evaluate`; there will be no chat template, or no language
            identifier that knows the languages.
    """
    kinds = {  # stages of a tree mostly differ in none of the three
        (source_files(stages, tree.path(stage)), template, stages[stage].model)
        for stage, template in templates.items()
    }
    with naming("evaluate"):
        check_prompts(c, kinds)


def check_prompts(c: EvaluateConfig, kinds: Iterable[tuple[Path, str | None, ModelConfig]]) -> None:
    """Makes the prompts of the evaluation's questions for some models.

    Args:
        c: the section.
        kinds: of each model the folder of its tokenizer, its chat template (None: the folder's own)
            and what it is.

    Raises:
        ConfigError: as in `check_questions`.
    """
    task = runner.free_task(c.data, c.images, c.max_new_tokens)
    by_language, extras = questions_of(task), extras_of(c)
    for language, of in by_language.items():
        extras.check(task, language, of)
    questions = [one for of in by_language.values() for one in of]
    for files, template, model in kinds:
        tokenizer = load_tokenizer(files)
        template = template or load_template(files, tokenizer)
        image_token = model.image_token if model.patches else None
        prompts = _Prompts(Chat(tokenizer, template, image_token, model.patches), model)
        make_items(prompts, task, questions)


class _Prompts(Answerer):
    """What makes prompts of a model that is yet to be trained: it has no weights to answer with."""

    def __init__(self, chat: Chat, model: ModelConfig):
        self.chat, self.config = chat, model


def _check_stage(
    config: Config, files: Path, devices: Sequence[Any] | None
) -> tuple[int, str | None]:
    """What `train` checks before it writes, for weights that may not exist yet.

    Returns:
        Its steps, and the chat template of its conversations.
    """
    begin = run_folder.check(config, resume="auto")
    check_samples(config, sampler)
    weights_biases.check(config.train.wandb)
    mesh = sharding.make_mesh(config.mesh.axes, devices)
    step.check_rows(mesh, config.data.rows, config.train.microbatches)
    long_rows.check(config, mesh)
    tokenizer = load_tokenizer(files)
    run_inputs.check_tokenizer(config, begin.step, tokenizer)
    several = jax.process_count() > 1
    share = sharding.rows_here(mesh, config.data.rows) if several else None
    loader = Loader(config.data, config.model, tokenizer, config.seed, share)
    steps = config.train.steps or loader.steps(config.train.epochs or 0)
    run_inputs.check(config, begin.step, loader, steps)
    shares = loader.shares(steps)
    open_heldout(config, tokenizer, loader.streams, shares, mesh)
    setup = make_setup(
        config.model, config.compute, config.optimizer, mesh, steps, adapter=config.adapter
    )
    fresh = config.init.fresh
    require(
        fresh is None or any(run_folder.is_fresh(config.init, p) for p in setup.of_model),
        f"init.fresh={fresh!r} matches no parameter path",
    )
    return steps, run_folder.chat_template(config.data.streams, shares)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of a stage before what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
