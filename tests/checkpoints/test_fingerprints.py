"""What a stage did to each module: counts, fingerprints, and the alarm for what is frozen."""

import ml_dtypes
import numpy as np
import pytest

from mllm_jax.checkpoints import fingerprints
from mllm_jax.checkpoints.fingerprints import Module, compare_modules
from mllm_jax.checkpoints.leaves import Leaf

TRAINED = {
    "language/embedding": True,
    "language/norm/scale": False,
    "connector/linear_1/kernel": True,
    "vision/pre_norm/scale": False,
}


def leaves(dtype: type = np.float32, **changes: float) -> dict[str, Leaf]:
    """A leaf of three elements per path; `changes` moves the numbers of a module."""
    made = {}
    for n, path in enumerate(TRAINED):
        start = n + changes.get(path.split("/")[0], 0.0)
        array = (start + np.arange(3) / 8).astype(dtype)
        made[path] = Leaf(array.shape, array.dtype, lambda array=array: array)
    return made


def by_name(modules: list[Module]) -> dict[str, Module]:
    return {module.module: module for module in modules}


def test_one_row_per_module_in_the_order_of_the_data():
    modules = compare_modules(leaves(), leaves(connector=1.0), TRAINED)
    assert [module.module for module in modules] == ["vision", "connector", "language"]
    assert [module.parameters for module in modules] == [3, 3, 6]
    assert [module.trained for module in modules] == ["no", "yes", "partly"]


def test_a_fingerprint_moves_exactly_where_numbers_moved():
    rows = by_name(compare_modules(leaves(), leaves(connector=1.0), TRAINED))
    assert rows["vision"].before == rows["vision"].after
    assert rows["language"].before == rows["language"].after
    assert rows["connector"].before != rows["connector"].after
    again = by_name(compare_modules(leaves(connector=1.0), leaves(connector=1.0), TRAINED))
    assert again["connector"].before == rows["connector"].after


def test_what_was_drawn_anew_has_no_fingerprint_before():
    before = {path: leaf for path, leaf in leaves().items() if not path.startswith("connector")}
    rows = by_name(compare_modules(before, leaves(), TRAINED))
    assert rows["connector"].before == "random"
    del before["language/norm/scale"]
    assert by_name(compare_modules(before, leaves(), TRAINED))["language"].before == "partly new"
    assert rows["vision"].before == rows["vision"].after


def test_a_frozen_parameter_that_moved_is_an_alarm():
    with pytest.raises(RuntimeError, match="1 frozen parameters changed: vision/pre_norm/scale"):
        compare_modules(leaves(), leaves(vision=1e-6), TRAINED)


def test_a_frozen_parameter_may_be_cast_to_the_runs_number_format():
    cast = leaves(ml_dtypes.bfloat16)
    rows = by_name(compare_modules(leaves(), cast, TRAINED))
    assert rows["vision"].before == rows["vision"].after


def test_the_same_bytes_under_another_path_are_another_module():
    swapped = leaves()
    swapped["language/embedding"], swapped["language/norm/scale"] = (
        swapped["language/norm/scale"],
        swapped["language/embedding"],
    )
    free = dict.fromkeys(TRAINED, True)
    rows = by_name(compare_modules(leaves(), swapped, free))
    assert rows["language"].before != rows["language"].after


def test_the_fingerprint_of_a_table_takes_few_reads(monkeypatch):
    """A row at a time would unpack the chunk of a checkpoint once a row: hours for a vocabulary."""
    table = np.arange(130_000 * 4, dtype=np.float32).reshape(130_000, 4)
    reads = []

    def part(index):
        reads.append(index)
        return table[index]

    leaf = Leaf(table.shape, table.dtype, lambda: table, part)
    whole = fingerprints.fingerprint({"language/embedding": leaf})
    assert len(reads) == 1
    monkeypatch.setattr(fingerprints, "BLOCK", 1_000 * 4)
    assert fingerprints.fingerprint({"language/embedding": leaf}) == whole
    assert len(reads) == 1 + 130
