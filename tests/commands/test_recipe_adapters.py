"""A recipe with adapters from the first weights to both exports: align, then LoRA beside int8."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.config.adapter import INT8
from mllm_jax.conversion import conversions
from tests.support import tiny, weights
from tests.training.test_int8_base import model
from tests.training.test_lora import arrays

# two stages, two exports; adapters, int8 and recipes alone have quick tests
pytestmark = pytest.mark.slow

FROZEN = {"match": "(vision|language)/.*", "train": False}
CONNECTOR = {"match": "connector/.*"}
MATCH = "language/layers/(attention/(q|v)|mlp/down)/kernel"


@pytest.fixture(scope="module")
def out(data, tmp_path_factory) -> Path:
    """The recipe's folder, after it ran."""
    root = tmp_path_factory.mktemp("recipe")
    weights.model_folder(data, root / "start", model=model(data))
    parts = {"connector": CONNECTOR, "rest": FROZEN}
    tree = tiny.tree(data, root) | {"model": model(data), "optimizer": {"parts": parts}}
    tree |= {"train": {"steps": 2, "save_every": 2}, "init": {"weights": str(root / "start")}}
    del tree["out"]
    tree["optimizer"]["learning_rate"] = 1e-2
    adapter: dict[str, Any] = {"match": MATCH, "rank": 4, "base": "int8", "dropout": 0.1}
    stages = {"align": tree, "instruct": tree | {"adapter": adapter}}
    for name, stage in stages.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(stage))
    files = {"stages": ["align.yaml", "instruct.yaml"], "export": "float32"}
    (root / "recipe.yaml").write_text(yaml.safe_dump(files))
    return recipe.run(root / "recipe.yaml", root / "out", devices=jax.devices()[:1])


def test_adapters_train_beside_the_aligned_model(data, out):
    """What has an adapter moved, and the connector; everything else is as it came, to the bit."""
    start, aligned = weights.arrays(data, model=model(data)), arrays(out / "align")
    trained, adapted = arrays(out / "instruct"), list(filter(re.compile(MATCH).fullmatch, start))
    for path, x in start.items():
        if path.startswith("connector/"):
            assert np.any(aligned[path] != x) and np.any(trained[path] != aligned[path]), path
            continue
        assert aligned[path].tobytes() == x.tobytes(), path
        changed = np.any(trained[path].astype(np.float32) != x.astype(np.float32))
        assert changed == (path in adapted), path
    assert len(adapted) == 3 < len([path for path in start if INT8.fullmatch(path)])
    lines = tiny.numbers(out / "instruct")
    assert [line["step"] for line in lines] == [0, 1] and all(line["finite"] for line in lines)


def test_both_exports_are_the_same_model(out, tmp_path):
    """Merged by the recipe; as a PEFT folder beside the export of the stage before."""
    conversions.to_hf(out / "align", tmp_path / "base")
    conversions.to_peft(out / "instruct", tmp_path / "peft", base=str(tmp_path / "base"))
    expected = arrays(out / "instruct")
    for folder in (out / "hf", tmp_path / "peft"):
        found = arrays(folder)
        assert found.keys() == expected.keys()
        for path, x in found.items():
            np.testing.assert_array_equal(
                x.astype(np.float32), expected[path].astype(np.float32), err_msg=f"{folder} {path}"
            )
