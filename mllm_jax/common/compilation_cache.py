"""Keeps compiled programs on disk, so that a second call of a command does not compile again.

    $XDG_CACHE_HOME/mllm_jax/programs/PROCESSOR/      default: ~/.cache/mllm_jax/programs/...

JAX's own persistent cache, whose keys hold the program, its options and the versions. A folder for
each kind of processor, since a home folder may be shared by several and a program for one may end
another with an illegal instruction. `MLLM_JAX_PROGRAMS=off` turns it off, another value is the
folder; so is JAX's own `JAX_COMPILATION_CACHE_DIR`, which comes first. It may be deleted at any
time.
"""

import hashlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = "MLLM_JAX_PROGRAMS"
OFF = "off"
LEAST_SECONDS = 0.5  # a program that compiles faster is not kept


def enable() -> Path | None:
    """Turns the cache on for this process, unless it is on already or turned off.

    Returns:
        The folder; None where there is none: turned off, or not writable, which is said once on
        standard error.
    """
    chosen = os.environ.get(VARIABLE, "")
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or chosen == OFF:
        return None
    folder = Path(chosen) if chosen else _default()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        print(
            f"{folder}: not writable, so programs are compiled in every process; set {VARIABLE} to "
            f"another folder, or to {OFF}",
            file=sys.stderr,
        )
        os.environ[VARIABLE] = OFF
        return None
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    compilation_cache.reset_cache()  # whether it is used was decided by the first program
    return folder


def _default() -> Path:
    """The folder for this user and this kind of processor."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mllm_jax" / "programs" / _processor()


def _processor() -> str:
    """What tells kinds of processors apart: machine and instruction sets."""
    about = Path("/proc/cpuinfo")
    text = about.read_text(encoding="utf-8") if about.is_file() else platform.processor()
    sets = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    known = " ".join(sorted(sets[1].split())) if sets else text
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
