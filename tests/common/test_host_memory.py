"""Memory that is freed and asked for again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from mllm_jax.common import host_memory


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(host_memory.TUNABLES, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_ARENA_MAX", "2"),
        (host_memory.TUNABLES, "glibc.malloc.hugetlb=1"),
        ("JAX_PLATFORMS", "cuda"),
    ],
)
def test_what_the_environment_sets_stays(monkeypatch, unset, name, value):
    monkeypatch.setenv(name, value)
    assert not host_memory.keep_freed()


@pytest.mark.parametrize("package", host_memory.ACCELERATORS)
def test_an_accelerator_is_known_by_its_package(monkeypatch, package):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(host_memory, "find_spec", lambda name: name == package)
    assert not host_memory.only_cpus()
    monkeypatch.setattr(host_memory, "find_spec", lambda name: None)
    assert host_memory.only_cpus()


FAULTS = """
import resource
from mllm_jax.commands.main import main

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def bench(steps):
    words = f"bench --size tiny --length 64 --batch 32 --attention dense --steps {steps}"
    before = faults()
    assert main(words.split()) == 0
    return faults() - before

bench(1)
print(bench(11) - bench(1))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_the_steps_of_a_command_page_nothing_in(unset):
    """Ten steps, each with temporaries of 130 MiB: 33,000 pages."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(ran.stdout.splitlines()[-1]) < 33_000
