"""Hugging Face folder <-> model folder, and the joining of two backbones.

    from_hf   LLaVA, Llama or tower folder           -> model folder
    join      tower folder + Llama folder + connector -> model folder
    to_hf     model, run or Hugging Face folder      -> folder that stock transformers opens
    from_peft adapter folder of peft + its base      -> model folder
    to_peft   run with adapters                      -> adapter folder that peft opens

One parameter is in memory at a time. Everything is written to a folder beside OUT that gets its
name at the very end: a failed conversion leaves nothing.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from mllm_jax.checkpoints import join as join_chunks
from mllm_jax.checkpoints.fingerprints import fingerprint
from mllm_jax.checkpoints.hf import (
    files as hf_files,
)
from mllm_jax.checkpoints.hf import (
    tokenizer as hf_tokenizer,
)
from mllm_jax.checkpoints.hf import (
    unread as hf_unread,
)
from mllm_jax.checkpoints.hf.connector_form import Form, choose_form, describe
from mllm_jax.checkpoints.hf.model_card import model_card
from mllm_jax.checkpoints.hf.processor import write_processor
from mllm_jax.checkpoints.hf.projector import Projector
from mllm_jax.checkpoints.hf.tensor_files import SHARD_BYTES
from mllm_jax.checkpoints.hf.writer import check_dtype, write_hf
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.open_model import (
    HFSource,
    ModelSource,
    OrbaxSource,
    PeftSource,
    open_model,
)
from mllm_jax.checkpoints.params import save_params
from mllm_jax.checkpoints.peft import CONNECTOR, write_peft
from mllm_jax.common.errors import quoted, require
from mllm_jax.common.folders import new_folder
from mllm_jax.config import loading
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.model import ConnectorConfig, ModelConfig
from mllm_jax.config.stage import ComputeConfig, Config, FolderConfig
from mllm_jax.conversion.chat_format import choose_template, warn_without_template
from mllm_jax.models import mllm


def from_hf(src: str | Path, out: str | Path) -> None:
    """Writes the model folder OUT from the Hugging Face folder SRC, in the same number formats.

        from_hf("weights/llava", "models/llava")

    Raises:
        ConfigError: SRC is not a supported folder, a tensor is missing, extra or misshapen, or OUT
            is not empty.
    """
    source = open_model(src)
    require(isinstance(source, HFSource), f"{src}: is no Hugging Face folder (no config.json)")
    with new_folder(out) as folder:
        model = source.config.model
        leaves = source.leaves(abstract(model))
        if model.language is not None:
            hf_tokenizer.check_tokenizer(source.files)
        hf_files.write_model_files(source.files, folder, model, source.ids, source.image_fit)
        hf_unread.write_unread(folder, source.unread)
        _write_params(folder, source.config, leaves)
    _report(out, leaves, source.left_out, source.unread)


def to_hf(
    model: str | Path,
    out: str | Path,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    connector_form: Form | None = None,
) -> None:
    """Writes the folder OUT that stock transformers opens.

        to_hf("runs/instruct", "my-llava", dtype="bfloat16")

    Args:
        model: a model folder, run folder (its last checkpoint) or Hugging Face folder.
        out: the folder to make.
        dtype: "float32", "bfloat16" or "float16"; None keeps each parameter's own.
        shard_bytes: largest shard; 5 GB as in transformers.
        connector_form: how a linear connector becomes LLaVA's two layers, see `connector_form`;
            None: "gelu", which every runtime opens, where the text width allows it.

    Raises:
        ConfigError: as in `from_hf`; a form that the connector cannot have.
    """
    check_dtype(dtype)
    source = open_model(model)
    form = choose_form(source.config.model, connector_form)
    with new_folder(out) as folder:
        leaves = source.leaves(abstract(source.config.model))
        with _bar(len(leaves)) as bar:
            write_hf(
                folder,
                source.config,
                leaves,
                source.files,
                source.ids,
                source.image_fit,
                dtype,
                shard_bytes,
                bar,
                source.unread,
                form,
            )
        card = model_card(source.config, Path(out).absolute().name, form)
        (folder / "README.md").write_text(card, encoding="utf-8")
    _report(out, leaves, source.left_out, source.unread, dtype)
    note = describe(form)
    if note is not None:
        print(note)
    if source.config.model.language is not None:
        warn_without_template(Path(out), out)


def from_peft(src: str | Path, out: str | Path, base: str | Path | None = None) -> None:
    """Writes the model folder OUT from the PEFT folder SRC, merged into its base.

        from_peft("adapters/llava-lora", "models/llava-basque", base="weights/llava")

    Args:
        src: a folder with adapter_config.json and adapter_model.safetensors.
        out: the folder to make.
        base: folder of the base model; default: the one that SRC names.

    Raises:
        ConfigError: SRC has features that are not here (named), the base is another one than it
            was trained beside, or OUT is not empty.
    """
    source = PeftSource(Path(src), base)
    with new_folder(out) as folder:
        model = source.config.model
        leaves = source.leaves(abstract(model))
        hf_tokenizer.check_tokenizer(source.files)
        hf_files.write_model_files(source.files, folder, model, source.ids, source.image_fit)
        hf_unread.write_unread(folder, source.unread)
        _write_params(folder, source.config, leaves)
    _report(out, leaves, source.left_out, source.unread)


def to_peft(run: str | Path, out: str | Path, base: str | None = None) -> None:
    """Writes the adapters of a run as the folder OUT, which the peft library opens.

        to_peft("runs/instruct", "adapters/instruct", base="weights/llava")

    Args:
        run: a run folder, or one of its checkpoints.
        out: the folder to make.
        base: name or path of the base model, for whoever opens OUT; default: `init.weights`.

    Raises:
        ConfigError: the run has no adapters, or trained something that PEFT has no place for.
    """
    source = open_model(run)
    require(
        isinstance(source, OrbaxSource) and source.adapter is not None,
        f"{run}: is not a run with adapters; export a model by mllm-jax convert to-hf",
    )
    assert isinstance(source, OrbaxSource) and source.adapter is not None
    config, trained = source.config, source.trained
    paths = abstract(config.model)
    kernels = source.adapter.targets(paths)
    whole = [path for path in paths if path.startswith(CONNECTOR)]
    if any(path in trained for path in whole):
        trained |= source.base(path for path in whole if path not in trained)
    with new_folder(out) as folder:
        named = base or str(loading.load(Config, source.files.parent / "config.yaml").init.weights)
        prints = fingerprint(source.base(kernels))
        write_peft(folder, config.model, source.adapter, trained, named, prints)
    _report(out, trained, [], {})


def join(
    out: str | Path,
    vision: str | Path,
    language: str | Path,
    connector: str = "linear",
    seed: int = 0,
    chat_format: str | None = None,
    name: str | Path | None = None,
    new_rows: str = "transformers",
    connector_weights: str | Path | None = None,
    pool: str = "none",
) -> None:
    """Puts an image tower and a Llama together with a fresh connector: the model folder OUT.

        join("models/start", vision="weights/clip", language="weights/llama", connector="mlp")

    `<image>` joins the tokenizer if it is not there; the token tables grow to a multiple of 64
    rows, the new ones drawn around the mean of the old ones (`join.NEW_ROWS`). The connector's
    matrices are drawn with standard deviation 1 / sqrt(inputs), its biases are zero.

    Args:
        out: the folder to make.
        vision: CLIP or SigLIP, alone or with its text half, or a model folder with a tower.
        language: LlamaForCausalLM or a model folder with a language model.
        connector: "linear" or "mlp".
        seed: of the connector and of the new rows.
        chat_format: a key of `templates.TEMPLATES`; None: the language model's own template, or one
            that fits its tokenizer where it has none.
        name: what OUT will be called, for messages; default: OUT.
        new_rows: "transformers" or "ndino", after whom new rows are drawn.
        connector_weights: a file with a trained connector instead of a fresh one, `connector` is
            then not read; the original LLaVA's mm_projector.bin.
        pool: "none", "average" or "shuffle", what a new connector does with 2 x 2 patches.

    Raises:
        ConfigError: a folder is not what is needed, the chat format does not fit the tokenizer, or
            OUT is not empty.
    """
    _check_option("--connector", connector, ("linear", "mlp"))
    _check_option("--new-rows", new_rows, join_chunks.NEW_ROWS)
    tower, llama = _backbones(vision, language)
    trained = Projector(connector_weights) if connector_weights is not None else None
    bridge = _bridge(trained, connector, pool)
    with new_folder(out) as folder:
        hf_files.copy_files(llama.files, folder)
        image_token, known, added = hf_tokenizer.add_image_token(folder)
        config, rows = _joined(tower, llama, bridge, image_token, known + added)
        old = _part(llama, "language")
        first = image_token if added else None
        shapes = abstract(config.model)
        fresh = join_chunks.fresh_connector(shapes, config.dtype, seed)
        leaves = {
            **_part(tower, "vision"),
            **(trained.leaves(shapes) if trained else fresh),
            **join_chunks.grown(old, rows, first, seed, join_chunks.NEW_ROWS[new_rows]),
        }
        hf_files.write_generation_config(folder, llama.ids)
        note = choose_template(folder, llama.where, chat_format)
        unread = tower.unread | {hf_unread.TEXT: llama.unread[hf_unread.TEXT]}
        hf_unread.write_unread(folder, unread)
        write_processor(folder, config.model, tower.image_fit)
        _write_params(folder, config, leaves)
    _report(name or out, leaves, tower.left_out + llama.left_out, unread)
    if note is not None:
        print(note)
    warn_without_template(Path(out), name or out)


def _bridge(trained: Projector | None, kind: str, pool: str) -> ConnectorConfig:
    """The connector of a joined model: that of trained weights, or a new one."""
    require(
        trained is None or pool == "none",
        f"--pool {pool}: --connector-weights were trained without pooling; leave one out",
    )
    return (
        trained.config if trained else loading.build(ConnectorConfig, {"kind": kind, "pool": pool})
    )


def _check_option(flag: str, value: str, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    require(value in allowed, f"{flag}={quoted(value)}: allowed are {' and '.join(allowed)}")


def _backbones(vision: str | Path, language: str | Path) -> tuple[ModelSource, ModelSource]:
    """The two opened models, each of which has the part that is taken of it."""
    tower, llama = open_model(vision), open_model(language)
    require(
        tower.config.model.vision is not None,
        f"--vision {vision}: has no vision tower; give a CLIP or SigLIP folder",
    )
    require(
        llama.config.model.language is not None,
        f"--language {language}: has no language model; give a Llama folder",
    )
    hf_tokenizer.check_tokenizer(llama.files)
    return tower, llama


def _joined(
    tower: ModelSource,
    llama: ModelSource,
    connector: ConnectorConfig,
    image_token: int,
    tokens: int,
) -> tuple[FolderConfig, int]:
    language = llama.config.model.language
    assert language is not None
    rows = -(-max(language.vocab, tokens) // join_chunks.ROWS) * join_chunks.ROWS
    model = ModelConfig(
        vision=tower.config.model.vision,
        connector=connector,
        language=dataclasses.replace(language, vocab=rows),
        image_token=image_token,
    )
    bases = tuple(dict.fromkeys(llama.config.base_models + tower.config.base_models))
    config = FolderConfig(
        model=model, dtype=llama.config.dtype, languages=llama.config.languages, base_models=bases
    )
    return config, rows


def _part(source: ModelSource, part: str) -> dict[str, Leaf]:
    """The leaves of one part of a model; its other parts are checked for shape and left out."""
    leaves = source.leaves(abstract(source.config.model))
    return {path: leaf for path, leaf in leaves.items() if path.startswith(f"{part}/")}


def abstract(
    model: ModelConfig, adapter: AdapterConfig | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a model's parameters, by path; with an adapter's among them."""
    return mllm.abstract_params(mllm.build(model, ComputeConfig(), adapter=adapter))


