"""The list of one-line changes fits the code, and the tests notice a sample of them."""

import os
import random
import shlex

import pytest

from tests.support import mutants

SAMPLE = int(os.environ.get("MLLM_JAX_MUTANTS", "4"))
LEAST = 200  # changes in the list


def test_every_change_fits_the_code():
    """Each is one line or piece of the code as it is now, another program, and names its tests."""
    known = mutants.load()
    assert len(known) >= LEAST
    assert len({(m.file, m.was, m.now) for m in known}) == len(known)
    for mutant in known:
        changed = mutant.applied((mutants.ROOT / mutant.file).read_text(encoding="utf-8"))
        compile(changed, mutant.file, "exec")
        tests = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
        assert tests, mutant
        for word in tests:
            assert (mutants.ROOT / word.partition("::")[0]).is_file(), mutant


@pytest.mark.slow
def test_a_sample_is_noticed():
    real = [mutant for mutant in mutants.load() if mutant.equivalent is None]
    sample = random.Random(os.environ.get("MLLM_JAX_SEED", "0")).sample(real, SAMPLE)
    missed = [outcome.mutant for outcome in mutants.try_all(sample, 1) if not outcome.noticed]
    assert len(missed) <= (1 - mutants.SHARE) * len(sample), missed
