"""States what an attention backend is: a function, what it refuses, and the bytes of its scores.

Every backend computes the same numbers. A query sees a key when both are in the same segment and,
if causal, the key is not later in the row:

    segments  1 1 2 2 0        keys ->   a b c d .
                              query a    x
      a b | c d | padding           b    x x
                                    c        x
                                    d        x x
                                    .                   padding: the output is zero, and so is
                                                        its gradient

A backend may compute anything finite for padding (segment 0): `select.run` replaces it by zeros, so
that nothing comes back from it either. Inside of a backend padding sees padding, since a softmax of
nothing is not a number.
"""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from mllm_jax.common.hardware import Platform


class Device(NamedTuple):
    """What the choice of a backend depends on of a chip."""

    platform: Platform
    capability: tuple[int, int] | None = None  # CUDA's compute capability; GPUs alone have one


CPU = Device("cpu")
SAVED = "attention"  # what `jax.checkpoint` policies call outputs and log-sums of attention


class Call(NamedTuple):
    """One attention as one device computes it: its own rows and heads."""

    rows: int  # B
    length: int  # T
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    dtype: str  # of queries, keys and values
    causal: bool
    packed: bool  # whether a row may hold several segments, or padding
    segments: int | None = None  # the most that a packed row holds; None: as many as fit
    parts: int = 1  # devices that share a row: `length` is of the queries, `keys` of the keys

    @property
    def keys(self) -> int:
        """Keys of a row, S."""
        return self.length * self.parts


class Run(Protocol):
    """The function of a backend."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        segments: Int[Array, "B T"] | None,
        /,
        *,
        causal: bool,
    ) -> Float[Array, "B T N H"]:
        """Attention within segments; `segments` is None where each row is one whole segment."""
        ...


class Queries(NamedTuple):
    """The queries of a part of a row, where devices share it."""

    positions: Int[Array, "T"]  # in the row, ascending: two runs of equal length
    segments: Int[Array, "B T"]


class RunPart(Protocol):
    """The function of a backend for queries of a part of a row; causal."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        queries: Queries,
        segments: Int[Array, "B S"],
        /,
    ) -> Float[Array, "B T N H"]:
        """Attention of these queries within segments; `segments` are those of the keys."""
        ...


class Refuses(Protocol):
    """What a backend cannot do."""

    def __call__(self, call: Call, device: Device, /) -> str | None:
        """The reason, as "needs ..." or "does not ..."; None where the backend can be used."""
        ...


class ScoreBytes(Protocol):
    """What a backend's scores take."""

    def __call__(self, call: Call, /) -> int:
        """Bytes of the scores, and of their gradient, that exist at the same time."""
        ...


class Backend(NamedTuple):
    """One way to compute attention."""

    run: Run
    refuses: Refuses
    score_bytes: ScoreBytes
    bounded: bool = False  # whether `run` takes `most`: the limit of segments in a packed row
    run_part: RunPart | None = None  # None: it computes whole rows alone
    kernel: bool = False  # no operations of JAX: `verify` tries it where it is to run


def older_than(oldest: tuple[int, int], device: Device) -> str | None:
    """What an older GPU lacks, to be read after "needs"; None: its capability is enough."""
    have = device.capability
    if have is not None and have >= oldest:
        return None
    return f"compute capability {named(oldest)} or newer, this GPU's is {named(have)}"


def named(capability: tuple[int, int] | None) -> str:
    """A compute capability for a message."""
    return "unknown" if capability is None else "{}.{}".format(*capability)


def refuses_nothing(call: Call, device: Device, /) -> str | None:
    """`Backend.refuses` of what runs everywhere."""
    del call, device
    return None
