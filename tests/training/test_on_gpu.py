"""What a GPU has to run: results that wait in the host's memory, and optimizer states of few bits.

    MLLM_JAX_TEST_GPU=1 python -m pytest -m gpu tests/training/test_on_gpu.py

What programs for GPUs need is known without one (tests/preflight/test_offload.py).
"""

import jax
import numpy as np
import pytest

from tests.support import sums
from tests.training.optimizer import test_storage as storage

pytestmark = pytest.mark.gpu


def test_results_in_the_hosts_memory_come_back_as_they_were():
    """Gradients of two microbatches in the step that trains, and the memory of its program."""
    gradients, sizes = {}, {}
    for remat in ("full", "attention", "offload"):
        formats = sums.compute(compute="float32", remat=remat)
        mesh = sums.one_device()
        gradients[remat] = sums.gradient(mesh, formats, microbatches=2)
        lowered = sums.lowered(sums.make_setup(mesh, formats), 2)
        sizes[remat] = lowered.compile().memory_analysis()
    for remat in ("full", "attention"):
        for path, x in gradients["offload"].items():
            other = gradients[remat][path]
            np.testing.assert_allclose(x, other, atol=1e-5 * np.abs(other).max(), err_msg=path)
    hosts = {remat: size.host_temp_size_in_bytes for remat, size in sizes.items()}
    assert hosts["full"] == hosts["attention"] == 0 < hosts["offload"]


@pytest.mark.parametrize("form", storage.FORMS)
def test_an_optimizer_state_is_that_of_a_cpu(form: str):
    """Random bits are; a product's last bit may not be, so a rounding differs once in a while."""
    on_gpu = storage.run(form, 3)
    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = storage.run(form, 3)
    for one, other in zip(*map(jax.tree.leaves, (on_gpu, on_cpu)), strict=True):
        differs = ~np.isclose(np.float32(one), np.float32(other), rtol=1e-4, atol=1e-6)
        assert differs.mean() < 1e-2
