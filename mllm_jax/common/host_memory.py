"""Keeps what is freed for the next step, where steps run on CPUs.

XLA's CPU client takes the temporaries of every call from malloc and frees them behind it. glibc
maps blocks of that size for themselves and unmaps them again, so each of their pages is a page
fault in every step, filled with zeros by the kernel: 40,000 of them, a quarter of the processor
time, for 32 rows of 64 tokens of `tiny` (docs/speed.md).
"""

import ctypes
import os
import platform

# parameters of mallopt, from malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
TUNABLES = "GLIBC_TUNABLES"


def keep_freed(backend: str) -> bool:
    """Tells this process's malloc not to give memory back to the system.

    The process then holds the most that it ever needed. One arena for all threads: in others no
    block may be larger than 64 MiB, and larger ones would be mapped in spite of all.

    Args:
        backend: what steps run on: cpu, gpu or tpu.

    Returns:
        Whether it was done: on CPUs alone, and not where malloc is another than glibc's or the
        environment sets it (MALLOC_ARENA_MAX and its like, or glibc.malloc in GLIBC_TUNABLES).
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    chosen = chosen or "glibc.malloc" in os.environ.get(TUNABLES, "")
    if backend != "cpu" or chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)]
    return all(done)