def _write_params(folder: Path, config: FolderConfig, leaves: Mapping[str, Leaf]) -> None:
    loading.dump(config, folder / "config.yaml")
    with _bar(len(leaves)) as bar:
        save_params(folder / "params", leaves, bar)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, where that is a terminal."""
    with tqdm(total=total, unit="parameter", file=sys.stderr, disable=None) as bar:

        def seen(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield seen


def _report(
    out: str | Path,
    leaves: Mapping[str, Leaf],
    left_out: list[str],
    unread: dict[str, dict[str, Any]],
    dtype: str | None = None,
) -> None:
    """Prints what was written: part, tensors, parameters, number format; then what is not used."""
    print(f"{'part':<10} {'tensors':>8} {'parameters':>15}  dtype")
    for part in dict.fromkeys(path.split("/")[0] for path in leaves):
        mine = [leaf for path, leaf in leaves.items() if path.startswith(f"{part}/")]
        formats = [dtype] if dtype else sorted({leaf.dtype.name for leaf in mine})
        size = sum(leaf.size for leaf in mine)
        print(f"{part:<10} {len(mine):>8} {size:>15,}  {', '.join(map(str, formats))}")
    lines = {"left out": left_out, "kept for exports, not used here": hf_unread.listed(unread)}
    for text, names in lines.items():
        if names:
            dots = ", ..." if len(names) > 8 else ""
            print(f"{text} ({len(names)}): {', '.join(names[:8])}{dots}")
    print(f"written to {out}")
