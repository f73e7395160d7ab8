"""Makes a project for one language: data, first weights, stage files, recipe and README.

    --data -> records -> train and held-out files -> tokens of a sample -> stage files, recipe
    --vision, --llm -> convert join -> models/start

DIR appears when all of it is there. Everything that is chosen is printed with its reason, and is a
comment in the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.checkpoints.hf.files import TEMPLATE
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.new import machine
from mllm_jax.commands.new import tokenizer as tokenizer_report
from mllm_jax.commands.new.dataset import Dataset, write_dataset
from mllm_jax.commands.new.languages import Language
from mllm_jax.commands.new.measure import measure
from mllm_jax.commands.new.readme import readme
from mllm_jax.commands.new.sources import open_data
from mllm_jax.commands.new.stages import Model, recipe_tree, stage_tree
from mllm_jax.commands.new.yaml_text import chosen, yaml_text
from mllm_jax.common.errors import one_line, require
from mllm_jax.common.folders import check_new, new_folder
from mllm_jax.common.tokenizer_model import needs_conversion
from mllm_jax.config.model import ModelConfig
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.templates import TEMPLATES, special_tokens
from mllm_jax.data.chat.tokenizer import load_tokenizer


class Backbones(NamedTuple):
    """What the model is joined of."""

    vision: Path
    llm: Path
    connector: str
    chat_format: str | None  # of questions; None: by the llm's own chat template


def run(
    out: str | Path,
    language: Language,
    backbones: Backbones,
    data: Sequence[Path],
    images: Path | None = None,
    parallel: Sequence[Path] | None = None,
) -> Path:
    """Makes the project folder OUT and prints what was chosen, and the next commands.

    Args:
        out: the folder to make.
        language: code and name.
        backbones: CLIP, Llama, and the connector between them.
        data: files or folders of records.
        images: where image paths start; None: the folder of each file.
        parallel: a text in the language and in English, line by line.

    Raises:
        ConfigError: OUT is not empty, data or weights cannot be read, or they do not fit.
    """
    out = Path(out)
    check_new(out)
    lines = None if parallel is None else tokenizer_report.read_parallel(parallel)
    source = open_model(backbones.llm)
    require(
        source.config.model.language is not None,
        f"--llm {backbones.llm}: has no language model; give a Llama folder",
    )
    chat = _chat_format(source.files, backbones.chat_format)
    opened = [open_data(path, images, language.code) for path in data]
    with new_folder(out) as folder:
        dataset = write_dataset(folder, out, opened, chat)
        _say(dataset.notes)
        require(
            language.code in dataset.languages,
            f"--language {language.code}: no record is in it; the records name "
            f"{', '.join(dataset.languages)}",
        )
        conversions.join(
            folder / "models" / "start",
            vision=backbones.vision,
            language=backbones.llm,
            connector=backbones.connector,
            # of captions alone: a picture is answered as it was trained
            chat_format=backbones.chat_format if "instruct" in dataset.stages else "plain",
            name=out / "models" / "start",
        )
        tokenizer = load_tokenizer(folder / "models" / "start")
        sample = [record for of in dataset.samples.values() for _, record in of]
        print(tokenizer_report.report(tokenizer, sample, language.code, lines))
        _write_configs(folder, out, language, dataset)
    print(f"\n{out} is ready; {out / 'README.md'} has the next commands")
    return out


def _write_configs(folder: Path, out: Path, language: Language, dataset: Dataset) -> None:
    """Chooses the values of every stage and writes configs/ and README.md."""
    start = folder / "models" / "start"
    tokenizer, config = load_tokenizer(start), open_model(start).config.model
    model = Model(config, _parameters(config), out)
    _say([f"machine: {machine.describe()}"])
    (folder / "configs").mkdir()
    measured, before = {}, out / "models" / "start"
    for stage, streams in dataset.stages.items():
        records = sum(stream.records for stream in streams.values())
        measured[stage] = measure(records, dataset.samples[stage], tokenizer, config)
        tree, steps = stage_tree(stage, language.code, dataset, measured[stage], model, before)
        head = HEADS[stage].format(name=language.name, steps=steps, out=out)
        _write(folder / "configs" / f"{stage}.yaml", yaml_text(tree, head))
        _say([f"{stage}: about {steps:,} steps", *(f"{stage}.{line}" for line in chosen(tree))])
        before = out / "runs" / stage
    last = list(measured)[-1]
    tree = recipe_tree(out, dataset, measured[last], list(measured))
    _write(folder / "configs" / "recipe.yaml", yaml_text(tree, RECIPE.format(out=out)))
    _write(folder / "README.md", readme(out, language, dataset, list(measured)))


HEADS = {
    "align": "Stage 1 for {name}: picture and caption, only the connector learns; about {steps} "
    "steps. Each value says where it comes from: measured (from the data), machine (from this "
    "machine's memory), or ours (not from a paper on this data; with its source). Paths start "
    "from the folder in which `mllm-jax new {out}` ran.",
    "instruct": "Questions for {name}: connector and language model learn, the image tower stays "
    "frozen; about {steps} steps. Each value says where it comes from: measured (from the data), "
    "machine (from this machine's memory), or ours (with its source).",
}
RECIPE = "All stages, then the evaluation and the export: mllm-jax recipe {out}/configs/recipe.yaml"


def _chat_format(files: Path, asked: str | None) -> str:
    """The format of questions: as asked, else that of the backbone's tokens and template."""
    if asked is not None:
        return asked
    if needs_conversion(files):  # of a Llama 2
        return "vicuna_v1"
    known = hf_tokenizer.tokens(files)
    if known.keys().isdisjoint(special_tokens(TEMPLATES["llama3"])) and "</s>" in known:
        return "vicuna_v1"
    if not (files / TEMPLATE).is_file():
        return "llama31"
    return "llama31" if "Cutting Knowledge" in (files / TEMPLATE).read_text("utf-8") else "llama3"


def _parameters(model: ModelConfig) -> int:
    """Parameters of the language model."""
    leaves = conversions.abstract(model).items()
    return sum(leaf.size for path, leaf in leaves if path.startswith("language/"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(one_line(line), flush=True)
