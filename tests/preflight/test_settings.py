"""Settings near a given one: all divide, nearest first, and flags that lead there."""

import pytest

from mllm_jax.preflight.roofline import Split
from mllm_jax.preflight.settings import Setting, near, quicker, whole_rows

GIVEN = Setting("none", 64, 2, Split(1, 8, 1))


def test_all_of_them_divide_and_none_is_the_given_one():
    found = near(GIVEN, 8)
    assert GIVEN not in found
    assert len(set(found)) == len(found)
    for setting in found:
        data, fsdp, tensor, _ = setting.split
        assert data * fsdp * tensor == 8
        assert setting.rows % (setting.microbatches * data * fsdp) == 0
        assert setting.rows <= GIVEN.rows


def test_a_context_axis_stays():
    given = GIVEN._replace(split=Split(1, 2, 1, 4))
    splits = {setting.split for setting in near(given, 8)}
    assert splits == {Split(1, 2, 1, 4), Split(2, 1, 1, 4), Split(1, 1, 2, 4)}


def test_nearest_first():
    found = near(GIVEN, 8)
    turns = [GIVEN._replace(microbatches=1), GIVEN._replace(microbatches=4)]
    assert found[:3] == [*turns, GIVEN._replace(remat="dots")]
    one = [setting for setting in found if len(setting.changed(GIVEN)) == 1]
    # of the changes that leave the result alone, one kind comes before any two
    free = [len(kind) for setting in found if "rows" not in (kind := setting.changed(GIVEN))]
    assert free == sorted(free)
    assert {setting.changed(GIVEN) for setting in one} == {
        ("remat",),
        ("microbatches",),
        ("mesh",),
        ("rows",),
    }


def test_what_may_be_quicker_has_the_same_rows_and_mesh():
    """64 rows over 8 devices, eight each: one, two, four or eight microbatches with any remat."""
    given = GIVEN._replace(remat="full")
    found = quicker(given)
    remats = ("none", "dots", "attention", "full")
    every = {given._replace(remat=r, microbatches=n) for r in remats for n in (1, 2, 4, 8)}
    assert len(found) == len(every) - 1
    assert set(found) == every - {given}
    # what keeps activations in the host's memory is not quicker, unless it is what is asked for
    of_offload = {setting.remat for setting in quicker(GIVEN._replace(remat="offload"))}
    assert of_offload == {*remats, "offload"}


def test_remat_only_goes_towards_less_memory():
    assert {setting.remat for setting in near(GIVEN._replace(remat="dots"), 8)} == {
        "dots",
        "attention",
        "full",
        "offload",
    }


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"remat": "full"}, "--compute.remat full"),
        ({"rows": 32}, "--data.rows 32"),
        ({"microbatches": 4}, "--train.microbatches 4"),
        ({"split": Split(1, 4, 2)}, "--mesh.data 1 --mesh.fsdp 4 --mesh.tensor 2"),
        (
            {"split": Split(1, 2, 1, 4)},
            "--mesh.data 1 --mesh.fsdp 2 --mesh.tensor 1 --mesh.context 4",
        ),
        ({}, ""),
    ],
)
def test_flags(changes: dict, flags: str):
    assert GIVEN._replace(**changes).flags(GIVEN) == flags


@pytest.mark.parametrize(
    ("rows", "turns", "parts", "found"),
    [
        (128, 16, 256, (256, 1)),
        (128, 16, 64, (128, 2)),
        (256, 16, 256, (256, 1)),
        (128, 16, 8, (128, 16)),
        (100, 5, 8, (104, 1)),
    ],
)
def test_rows_that_divide(rows: int, turns: int, parts: int, found: tuple[int, int]):
    assert whole_rows(rows, turns, parts) == found
