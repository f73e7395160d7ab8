"""Says which devices of a process share the work of answering, and how."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from mllm_jax.common.errors import require
from mllm_jax.distributed import sharding


@dataclass(frozen=True)
class Devices:
    """The first devices of this process; each of several processes works on its own.

    Attributes:
        count: how many of them; all when None.
        fsdp, tensor: how many share the parameters; rows are divided over the others.
    """

    count: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def mesh(self) -> Mesh | None:
        """The mesh of `Answerer`; None for a single device.

        Raises:
            ConfigError: more devices than there are, or they do not divide.
        """
        devices = jax.local_devices()
        count = len(devices) if self.count is None else self.count
        require(
            0 < count <= len(devices),
            f"devices={count}: this process has {len(devices)}; give a number up to that",
        )
        if count == self.fsdp == self.tensor == 1:
            return None
        return sharding.make_mesh((-1, self.fsdp, self.tensor), devices[:count])


ALL = Devices()
