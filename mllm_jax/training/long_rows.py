"""Check what `mesh.context` needs of a stage: rows that divide, and are nowhere read whole."""

from jax.sharding import Mesh

from mllm_jax.common.errors import require
from mllm_jax.config.model import ModelConfig
from mllm_jax.config.stage import ComputeConfig, Config
from mllm_jax.models.kernels.protocol import Call, Device
from mllm_jax.models.kernels.select import Selection, device_of


def check(config: Config, mesh: Mesh, device: Device | None = None) -> None:
    """Refuses a stage whose rows cannot be divided over the context axis of a mesh.

    Args:
        config: the stage.
        mesh: the devices.
        device: the chip, if not that of the mesh.

    Raises:
        ConfigError: with the option.
    """
    parts = mesh.shape["context"]
    if parts == 1:
        return
    data = config.data
    check_rows(config.model, config.compute, data.length, data.image_slots, mesh, device)
    require(
        not config.optimizer.pairs.acts,
        f"optimizer.pairs: positions of whole rows are compared, mesh.context={parts} divides "
        "rows; set mesh.context to 1",
    )
    evaluate = config.train.evaluate
    samples = evaluate.samples if evaluate is not None else 0
    require(
        not samples,
        f"train.evaluate.samples={samples}: answers are not computed with mesh.context={parts}; "
        "set it to 0",
    )


def check_rows(
    model: ModelConfig,
    compute: ComputeConfig,
    length: int,
    slots: int,
    mesh: Mesh,
    device: Device | None = None,
) -> None:
    """Refuses rows that do not divide over the context axis, or a backend that cannot.

    Args:
        model: what the network is.
        compute: its attention.
        length: of a row.
        slots: image slots of a row.
        mesh: the devices.
        device: the chip, if not that of the mesh.

    Raises:
        ConfigError: with the option, and the nearest number that divides.
    """
    parts, language = mesh.shape["context"], model.language
    if parts == 1 or language is None:
        return
    require(
        length % (2 * parts) == 0,
        f"data.length={length} is not a multiple of {2 * parts} (2 x mesh.context={parts}); give "
        f"{_up(length, 2 * parts)}",
    )
    require(
        slots % parts == 0,
        f"data.image_slots={slots} is not a multiple of mesh.context={parts}; give "
        f"{_up(slots, parts)}",
    )
    heads = language.heads, language.kv_heads, language.head_dim
    call = Call(1, length // parts, *heads, compute.compute, True, True, parts=parts)
    device = device or device_of(mesh.devices.flat[0])
    Selection(compute.attention, device).backend(call)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
