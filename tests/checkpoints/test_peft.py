"""PEFT's folders, opened by the `peft` library and made by it: equal logits both ways."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mllm_jax.batch import ModelInputs
from mllm_jax.checkpoints import peft
from mllm_jax.checkpoints.fingerprints import fingerprint
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.adapter import AdapterConfig, shapes
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.conversion import conversions
from mllm_jax.models import mllm

ROOT = Path(__file__).resolve().parents[2]
LLAVA = (
    r"model\.(language_model|vision_tower\.encoder)\.layers\..*\.(q_proj|o(ut)?_proj|fc2|down_proj)"
)
BASES: dict[str, tuple[AdapterConfig, dict[str, Any]]] = {
    "llava_mlp": (
        AdapterConfig("(vision|language)/layers/.*/kernel", rank=4, alpha=6.0, dropout=0.1),
        {"target_modules": LLAVA, "modules_to_save": ["multi_modal_projector"], "r": 3},
    ),
    "llama31": (
        AdapterConfig(".*/attention/(q|v|out)/kernel", rank=4, alpha=6.0, rslora=True),
        {"target_modules": ["q_proj", "gate_proj", "o_proj"], "r": 5, "use_rslora": True},
    ),
    "llava_linear": (
        AdapterConfig("(vision|language)/layers/.*/(q|out)/kernel", rank=4, alpha=6.0, dora=True),
        {"target_modules": LLAVA, "r": 3, "use_dora": True},
    ),
    "llava_linear_gelu": (
        AdapterConfig("language/layers/attention/q/kernel", rank=4, alpha=6.0),
        {"target_modules": LLAVA, "r": 3},
    ),
}
TRAINED = ("llava_mlp", "llava_linear", "llava_linear_gelu")  # with a connector


def drawn(base: Path, adapter: AdapterConfig, connector: bool) -> dict[str, Leaf]:
    """Random adapters, and a random connector, as a run would have trained them."""
    random, abstract = np.random.default_rng(0), model_shapes(base)
    wanted = {path: shape for path, shape in abstract.items() if path.startswith("connector/")}
    trained = wanted if connector else {}
    for kernel in adapter.targets(abstract):
        trained = trained | shapes(kernel, abstract[kernel], adapter.rank, adapter.dora)
    arrays = {p: 0.1 * random.standard_normal(s).astype(np.float32) for p, s in trained.items()}
    return {p: Leaf(x.shape, x.dtype, lambda x=x: x) for p, x in arrays.items()}


def model_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {p: x.shape for p, x in conversions.abstract(open_model(base).config.model).items()}


@pytest.fixture(scope="module")
def made(oracle, tmp_path_factory) -> Path:
    """base/{ours,theirs}: adapter folders; base/{ours,theirs}.npy: logits by peft."""
    if importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft (see pyproject.toml, test)")
    out = tmp_path_factory.mktemp("peft")
    jobs = []
    for name, (adapter, lora) in BASES.items():
        base, place = oracle / name, out / name
        (place / "ours").mkdir(parents=True)
        trained = drawn(base, adapter, connector=name in TRAINED)
        config = open_model(base).config.model
        peft.write_peft(place / "ours", config, adapter, trained, str(base), "0")
        job = {"base": str(base)}
        jobs.append(job | {"ours": str(place / "ours"), "logits": str(place / "ours.npy")})
        theirs = {"theirs": str(place / "theirs"), "lora": lora | {"lora_alpha": 7}}
        jobs.append(job | theirs | {"logits": str(place / "theirs.npy")})
    (out / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "tests.support.peft_models", str(out / "jobs.json")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-2000:]
    return out


def our_logits(base: Path, model: Path) -> np.ndarray:
    """Of the reference's inputs, by the parameters that are read from `model`."""
    opened = open_model(model)
    built = mllm.build(opened.config.model, ComputeConfig(compute="float32", remat="none"))
    params = opened.load(mllm.abstract_params(built))
    expected = dict(np.load(base / "expected.npz"))
    tokens = jnp.asarray(expected["input_ids"].astype(np.int32))
    image_token = opened.config.model.image_token
    is_image = tokens == (-1 if image_token is None else image_token)
    index = jnp.where(is_image, jnp.cumsum(is_image, axis=1) - 1, -1).astype(jnp.int32)
    pixels = jnp.zeros((1, 0, 1, 1, 3))
    if "pixel_values" in expected:
        pixels = jnp.asarray(expected["pixel_values"].transpose(0, 2, 3, 1)[None])
    positions = jnp.arange(tokens.shape[1])[None]
    inputs = ModelInputs(tokens, jnp.ones_like(tokens), positions, index, pixels)
    hidden = mllm.hidden(built, params, inputs)
    return np.asarray(mllm.logits(hidden, mllm.head(params)))


@pytest.mark.parametrize("who", ["ours", "theirs"])
@pytest.mark.parametrize("name", BASES)
def test_logits_are_equal_whoever_made_the_folder(made, oracle, name, who):
    """The adapter folder is a model: its base, with adapters and saved modules in it."""
    folder, base = made / name / who, oracle / name
    if who == "ours":  # its fingerprint is not that of the base
        folder = made / name / "opened"
        shutil.copytree(made / name / "ours", folder)
        adapter = BASES[name][0]
        trained = drawn(base, adapter, connector=name in TRAINED)
        print_ = fingerprint(_kernels(base, adapter))
        peft.write_peft(folder, open_model(base).config.model, adapter, trained, str(base), print_)
    expected = np.load(made / name / f"{who}.npy")
    found = our_logits(base, folder)
    alone = our_logits(base, base)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(alone - expected).max() > 0.1


