"""open_model: a model folder, a checkpoint of a run or a Hugging Face folder, read alike."""

import dataclasses
import functools
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints import frozen, manifest
from mllm_jax.checkpoints.fingerprints import fingerprint
from mllm_jax.checkpoints.hf import (
    tokenizer as hf_tokenizer,
)
from mllm_jax.checkpoints.hf import (
    unread as hf_unread,
)
from mllm_jax.checkpoints.hf.connector_form import form_beside
from mllm_jax.checkpoints.hf.processor import read_processor
from mllm_jax.checkpoints.hf.reader import HFFolder
from mllm_jax.checkpoints.leaves import Leaf, compare, drop_unread, place
from mllm_jax.checkpoints.merge import merged
from mllm_jax.checkpoints.params import restore, stored_leaves
from mllm_jax.checkpoints.peft import CONFIG as PEFT_CONFIG
from mllm_jax.checkpoints.peft import peft_leaves, read_peft
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config import loading
from mllm_jax.config.adapter import is_adapter, kernel_of
from mllm_jax.config.stage import FolderConfig

NAMED = 3  # runs of a recipe's folder that a message names


class ModelSource:
    """An opened model. Nothing is read before `load` or a leaf asks for it.

    Attributes:
        config: what the network is, and what its card says.
        files: folder of the tokenizer, processor and chat template files.
        image_fit: "crop", "pad" or "stretch", what the folder's image processor does.
        ids: bos_token_id, eos_token_id (may be a list), pad_token_id; None where there is none.
        where: the folder, for messages.
        left_out: names of stored tensors that no parameter needs (a CLIP model's text half,
            buffers).
        unread: fields of the source's config.json that nothing here reads, by section.
    """

    config: FolderConfig
    files: Path
    image_fit: str
    ids: dict[str, Any]
    where: Path
    left_out: list[str]
    unread: dict[str, dict[str, Any]]

    @property
    def is_run(self) -> bool:
        """Whether `where` is a run folder, which may hold more than the model."""
        return self.files == self.where / "model"

    def leaves(self, abstract: Mapping[str, Any], unread: str | None = None) -> dict[str, Leaf]:
        """Path -> lazy leaf with its stored number format.

        Args:
            abstract: path -> shape (dtypes and shardings are not looked at).
            unread: regex over whole paths: stored parameters that need no place in `abstract`.

        Raises:
            ConfigError: missing, extra or misshapen parameters, listed.
        """
        raise NotImplementedError

    def load(
        self,
        abstract: Mapping[str, Any],
        unread: str | None = None,
        only: Container[str] | None = None,
    ) -> dict[str, jax.Array]:
        """The parameters, placed by the shardings and cast to the dtypes of `abstract`.

        Args:
            abstract: path -> `jax.ShapeDtypeStruct`; without a sharding a leaf lands on the first
                device.
            unread: as in `leaves`.
            only: the paths that are read and returned, once all have been compared; all when None.

        Raises:
            ConfigError: missing, extra or misshapen parameters, listed.
        """
        leaves = self.leaves(abstract, unread)
        return {path: place(leaves[path], x) for path, x in _some(abstract, only).items()}


class OrbaxSource(ModelSource):
    """A model folder, or a checkpoint of a run with the run's frozen parameters.

    Attributes:
        adapter: of the run; merged into what is read.
    """

    def __init__(self, where: Path, stored: Path, files: Path):
        self.where, self.files, self._stored, self.left_out = where, files, stored, []
        config = loading.load(FolderConfig, files / "config.yaml")
        # what is opened here is the model with its adapters merged into it
        self.adapter, self.config = config.adapter, dataclasses.replace(config, adapter=None)
        self.ids = hf_tokenizer.special_ids(files)
        self.unread = hf_unread.read_unread(files)
        self.image_fit = "crop"
        if (vision := self.config.model.vision) is not None:
            grids = self.config.model.grids
            self.image_fit = read_processor(files, vision.image_size, grids, vision.kind)[1]

    @functools.cached_property
    def _frozen(self) -> dict[str, Leaf]:
        """The parameters that are not in the checkpoint but in the run's `frozen/`.

        When they are first asked for, all files are compared with what was saved.
        """
        checkpoint = self._stored.parent
        if not (checkpoint / manifest.FILE).is_file():
            return {}  # a model folder has no manifest
        saved, run = manifest.read(checkpoint), checkpoint.parent.parent
        params = {name: x for name, x in saved["files"].items() if name.startswith("params/")}
        manifest.verify(checkpoint, params)
        if not saved["frozen"]:
            return {}
        manifest.verify(run / frozen.FOLDER, saved["frozen"])
        return frozen.frozen_leaves(run)

    @property
    def trained(self) -> dict[str, Leaf]:
        """What the run trained, as its checkpoint holds it: path -> lazy leaf, not merged."""
        return stored_leaves(self._stored)

    def base(self, paths: Iterable[str]) -> dict[str, Leaf]:
        """Frozen parameters of the run, without its adapters."""
        return {path: self._frozen[path] for path in paths}

    def leaves(self, abstract: Mapping[str, Any], unread: str | None = None) -> dict[str, Leaf]:
        stored = self._frozen | self.trained
        if self.adapter is not None:
            stored = merged(stored, self.adapter)
        read = {path: stored[path] for path in drop_unread(stored, abstract, unread)}
        compare(str(self.where), abstract, read)
        return {path: read[path] for path in abstract}

    def load(
        self,
        abstract: Mapping[str, Any],
        unread: str | None = None,
        only: Container[str] | None = None,
    ) -> dict[str, jax.Array]:
        leaves, chosen = self.leaves(abstract, unread), _some(abstract, only)
        inside = {path: x for path, x in chosen.items() if path not in self._frozen}
        loaded = restore(self._stored, inside)
        loaded |= {p: place(leaves[p], x) for p, x in chosen.items() if p not in inside}
        return {path: loaded[path] for path in chosen}


