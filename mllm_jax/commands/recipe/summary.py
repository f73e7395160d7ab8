"""OUT/summary.json: what a recipe has done, how long it took; it survives a recipe's stops."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints import manifest
from mllm_jax.checkpoints.fingerprints import Module
from mllm_jax.checkpoints.store import checkpoint_steps
from mllm_jax.commands.recipe.tree import Tree
from mllm_jax.common.errors import require
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.common.versions import versions
from mllm_jax.config.stage import Config
from mllm_jax.training import run_folder


class Summary:
    """The file's content; written at every change.

    Args:
        path: the file; it may be of a recipe that was stopped.
        tree: the stages.
    """

    def __init__(self, path: Path, tree: Tree):
        self.path, self._stages = path, tree
        self.tree: dict[str, Any] = {"stages": [], "seconds": {}}
        if path.is_file():
            self.tree = read_json(path)
        self.tree["versions"] = versions(*run_folder.LIBRARIES)
        if not tree.single:
            self.tree["variants"] = dict(tree.variants)

    def has_stage(self, name: str) -> bool:
        return any(stage["name"] == name for stage in self.tree["stages"])

    def begin_stage(self, name: str, start: Path | None) -> None:
        """Notes which weights a stage begins with; `start` is the run of the stage before it."""
        if start is not None:
            origin = {"stage": start.name, "weights": checkpoint_digest(start)}
            self.tree.setdefault("origins", {})[name] = origin
            self._write()

    def check_start(self, name: str, config: Config, start: Path) -> None:
        """Refuses a stage that has begun with other weights than `start` has now.

        Raises:
            ConfigError: the stage before it was trained again, or further, in the meantime.
        """
        origin = self.tree.get("origins", {}).get(name)
        if origin is None or not (Path(config.out) / "config.yaml").is_file():
            return
        require(
            origin["weights"] == checkpoint_digest(start),
            f"{name}: out={config.out}: was trained from other weights of {start.name} than there "
            "are now; delete it and rerun the recipe, or put the weights back",
        )

    def add_stage(self, name: str, config: Config, seconds: float, modules: list[Module]) -> None:
        row = {
            "name": name,
            "from": self._stages.parents[name],
            "run": Path(config.out).name,
            "seconds": seconds,
            "settings": {
                "rows": config.data.rows,
                "length": config.data.length,
                "learning_rate": config.optimizer.learning_rate,
                "schedule": config.optimizer.schedule,
            },
            "modules": [module._asdict() for module in modules],
        }
        rows = {stage["name"]: stage for stage in self.tree["stages"]} | {name: row}
        order = [*self._stages.files, *rows]  # those that the recipe no longer has come last
        self.tree["stages"] = [rows[one] for one in dict.fromkeys(order) if one in rows]
        self._write()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.tree["seconds"][name] = time.perf_counter() - start
        self._write()

    def _write(self) -> None:
        devices = jax.devices()
        self.tree["device"] = f"{len(devices)} x {devices[0].device_kind}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.tree)


def checkpoint_digest(run: Path) -> str:
    """Digest of the manifest of a run's last checkpoint, which has the checksums of its files."""
    last = max(checkpoint_steps(run / "checkpoints"))
    seal = run / "checkpoints" / str(last) / manifest.FILE
    return blake2b(seal.read_bytes(), digest_size=16).hexdigest()
