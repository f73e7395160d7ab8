"""A connector alone: the original LLaVA's mm_projector.bin."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mllm_jax.checkpoints.hf.projector import Projector
from mllm_jax.checkpoints.hf.tensor_files import write_tensors
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.common.errors import ConfigError
from tests.support.torch_files import PROTO, STOP, state_dict, storage, tensor, write_file

C, D = 2, 3  # widths of tower and language model
NUMBERS = np.arange(D * D, dtype=np.float32)
LINEAR = {"model.mm_projector.weight": (D, C), "model.mm_projector.bias": (D,)}
MLP = {
    "model.mm_projector.0.weight": (D, C),
    "model.mm_projector.0.bias": (D,),
    "model.mm_projector.2.weight": (D, D),
    "model.mm_projector.2.bias": (D,),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Tensors that all begin with 0, 1, 2, ..."""
    store = storage(count=NUMBERS.size)
    tensors = {name: tensor(store, 0, shape, (*shape[1:], 1)) for name, shape in shapes.items()}
    return write_file(path, PROTO + state_dict(**tensors) + STOP, {"0": NUMBERS.tobytes()})


def abstract(kind: str, bias: bool = True, width: int = D) -> dict[str, jax.ShapeDtypeStruct]:
    sizes = [(C, width), (width, width)][: 1 if kind == "linear" else 2]
    shapes = {"language/embedding": jax.ShapeDtypeStruct((7, width), "float32")}
    for number, shape in enumerate(sizes, start=1):
        path = f"connector/linear_{number}"
        shapes[f"{path}/kernel"] = jax.ShapeDtypeStruct(shape, "float32")
        if bias:
            shapes[f"{path}/bias"] = jax.ShapeDtypeStruct(shape[1:], "float32")
    return shapes


@pytest.mark.parametrize(("kind", "shapes"), [("linear", LINEAR), ("mlp", MLP)])
@pytest.mark.parametrize("bias", [True, False])
def test_published_forms(
    kind: str, shapes: dict[str, tuple[int, ...]], bias: bool, tmp_path: Path
) -> None:
    chosen = {name: shape for name, shape in shapes.items() if bias or "bias" not in name}
    for prefix in ("model.", ""):
        named = {name.replace("model.", prefix): shape for name, shape in chosen.items()}
        opened = Projector(write(tmp_path / "mm_projector.bin", named))
        assert (opened.config.kind, opened.config.bias) == (kind, bias)
        leaves = opened.leaves(abstract(kind, bias))
        assert leaves.keys() == abstract(kind, bias).keys() - {"language/embedding"}
        for path, leaf in leaves.items():
            array = leaf.read()
            stored = NUMBERS[: array.size].reshape(array.shape[::-1])
            np.testing.assert_array_equal(array, stored.T)
            assert array.shape == leaf.shape, path
            assert array.flags.c_contiguous


def test_safetensors_too(tmp_path: Path) -> None:
    arrays = {name: np.ones(shape, np.float16) for name, shape in LINEAR.items()}
    leaves = {name: Leaf(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}
    write_tensors(tmp_path, leaves, arrays.items())
    leaf = Projector(tmp_path / "model.safetensors").leaves(abstract("linear"))
    assert leaf["connector/linear_1/kernel"].read().dtype == np.float16


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (LINEAR | {"model.image_newline": (D,)}, "'model.image_newline' is not of a connector"),
        (MLP | {"model.mm_projector.4.weight": (D, D)}, r"'model.mm_projector.4.weight' is not of"),
        ({"model.norm.weight": (D,)}, "'model.norm.weight' is not of a connector"),
        ({"a": (D,)}, "'a' is not of a connector"),
        (LINEAR | {"mm_projector.weight": (D, C)}, "two tensors are multi_modal_projector.linear"),
    ],
)
def test_other_tensors_are_refused(
    shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Projector(write(tmp_path / "a.bin", shapes))


def test_other_widths_are_refused(tmp_path: Path) -> None:
    opened = Projector(write(tmp_path / "a.bin", LINEAR))
    with pytest.raises(ConfigError, match=r"is \[3, 2\], expected \[5, 2\].*another tower"):
        opened.leaves(abstract("linear", width=5))
    partial = {name: shape for name, shape in MLP.items() if name != "model.mm_projector.2.bias"}
    opened = Projector(write(tmp_path / "a.bin", partial))
    with pytest.raises(ConfigError, match=r"missing 1 \(multi_modal_projector.linear_2.bias\)"):
        opened.leaves(abstract("mlp"))
    with pytest.raises(ConfigError, match="no such file"):
        Projector(tmp_path / "none.bin")