class HFSource(ModelSource):
    """A Hugging Face folder, read straight into place, without a converted copy."""

    def __init__(self, where: Path):
        self._folder = HFFolder(where)
        self.where, self.files, self.config = where, where, self._folder.config
        self.image_fit, self.left_out = self._folder.image_fit, self._folder.left_out
        self.ids, self.unread = self._folder.ids, hf_unread.read_unread(where)

    def leaves(self, abstract: Mapping[str, Any], unread: str | None = None) -> dict[str, Leaf]:
        return self._folder.leaves(abstract, unread)


class PeftSource(ModelSource):
    """An adapter folder of PEFT, read as the model that it makes of its base."""

    def __init__(self, where: Path, base: str | Path | None = None):
        """Opens folder and base; `base` counts more than what the folder names."""
        self.peft, self.where = read_peft(where), where
        named = str(base) if base is not None else self.peft.base
        require(
            named is not None and Path(named).is_dir(),
            f"{where}: its base model {quoted(named)} is not a folder here; give the folder by "
            f"mllm-jax convert from-peft {where} OUT --base DIR",
        )
        self._base = open_model(str(named))
        self.config, self.files, self.ids = self._base.config, self._base.files, self._base.ids
        self.image_fit, self.unread = self._base.image_fit, self._base.unread
        self.left_out = self._base.left_out

    def leaves(self, abstract: Mapping[str, Any], unread: str | None = None) -> dict[str, Leaf]:
        stored = self._base.leaves(abstract, unread)
        form = form_beside(self._base.where, self.config.model)
        added = peft_leaves(self.peft, stored, form)
        if (expected := self.peft.fingerprint) is not None:
            kernels = {kernel_of(path) for path in added if is_adapter(path)}
            require(
                fingerprint({path: stored[path] for path in kernels}) == expected,
                f"{self.where}: was trained beside another base than {self._base.where} (the "
                "fingerprints differ); give the base that it was trained beside",
            )
        return merged(stored | added, self.peft.adapter)


def _some(abstract: Mapping[str, Any], only: Container[str] | None) -> dict[str, Any]:
    """The leaves to be loaded."""
    return {path: x for path, x in abstract.items() if only is None or path in only}


def open_model(path: str | Path) -> ModelSource:
    """Opens a model folder, a run folder (its last checkpoint), a Hugging Face or PEFT folder.

        open_model("runs/instruct").config.model.language.vocab

    Another checkpoint of a run is RUN/checkpoints/STEP.

    Raises:
        ConfigError: no such folder, no model in it, or a run without a checkpoint.
    """
    path = Path(path)
    require(path.exists(), f"{path}: no such folder")
    require(
        path.is_dir(),
        f"{path}: is a file; give a model folder, a run folder or a Hugging Face folder",
    )
    if (path / "params").is_dir() and (path / "config.yaml").is_file():
        return OrbaxSource(path, path / "params", path)
    if (path / "model" / "config.yaml").is_file():
        steps = checkpoint_steps(path / "checkpoints")
        require(
            len(steps) > 0, f"{path}: a run folder without a finished checkpoint; train it first"
        )
        return OrbaxSource(path, path / "checkpoints" / str(steps[-1]) / "params", path / "model")
    run = path.absolute().parent.parent
    if (path / manifest.FILE).is_file() and (run / "model" / "config.yaml").is_file():
        return OrbaxSource(path, path / "params", run / "model")
    if (path / "config.json").is_file():
        return HFSource(path)
    if (path / PEFT_CONFIG).is_file():
        return PeftSource(path)
    if runs := _runs_in(path):
        raise ConfigError(f"{path}: not a model, but its stages are: give {' or '.join(runs)}")
    raise ConfigError(
        f"{path}: not a model: expected config.yaml and params/, a run's model/ and checkpoints/, "
        "a Hugging Face config.json, or PEFT's adapter_config.json"
    )


def _runs_in(folder: Path) -> list[str]:
    """The runs in a recipe's folder, the last one trained first; a few of them."""
    runs = [path.parent.parent for path in folder.glob("*/model/config.yaml")]
    runs = [run for run in runs if checkpoint_steps(run / "checkpoints")]
    newest = sorted(runs, key=lambda run: (run / "checkpoints").stat().st_mtime, reverse=True)
    return [str(run) for run in newest[:NAMED]]
