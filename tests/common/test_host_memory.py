"""Memory that is freed and asked for again costs no page faults."""

import ctypes
import platform
import resource
import threading

import pytest

from mllm_jax.common import host_memory

SIZE = 128 * 2**20  # bytes
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


@pytest.fixture
def unset(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", host_memory.TUNABLES):
        monkeypatch.delenv(name, raising=False)


def faults() -> int:
    """Page faults of a block that is taken, filled and freed by a thread."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def work() -> None:
        block = libc.malloc(SIZE)
        ctypes.memset(block, 1, SIZE)
        libc.free(block)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_a_block_of_the_same_size_is_not_paged_in_again(unset):
    assert host_memory.keep_freed("cpu")
    faults()
    pages = SIZE // resource.getpagesize()
    assert min(faults() for _ in range(3)) < pages / 100


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), (host_memory.TUNABLES, "glibc.malloc.hugetlb=1")],
)
def test_what_the_environment_sets_stays(monkeypatch, unset, name, value):
    monkeypatch.setenv(name, value)
    assert not host_memory.keep_freed("cpu")


def test_memory_of_hosts_of_accelerators_is_theirs(unset):
    assert not host_memory.keep_freed("gpu")
