"""What a step sends under each remat, by formula and in compiled programs."""

from pathlib import Path

import pytest

from mllm_jax.models import layers
from mllm_jax.preflight import work
from tests.preflight.test_report import WIDE, plans

CONTEXT = ("--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.context", "2")
TENSOR = ("--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2")
# by a ring over two, of all that is sent again: 8 layers, 4 rows of a device, float32
KEYS = 8 * 4 * 512 * 2 * (2 * 16) * 4 // 2  # keys and values of two heads, 16 wide
SUM = 8 * 4 * 512 * 64 * 4 * 2 // 2  # what attention gives, 64 wide, and back


@pytest.mark.parametrize(
    ("mesh", "kind", "more"),
    [
        (CONTEXT, "all-gather", {"dots": KEYS, "attention": KEYS, "full": KEYS}),
        (TENSOR, "all-reduce", {"dots": 0, "attention": SUM, "full": SUM}),
    ],
    ids=["context", "tensor"],
)
def test_what_each_remat_sends_again(tmp_path: Path, mesh, kind: str, more: dict[str, int]):
    here = plans(tmp_path, "cpu:8", *WIDE, *mesh)

    def count(remat: str) -> int:
        return work.sent(here, here.configured._replace(remat=remat))[kind]["bytes"]

    assert {remat: count(remat) - count("none") for remat in more} == more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "kind", "remat", "more"),
    [
        (CONTEXT, "all-gather", "dots", KEYS),
        (CONTEXT, "all-gather", "full", KEYS),
        (TENSOR, "all-reduce", "dots", 0),
        (TENSOR, "all-reduce", "full", SUM),
    ],
)
def test_compiled_programs_do(
    tmp_path: Path, mesh, kind: str, remat: str, more: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(layers, "UNROLLED", 0)  # a loop over layers, as on GPUs and TPUs
    here = plans(tmp_path, "cpu:8", *WIDE, *mesh)
    of_none, of_remat = (here.configured._replace(remat=one) for one in ("none", remat))
    none, again = (here.compiled(one).sent[kind]["bytes"] for one in (of_none, of_remat))
    assert again - none == more
    # and all that the formula has is there
    formula = work.sent(here, of_remat)[kind]["bytes"]
    assert 0.8 * again <= formula <= 1.05 * again
