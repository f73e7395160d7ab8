"""Keeps what is freed for the next step, where steps run on CPUs.

XLA's CPU client takes the temporaries of every call from malloc and frees them behind it. glibc
maps blocks of that size for themselves and unmaps them again, so each of their pages is a page
fault in every step, filled with zeros by the kernel: 40,000 of them, a quarter of the processor
time, for 32 rows of 64 tokens of `tiny` (docs/speed.md).
"""

import ctypes
import os
import platform
from importlib.util import find_spec

# parameters of mallopt, from malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
TUNABLES = "GLIBC_TUNABLES"
ACCELERATORS = ("jax_plugins", "libtpu")  # packages that bring JAX other devices


def keep_freed() -> bool:
    """Tells this process's malloc not to give memory back to the system.

    To be called before the process has threads: glibc settles the number of arenas when there are
    several. The process then holds the most that it ever needed. One arena for all threads: in
    others no block may be larger than 64 MiB, and larger ones would be mapped in spite of all.

    Returns:
        Whether it was done: where JAX has nothing but CPUs, malloc is glibc's, and the environment
        does not set it (MALLOC_ARENA_MAX and its like, or glibc.malloc in GLIBC_TUNABLES).
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    chosen = chosen or "glibc.malloc" in os.environ.get(TUNABLES, "")
    if chosen or not only_cpus() or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)]
    return all(done)


def only_cpus() -> bool:
    """Whether JAX will find no other devices here, without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(find_spec(name) for name in ACCELERATORS)
