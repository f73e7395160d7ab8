"""Counted, not timed: what the small step and decoding do, and how many programs are compiled."""

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
import yaml

from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.engine import Answerer
from mllm_jax.training.loop import train
from tests.support import counts, tiny, xla

FILE = Path(counts.__file__).with_name("counts.yaml")
ROOT = FILE.parents[2]
MORE, LESS = 1.08, 0.85  # of the stored number; JAX 0.10.2 and 0.12.0 differ by up to 5 %
RECORD = "python -m tests.support.counts > tests/support/counts.yaml"


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """What RECORD prints, in a process that generates code as users' processes do."""
    command = [sys.executable, "-m", "tests.support.counts"]
    # of XLA's flags the last one wins: those of this process first, then what undoes one of them
    undone = " ".join(flag.replace("=false", "=true") for flag in xla.OLD_EMITTERS)
    said = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": undone}, cwd=ROOT
    )
    assert said.returncode == 0, said.stderr
    return yaml.safe_load(said.stdout)


@pytest.mark.parametrize("name", counts.PROGRAMS)
def test_a_program_does_no_more_than_before(name: str, counted: dict[str, dict[str, int]]):
    """8 % more of anything fails; far less does too, so that the next 8 % are noticed again."""
    expected = yaml.safe_load(FILE.read_text(encoding="utf-8"))[name]
    measured = counted[name]
    assert measured.keys() == expected.keys()
    more = {key: n for key, n in measured.items() if n > MORE * expected[key]}
    less = {key: n for key, n in measured.items() if n < LESS * expected[key]}
    assert not more, f"more than {expected}; if that is meant: {RECORD}"
    assert not less, f"far less than {expected}: note it by {RECORD}"


# ------------------------------------------------------------------------------------- compilations


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts the programs that are compiled in the block, by the name of their function."""
    names: Counter[str] = Counter()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.match(r"Compiling (?:jit\()?([\w<>]+)", record.getMessage()):
                names[match[1]] += 1

    listener, logger = Listener(), logging.getLogger("jax")
    logger.addHandler(listener)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(listener)


def test_a_run_compiles_one_step(data, tmp_path):
    """Four steps with a save between; beside the step, what makes the first state."""
    steps = {"steps": 4, "save_every": 2}  # as many as `trained_run`: its programs
    config = tiny.config(data, tmp_path / "run", train=steps)
    with compilations() as names:
        train(config, devices=jax.devices()[:1])
    assert names["train_step"] == 1
    assert names.total() <= 6, names


def test_batches_of_answers_run_the_same_programs(trained_run, data):
    """Three batches, prompts and answers of several lengths: what the first compiled is enough."""
    opened = Answerer(trained_run)
    picture = sorted((data / "images").iterdir())[0]

    def answer(questions: list[str], limit: int) -> None:
        prompts = [opened.prompt([user_turn(text, 1)], 16) for text in questions]
        pictures = [opened.pictures([picture]) for _ in questions]
        opened.answer(prompts, pictures, limit, ends=(), rows=4)

    with compilations() as first:
        answer(["gorria ala berdea?", "zuria?", "beltza?"], 12)
    # none at all where an earlier test of this process has compiled it
    assert max(first[name] for name in ("prefill", "decode", "encode")) <= 1, first
    assert first.total() <= 12, first
    with compilations() as later:
        answer(["zuria ala beltza?", "urdina?", "horia ala gorria?"], 5)
        answer(["horia?", "urdina ala beltza?", "berdea?"], 9)
    assert not later, later
