"""Runs of the command line in processes of their own, started within milliseconds.

A server imports what a run imports and touches no device; every run is a fork of it. So a test can
kill a hundred real runs: an interpreter and its imports would cost seconds each time.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any


def start(words: list[str], log: Path, environment: dict[str, str]) -> Any:
    """Starts `mllm-jax WORDS` with its output in `log`; gives a multiprocessing.Process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mllm_jax.__main__", "mllm_jax.train"])
    process = context.Process(target=_run, args=(words, log, environment))
    process.start()
    return process


def _run(words: list[str], log: Path, environment: dict[str, str]) -> None:
    from mllm_jax.__main__ import main

    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    with open(1, "w", buffering=1, closefd=False) as out, open(2, "w", closefd=False) as errors:
        sys.stdout, sys.stderr = out, errors
        code = main(words)
    os._exit(code)
