"""Estimates for rows that devices share by length, beside the compiled program."""

from pathlib import Path

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.preflight import plans as planning
from mllm_jax.preflight import report, table, work
from tests.preflight.test_report import WIDE, near_the_compiler, plans

SHARED = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.context", "2")


def test_a_context_axis_divides_what_rows_take(tmp_path: Path):
    """Four half rows on a device instead of two rows; parameters as over fsdp, batches whole."""
    alone = ("--mesh.data", "2", "--mesh.fsdp", "4")
    two, one = (plans(tmp_path, "cpu:8", *WIDE, *flags) for flags in (SHARED, alone))
    assert two.configured.split == planning.Split(2, 2, 1, 2)
    of_two, of_one = two.memory(two.configured), one.memory(one.configured)
    for name in ("trainable", "moments", "activations", "head"):
        assert getattr(of_two, name) == getattr(of_one, name), name
    assert (of_two.batch, of_two.images) == (2 * of_one.batch, 2 * of_one.images)


def test_what_does_not_divide_is_refused(tmp_path: Path):
    here = plans(tmp_path, "cpu:8", *WIDE, *SHARED, "--data.length", "510")
    with pytest.raises(ConfigError, match=r"data\.length=510 is not a multiple of 4"):
        here.check_rows(here.configured)


@pytest.mark.slow
def test_a_program_with_a_context_axis(tmp_path: Path):
    here = plans(tmp_path, "cpu:8", *WIDE, *SHARED)
    near_the_compiler(here)
    program = here.compiled(here.configured)
    assert program.memory["arguments"] == here.memory(here.configured).held + 4
    formula = work.sent(here, here.configured)
    assert program.sent["all-gather"]["bytes"] >= 0.9 * formula["all-gather"]["bytes"]
    table_of = table.render(report._describe(here, here.configured, program))
    assert "mesh data 2 x fsdp 2 x tensor 1 x context 2; 16 rows" in table_of