def leaves_of(folder: Path) -> dict[str, Leaf]:
    opened = open_model(folder)
    return opened.leaves(conversions.abstract(opened.config.model))


def _kernels(base: Path, adapter: AdapterConfig) -> dict[str, Leaf]:
    leaves = leaves_of(base)
    return {path: leaves[path] for path in adapter.targets(leaves)}


# ---------------------------------------------------------------------------------------- bad input

REFUSED = [
    ({"peft_type": "LOHA"}, "peft_type='LOHA'; expected 'LORA'"),
    ({"bias": "lora_only"}, "bias='lora_only'; expected 'none'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'; expected"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern={'q_proj': 2} is not supported"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern={'q_proj': 2} is not supported"),
    ({"layers_to_transform": [0]}, "layers_to_transform=[0] is not supported"),
    (
        {"use_dora": True},
        "has no lora_magnitude_vector, but adapter_config.json says use_dora=True",
    ),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]] is not supported"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices=[1] is not supported"),
    ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow=3 is not supported"),
    ({"r": 5}, "expected [5, 64]: an adapter of another model, or of another rank"),
    ({"r": 0}, "r=0; expected a whole number from 1"),
]


@pytest.fixture(scope="module")
def written(oracle, tmp_path_factory) -> Path:
    """An adapter folder of ours."""
    base, adapter = oracle / "llama31", BASES["llama31"][0]
    folder = tmp_path_factory.mktemp("written")
    trained = drawn(base, adapter, connector=False)
    model = open_model(base).config.model
    kernels = fingerprint(_kernels(base, adapter))
    peft.write_peft(folder, model, adapter, trained, str(base), kernels)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        leaves_of(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[next(iter(x[0])) for x in REFUSED])
def test_what_we_do_not_have_is_refused_by_name(written, tmp_path, fields, message):
    shutil.copytree(written, tmp_path / "peft")
    config = tmp_path / "peft" / peft.CONFIG
    write_json(config, read_json(config) | fields)
    assert message in refusal(tmp_path / "peft")


def test_another_base_is_refused(written, oracle, tmp_path):
    shutil.copytree(written, tmp_path / "peft")
    config = tmp_path / "peft" / peft.CONFIG
    write_json(config, read_json(config) | {"base_model_name_or_path": str(oracle / "llama")})
    assert "was trained beside another base" in refusal(tmp_path / "peft")
    write_json(config, read_json(config) | {"base_model_name_or_path": "meta-llama/Llama-3.1-8B"})
    assert "convert from-peft" in refusal(tmp_path / "peft")


@pytest.mark.parametrize("path", ["language/norm/scale", "connector/newline"])
def test_what_peft_has_no_place_for_is_not_written(oracle, tmp_path, path):
    base, adapter = oracle / "llava_linear", AdapterConfig("language/layers/.*/kernel", rank=4)
    trained = drawn(base, adapter, connector=True)
    trained[path] = Leaf((4,), np.dtype(np.float32), lambda: np.ones(4, np.float32))
    with pytest.raises(ConfigError, match=f"{path} was trained .* no place for it; export the"):
        peft.write_peft(tmp_path, open_model(base).config.model, adapter, trained, "base", "0")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- linear connectors


def linear(oracle, out: Path, adapter: AdapterConfig, connector: bool = True) -> Path:
    """An adapter folder beside a linear connector in the gelu form, whose base is not compared."""
    base = oracle / "llava_linear_gelu"
    out.mkdir()
    trained = drawn(base, adapter, connector)
    model = open_model(base).config.model
    kernels = fingerprint(_kernels(base, adapter))
    peft.write_peft(out, model, adapter, trained, str(base), kernels)
    return out


def test_a_linear_connector_is_read_back_to_the_bit(oracle, tmp_path):
    adapter = BASES["llava_linear_gelu"][0]
    found = leaves_of(linear(oracle, tmp_path / "peft", adapter))
    trained = drawn(oracle / "llava_linear_gelu", adapter, connector=True)
    for path in ("connector/linear_1/kernel", "connector/linear_1/bias"):
        np.testing.assert_array_equal(found[path].read(), trained[path].read())


def test_a_connector_that_is_no_longer_linear_is_refused(oracle, tmp_path):
    folder = linear(oracle, tmp_path / "peft", BASES["llava_linear_gelu"][0])
    tensors = load_file(folder / peft.WEIGHTS)
    (name,) = (name for name in tensors if name.endswith("linear_1.weight"))
    tensors[name] = tensors[name] + np.float32(0.01)
    save_file(tensors, folder / peft.WEIGHTS)
    assert "modules_to_save is no longer the linear one of the base; merge" in refusal(folder)


def test_an_adapter_of_a_linear_connector_in_the_gelu_form_is_refused(oracle, tmp_path):
    """Its matrix is in both layers there."""
    adapter = AdapterConfig("connector/linear_1/kernel", rank=4)
    with pytest.raises(ConfigError) as error:
        linear(oracle, tmp_path / "peft", adapter, connector=False)
    assert str(error.value) == (
        "adapter_model.safetensors: connector/linear_1/lora_a changes a linear connector, which is "
        "two layers around a gelu in the base's folder; merge the adapters instead, by mllm-jax "
        "convert to-hf or peft's merge_and_unload"
    )
    assert not list((tmp_path / "peft").iterdir())
