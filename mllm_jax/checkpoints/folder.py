"""open_model: a model folder, a checkpoint of a run or a Hugging Face folder, read alike."""

from pathlib import Path
from typing import Any

import jax

from mllm_jax import config_file
from mllm_jax.checkpoints import hf_files, hf_tokenizer, hf_unread, params, seal
from mllm_jax.checkpoints.hf import HFFolder
from mllm_jax.checkpoints.leaves import Leaf, compare, drop_unread, read_parts
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.config import FolderConfig
from mllm_jax.errors import ConfigError, require
from mllm_jax.trees import flatten, unflatten


class ModelSource:
    """An opened model. Nothing is read before `load` or a leaf asks for it.

    Attributes:
        config: what the network is, and what its card says.
        files: folder of the tokenizer, processor and chat template files.
        image_fit: "crop" or "pad", what the folder's image processor does.
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

    def leaves(self, abstract: Any, unread: str | None = None) -> dict[str, Leaf]:
        """Path -> lazy leaf with its stored number format.

        Args:
            abstract: nested dict of shapes (dtypes and shardings are not looked at).
            unread: regex over whole paths: stored parameters that need no place in `abstract`.

        Raises:
            ConfigError: missing, extra or misshapen parameters, listed.
        """
        raise NotImplementedError

    def load(self, abstract: Any, unread: str | None = None) -> Any:
        """The parameters, placed by the shardings and cast to the dtypes of `abstract`.

        Args:
            abstract: nested dict of `jax.ShapeDtypeStruct`; without a sharding a leaf lands on the
                first device.
            unread: as in `leaves`.

        Raises:
            ConfigError: missing, extra or misshapen parameters, listed.
        """
        raise NotImplementedError


class OrbaxSource(ModelSource):
    """A model folder or a checkpoint of a run."""

    def __init__(self, where: Path, stored: Path, files: Path):
        self.where, self.files, self._stored, self.left_out = where, files, stored, []
        self._verified = not (stored.parent / seal.SEAL).is_file()  # a model folder has no seal
        self.config = config_file.load(FolderConfig, files / "config.yaml")
        self.ids = hf_tokenizer.special_ids(files)
        self.unread = hf_unread.read_unread(files)
        vision = self.config.model.vision
        self.image_fit = hf_files.read_processor(files, vision.image_size)[1] if vision else "crop"

    def leaves(self, abstract: Any, unread: str | None = None) -> dict[str, Leaf]:
        self._verify()
        wanted, stored = flatten(abstract), params.stored_leaves(self._stored)
        kept = {path: stored[path] for path in drop_unread(stored, wanted, unread)}
        compare(str(self.where), wanted, kept)
        return {path: kept[path] for path in wanted}

    def load(self, abstract: Any, unread: str | None = None) -> Any:
        self._verify()
        return params.load_params(self._stored, abstract, unread)

    def _verify(self) -> None:
        """Compares a run's parameters with what was saved, once, before a number is read."""
        if not self._verified:
            seal.verify(self._stored.parent, "params/")
        self._verified = True


class HFSource(ModelSource):
    """A Hugging Face folder, read straight into place, without a converted copy."""

    def __init__(self, where: Path):
        self._folder = HFFolder(where)
        self.where, self.files, self.config = where, where, self._folder.config
        self.image_fit, self.left_out = self._folder.image_fit, self._folder.left_out
        self.ids, self.unread = self._folder.ids, hf_unread.read_unread(where)

    def leaves(self, abstract: Any, unread: str | None = None) -> dict[str, Leaf]:
        return self._folder.leaves(abstract, unread)

    def load(self, abstract: Any, unread: str | None = None) -> Any:
        leaves = self.leaves(abstract, unread)
        wanted = flatten(abstract)
        return unflatten({path: _place(leaves[path], x) for path, x in wanted.items()})


def _place(leaf: Leaf, abstract: Any) -> jax.Array:
    """The parameter on its devices; this process reads and holds what its own devices need."""
    home = abstract.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    indices = home.addressable_devices_indices_map(leaf.shape)
    whole = tuple(slice(None) for _ in leaf.shape)
    parts = read_parts(leaf, [index or whole for index in indices.values()])
    shards = [
        jax.device_put(part.astype(abstract.dtype, copy=False), device)
        for device, part in zip(indices, parts, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, home, shards)


def open_model(path: str | Path) -> ModelSource:
    """Opens a model folder, a run folder (its last checkpoint) or a Hugging Face folder.

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
    if (path / seal.SEAL).is_file() and (run / "model" / "config.yaml").is_file():
        return OrbaxSource(path, path / "params", run / "model")
    if (path / "config.json").is_file():
        return HFSource(path)
    raise ConfigError(
        f"{path}: not a model: expected config.yaml and params/, a run's model/ and checkpoints/, "
        "or a Hugging Face config.json"
    )
