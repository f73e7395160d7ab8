"""Sets up every test: eight simulated devices, strict JAX, the data that tests share.

Set before the first import of JAX: `XLA_FLAGS` for the devices, `JAX_PLATFORMS=cpu` unless
`MLLM_JAX_TEST_GPU` is set, and a folder of compiled programs, empty at the start.
"""

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support import xla

DEVICES = 8
GPU = bool(os.environ.get("MLLM_JAX_TEST_GPU"))

if not GPU:
    os.environ["JAX_PLATFORMS"] = "cpu"
# threads of XLA's CPU client: independent collectives of a device wait in several of them at once
# and with one thread a device the others never come
os.environ.setdefault("PJRT_NPROC", str(2 * DEVICES))
os.environ.setdefault("MLLM_JAX_PROGRAMS", "off")  # not those of the user
# of flags that are given twice the last one wins
os.environ["XLA_FLAGS"] = f"{xla.flags(DEVICES, quick=not GPU)} {os.environ.get('XLA_FLAGS', '')}"

# one folder of compiled programs for all processes of a session: many tests train the same small
# models (test_loop alone: 111 s of processor time instead of 170)
COMPILED: str | None = None
if not GPU and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix="mllm_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from jax.sharding import Mesh

from tests.support import type_checks

type_checks.install()  # before the package is imported

from mllm_jax.distributed import sharding
from tests.support import tiny
from tests.support.once import once

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def pytest_unconfigure() -> None:
    """Deletes the folder of compiled programs, in the process that made it."""
    if COMPILED is not None:
        shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Leaves the modules to no further garbage collection, and looks for garbage less often.

    Tracing makes millions of short-lived objects: collections took 9 % of the processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` tests where there is no GPU to run them on; the reason says how to get them."""
    if GPU and jax.default_backend() == "gpu":
        return
    skip = pytest.mark.skip(reason="needs a GPU: set MLLM_JAX_TEST_GPU=1 on a machine that has one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published data and files beside the checkout, for tests marked `realdata` only."""
    if not SHARED.is_dir():
        pytest.skip(f"realdata: {SHARED} does not exist; it holds data that others published")
    return SHARED


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Hugging Face checkpoints of `reference_checkpoints`, one folder each.

    They hold what transformers computes from them. Made once a session, by a process of its own
    that frees torch's memory and threads; parallel test processes share them.
    """
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch to make the reference checkpoints (see pyproject.toml, test)")

    def make(out: Path) -> None:
        command = [sys.executable, "-m", "tests.support.reference_checkpoints", str(out)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        if process.returncode != 0:
            pytest.fail(f"reference_checkpoints failed:\n{process.stderr[-2000:]}")

    return once(tmp_path_factory, "oracle", make)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and tokenizer of `tests.support.tiny`."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.make_data(folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tests.support.tiny`'s stage after four steps, for tests that read it."""
    from mllm_jax.training.loop import train

    def make(folder: Path) -> None:
        tiny.make_data(folder / "data")
        steps = {"steps": 4, "save_every": 4}
        train(tiny.config(folder / "data", folder / "run", train=steps), devices=jax.devices()[:1])

    return once(tmp_path_factory, "trained", make) / "run"


@pytest.fixture
def make_mesh() -> Callable[..., Mesh]:
    """`make_mesh(fsdp=4, tensor=2)` over all devices, `make_mesh(devices=1)` over the first."""

    def make(
        data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1, devices: int | None = None
    ) -> Mesh:
        return sharding.make_mesh((data, fsdp, tensor, context), jax.devices()[:devices])

    return make


@pytest.fixture
def libtpu() -> None:
    """libtpu belongs to the [tpu] extra: installed, it warns at every start of JAX elsewhere."""
    reason = "needs libtpu (pip install 'mllm-jax[tpu]'); .ci/run lends it to these tests"
    _needs("libtpu", reason, "MLLM_JAX_REQUIRE_LIBTPU")


@pytest.fixture
def gpu_compiler() -> None:
    """5 GB of wheels, which the ordinary environment does not have."""
    reason = "needs JAX's CUDA flavour on the path (pip install 'mllm-jax[gpu-preflight]')"
    _needs("jax_cuda12_plugin", reason, "MLLM_JAX_REQUIRE_GPU_WHEELS")


def _needs(module: str, reason: str, variable: str) -> None:
    """Skips a test without the module; where the variable is 1, the test fails."""
    if importlib.util.find_spec(module) is not None:
        return
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason}, and {variable}=1 asks for it")
    pytest.skip(reason)
