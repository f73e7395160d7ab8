"""Conversions against stock transformers: every tensor, every key, every logit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mllm_jax.checkpoints.hf import tensor_files
from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.checkpoints.hf.connector_form import FORMS
from mllm_jax.checkpoints.hf.weight_files import stored_tensors
from mllm_jax.checkpoints.leaves import Leaf
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.commands.flags import CHAT_FORMATS, QUESTION_FORMATS
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.model import ConnectorConfig
from mllm_jax.conversion import conversions
from mllm_jax.conversion.chat_format import PREFERRED
from mllm_jax.data.chat.templates import TEMPLATES
from tests.checkpoints.folders import make_clip, rewrite
from tests.checkpoints.hf.test_reader import ORIGINAL, original_config

SIGLIP = ["llava_siglip", "llava_siglip_last", "llava_next_siglip"]
LLAVA = ["llava_mlp", "llava_linear", "llava_linear_gelu", "llava_two_images", "llava_bf16"]
LLAVA += ["llava_next_mlp", "llava_next_linear", "llava_next_two_images", *SIGLIP]
LLAMA = ["llama", "llama31", "llama32_tied"]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in stored_tensors(folder).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


def hub_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the Hub's names: transformers 5 leaves "vision_model." out of LLaVA's."""
    return {
        re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): x
        for name, x in tensors.items()
    }


@pytest.fixture(scope="module")
def exported(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every oracle folder, into a model folder and out again."""
    out = tmp_path_factory.mktemp("exported")
    for name in LLAVA + LLAMA:
        conversions.from_hf(oracle / name, out / "models" / name)
        conversions.to_hf(out / "models" / name, out / name)
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


def load(folder: Path, name: str):
    """Stock transformers' model of a folder: it must miss nothing, and find nothing unexpected."""
    transformers = pytest.importorskip("transformers")
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert ("Llava" in architecture, "Next" in architecture) == (name in LLAVA, "_next_" in name)
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype="auto"
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize("name", LLAVA + LLAMA)
def test_round_trip_is_bit_identical(name: str, oracle: Path, exported: Path) -> None:
    same(hub_names(tensors(oracle / name)), tensors(exported / name))


@pytest.mark.parametrize("name", LLAVA + LLAMA)
def test_transformers_computes_the_same(name: str, oracle: Path, exported: Path) -> None:
    torch = pytest.importorskip("torch")
    a, b = load(oracle / name, name), load(exported / name, name)
    expected = np.load(oracle / name / "expected.npz")
    inputs = {"input_ids": torch.from_numpy(expected["input_ids"])}
    if "pixel_values" in expected:
        inputs["pixel_values"] = torch.from_numpy(expected["pixel_values"]).to(a.dtype)
    if "image_sizes" in expected:
        inputs["image_sizes"] = torch.from_numpy(expected["image_sizes"])
    with torch.no_grad():
        assert torch.equal(a(**inputs).logits, b(**inputs).logits)
        ids = b.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == expected["greedy"].tolist()
    ours, theirs = b.generation_config, a.generation_config
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    ours, theirs = b.config.get_text_config().to_dict(), a.config.get_text_config().to_dict()
    loaded = ("dtype", "_name_or_path")
    assert {k: v for k, v in ours.items() if k not in loaded} == {
        k: v for k, v in theirs.items() if k not in loaded
    }


@pytest.mark.parametrize("name", LLAVA)
def test_exported_processor_makes_the_same_inputs(name: str, oracle: Path, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    settings = json.loads((exported / name / "processor_config.json").read_text())
    processor = getattr(transformers, settings["processor_class"]).from_pretrained(exported / name)
    expected = np.load(oracle / name / "expected.npz")
    images = [Image.open(path) for path in sorted((oracle / name).glob("image_*.png"))]
    inputs = processor(text=str(expected["prompt"]), images=images, return_tensors="np")
    assert np.array_equal(inputs["input_ids"], expected["input_ids"])
    assert np.array_equal(inputs.get("image_sizes", 0), expected.get("image_sizes", 0))
    atol = 0.02 if name == "llava_bf16" else 1e-6
    np.testing.assert_allclose(inputs["pixel_values"], expected["pixel_values"], atol=atol)
    assert processor.num_additional_image_tokens == (name not in SIGLIP)
    assert processor.chat_template
    config = json.loads((exported / name / "config.json").read_text())
    assert config["image_seq_length"] == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_connector_in_two_forms(
    dtype: str, oracle: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The form can be forced; both compute the same, and come back as one matrix to the bit."""
    torch = pytest.importorskip("torch")
    source = exported / "models" / "llava_linear_gelu"
    assert open_model(source).config.model.connector == ConnectorConfig("linear")
    expected = np.load(oracle / "llava_linear_gelu" / "expected.npz")
    inputs = {"input_ids": torch.from_numpy(expected["input_ids"])}
    logits, kernels = [], []
    for form in FORMS:
        out = tmp_path / form
        conversions.to_hf(source, out, dtype=dtype, connector_form=form)
        assert json.loads((out / "config.json").read_text())["projector_hidden_act"] == form
        assert ("vLLM and llama.cpp do not" in capsys.readouterr().out) == (form == "linear")
        assert "one matrix, stored" in (out / "README.md").read_text()
        network = load(out, "llava_linear_gelu")
        pixels = torch.from_numpy(expected["pixel_values"]).to(network.dtype)
        with torch.no_grad():
            logits.append(network(**inputs, pixel_values=pixels).logits.float().numpy())
        back = open_model(out)
        leaves = back.leaves(conversions.abstract(back.config.model))
        assert not any("linear_2" in path for path in leaves)
        kernels.append({p: x.read() for p, x in leaves.items() if p.startswith("connector/")})
    same(*kernels)
    np.testing.assert_allclose(*logits, atol=2e-5 if dtype == "float32" else 0.05, rtol=0)


def test_a_form_that_does_not_fit(exported: Path, tmp_path: Path) -> None:
    for name, message in (("llava_linear", "use linear"), ("llava_mlp", "leave it out")):
        with pytest.raises(ConfigError, match=f"--connector-form gelu: .*{message}"):
            conversions.to_hf(exported / "models" / name, tmp_path / "hf", connector_form="gelu")
    assert not (tmp_path / "hf").exists()


def test_the_choices_of_a_training_survive(oracle: Path, tmp_path: Path) -> None:
    """Stock transformers does not read them, and opens the folder all the same."""
    choices = {"order": "wh", "rounding": "original", "several_images": "pad"}
    name = "llava_next_mlp"
    source = rewrite(
        oracle / name, tmp_path / "src", lambda t: t, lambda c: c | {"mllm_jax_grids": choices}
    )
    conversions.from_hf(source, tmp_path / "model")
    grids = open_model(tmp_path / "model").config.model.grids
    assert grids is not None and grids.rounding == "original"
    out = convert_out(tmp_path / "model")
    assert open_model(out).config.model.grids == grids
    written = load(out, name).config
    assert written.mllm_jax_grids == choices
    assert written.image_grid_pinpoints == [list(canvas) for canvas in grids.canvases]
    assert "`several_images: pad`" in (out / "README.md").read_text()


def test_a_folder_of_the_original_code_opens_in_stock_transformers(
    oracle: Path, tmp_path: Path
) -> None:
    """LLaVA-NeXT's, with CLIP's processor: the export has the one that cuts."""
    source = oracle / "llava_next_mlp"
    folder = rewrite(
        source,
        tmp_path / "src",
        lambda t: {ORIGINAL(name): x for name, x in t.items()},
        lambda c: original_config(c, "mlp2x_gelu"),
    )
    (folder / "processor_config.json").unlink()
    conversions.from_hf(folder, tmp_path / "model")
    out = convert_out(tmp_path / "model")
    opened = [open_model(path).config.model for path in (folder, tmp_path / "model", out)]
    assert opened[0] == opened[1] == opened[2]
    same(tensors(out), hub_names(tensors(source)))
    config = load(out, source.name).config
    assert config.image_grid_pinpoints == [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    assert config.mllm_jax_grids["order"] == "wh"


def test_half_precision_survives(oracle: Path, tmp_path: Path) -> None:
    def half(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: x.astype(np.float16) for name, x in tensors.items()}

    source = rewrite(oracle / "llava_linear", tmp_path / "src", half)
    conversions.from_hf(source, tmp_path / "model")
    assert open_model(tmp_path / "model").config.dtype == "float16"
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    same(tensors(tmp_path / "hf"), hub_names(tensors(source)))


def test_export_in_half_precision(oracle: Path, tmp_path: Path) -> None:
    conversions.to_hf(oracle / "llava_bf16", tmp_path / "half", dtype="float16")
    expected = hub_names(tensors(oracle / "llava_bf16"))
    for name, x in tensors(tmp_path / "half").items():
        assert x.tobytes() == expected[name].astype(np.float16).tobytes(), name
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"

    def large(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors["multi_modal_projector.linear_1.bias"][3] = 70_000
        return tensors

    source = rewrite(oracle / "llava_linear", tmp_path / "src", large)
    message = r"float16: connector/linear_1/bias has values above 65504.*export bfloat16 or float32"
    with pytest.raises(ConfigError, match=message):
        conversions.to_hf(source, tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "src"]


def test_stop_tokens_of_the_config_survive(oracle: Path, tmp_path: Path) -> None:
    source = rewrite(
        oracle / "llama", tmp_path / "src", lambda t: t, lambda c: c | {"eos_token_id": [401, 403]}
    )
    (source / "generation_config.json").unlink()
    conversions.from_hf(source, tmp_path / "model")
    conversions.to_hf(tmp_path / "model", tmp_path / "a")
    conversions.to_hf(source, tmp_path / "b")
    for out in (tmp_path / "a", tmp_path / "b"):
        for file in ("config.json", "generation_config.json"):
            assert json.loads((out / file).read_text())["eos_token_id"] == [401, 403]


def test_join_keeps_the_end_tokens_of_the_config(oracle: Path, clip: Path, tmp_path: Path) -> None:
    ends = [401, 403, 405]
    source = rewrite(
        oracle / "llama31", tmp_path / "src", lambda t: t, lambda c: c | {"eos_token_id": ends}
    )
    (source / "generation_config.json").unlink()
    conversions.join(tmp_path / "joined", clip / "vision", source)
    for written in (tmp_path / "joined", convert_out(tmp_path / "joined")):
        found = json.loads((written / "generation_config.json").read_text())
        assert found["eos_token_id"] == ends


def convert_out(model: Path) -> Path:
    out = model.with_name(f"{model.name}_hf")
    conversions.to_hf(model, out)
    return out


def test_unread_fields_survive(
    oracle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(c: dict) -> dict:
        c["text_config"] |= {"attention_dropout": 0.1}
        c["vision_config"] |= {"dropout": 0.2}
        return c | {"new_field": "x"}

    def written(model: Path) -> dict:
        return json.loads((convert_out(model) / "config.json").read_text())

    source = rewrite(oracle / "llava_linear", tmp_path / "src", lambda t: t, config)
    conversions.from_hf(source, tmp_path / "model")
    assert (
        "kept for exports, not used here (3): outer.new_field='x', "
        "text_config.attention_dropout=0.1, vision_config.dropout=0.2\n"
    ) in capsys.readouterr().out
    for model in (tmp_path / "model", source):
        found = written(model)
        assert found["new_field"] == "x"
        assert found["text_config"]["attention_dropout"] == 0.1
        assert found["vision_config"]["dropout"] == 0.2
    conversions.join(tmp_path / "joined", clip / "vision", tmp_path / "model")
    found = written(tmp_path / "joined")
    assert found["text_config"]["attention_dropout"] == 0.1
    assert "dropout" not in found["vision_config"], "of the other tower"


def test_padding_processor_survives(oracle: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    source = rewrite(oracle / "llava_linear", tmp_path / "src", lambda t: t)
    settings = json.loads((source / "processor_config.json").read_text())
    settings["image_processor"] |= {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    (source / "processor_config.json").write_text(json.dumps(settings))
    conversions.from_hf(source, tmp_path / "model")
    assert open_model(tmp_path / "model").image_fit == "pad"
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "hf")
    assert processor.image_processor.do_pad
    assert type(processor.image_processor).__name__.startswith("LlavaImageProcessor")


def test_clip_round_trip(clip: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    conversions.from_hf(clip / "full", tmp_path / "model")
    conversions.to_hf(tmp_path / "model", tmp_path / "hf")
    _, info = transformers.CLIPVisionModel.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    original = tensors(clip / "full")
    for name, x in tensors(tmp_path / "hf").items():
        assert x.tobytes() == original[name].tobytes(), name
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "hf")
    assert list(processor.image_mean) == [0.5, 0.4, 0.3]


def test_shards(exported: Path, tmp_path: Path) -> None:
    conversions.to_hf(exported / "models" / "llava_linear", tmp_path / "hf", shard_bytes=150_000)
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) > 5
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert max(shard.stat().st_size for shard in shards) < 160_000
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in tensors(tmp_path / "hf").values()
    )
    same(tensors(tmp_path / "hf"), tensors(exported / "llava_linear"))
    load(tmp_path / "hf", "llava_linear")


def test_cast_on_export(oracle: Path, exported: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    conversions.to_hf(exported / "models" / "llama", tmp_path / "hf", dtype="bfloat16")
    model = load(tmp_path / "hf", "llama")
    original = load(oracle / "llama", "llama").to(torch.bfloat16).state_dict()
    assert all(torch.equal(x, original[name]) for name, x in model.state_dict().items())
    with pytest.raises(ConfigError, match="dtype='float8'"):
        conversions.to_hf(exported / "models" / "llama", tmp_path / "other", dtype="float8")


def test_hf_to_hf_without_a_stop(oracle: Path, tmp_path: Path) -> None:
    conversions.to_hf(oracle / "llava_linear", tmp_path / "hf")
    same(tensors(tmp_path / "hf"), hub_names(tensors(oracle / "llava_linear")))


def test_an_occupied_folder_is_left_alone(oracle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    for action in (conversions.from_hf, conversions.to_hf):
        with pytest.raises(ConfigError, match="exists and is not empty"):
            action(oracle / "llama", out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]
    (out / "precious").unlink()
    conversions.from_hf(oracle / "llama", out)
    assert (out / "params").is_dir()


def test_a_failed_conversion_leaves_nothing(oracle: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (source / name).write_bytes((oracle / "llama" / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 161}))
    with pytest.raises(ConfigError, match="misshapen 9"):
        conversions.from_hf(source, tmp_path / "out")
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json; save it with transformers"):
        conversions.from_hf(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such folder"):
        conversions.from_hf(tmp_path / "nowhere", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_join(oracle: Path, clip: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    conversions.join(tmp_path / "a", clip / "full", oracle / "llama31", "linear", seed=3)
    opened = open_model(tmp_path / "a")
    model = opened.config.model
    assert model.language is not None
    assert model.vision is not None
    assert model.language.vocab == 448
    assert model.image_token == 406
    assert model.vision.image_mean == (0.5, 0.4, 0.3)
    assert opened.config.base_models == (
        "llama31",
        "full",
    )
    leaves = {p: leaf.read() for p, leaf in opened.leaves(conversions.abstract(model)).items()}
    old = tensors(oracle / "llama31")
    assert np.array_equal(leaves["language/embedding"][:412], old["model.embed_tokens.weight"])
    assert np.array_equal(leaves["language/head/kernel"][:412], old["lm_head.weight"])
    assert leaves["language/embedding"][412:].std() > 0
    assert not np.array_equal(
        leaves["language/embedding"][412:], leaves["language/head/kernel"][412:]
    )
    kernel = leaves["connector/linear_1/kernel"]
    assert kernel.shape == (48, 64)
    assert abs(kernel.std() * np.sqrt(48) - 1) < 0.1
    assert not leaves["connector/linear_1/bias"].any()
    conversions.to_hf(tmp_path / "a", tmp_path / "hf")
    load(tmp_path / "hf", "llava_linear")
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 406


def test_join_is_seeded(oracle: Path, clip: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        conversions.join(
            tmp_path / name, clip / "vision", oracle / "llama32_tied", "mlp", seed=seed
        )
        opened = open_model(tmp_path / name)
        found.append(
            {
                p: leaf.read()
                for p, leaf in opened.leaves(conversions.abstract(opened.config.model)).items()
            }
        )
    same(found[0], found[1])
    changed = {path for path in found[0] if not np.array_equal(found[0][path], found[2][path])}
    assert changed == {
        "connector/linear_1/kernel",
        "connector/linear_2/kernel",
        "language/embedding",
    }


def test_join_adds_the_image_token(oracle: Path, clip: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = tmp_path / "llama"
    source.mkdir()
    for path in (oracle / "llama").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    tree = json.loads((source / "tokenizer.json").read_text())
    tree["added_tokens"] = [
        entry for entry in tree["added_tokens"] if entry["content"] != "<image>"
    ]
    (source / "tokenizer.json").write_text(json.dumps(tree))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"].remove("<image>")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    conversions.join(tmp_path / "joined", clip / "vision", source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "joined")
    assert tokenizer.convert_tokens_to_ids("<image>") == 406
    assert len(tokenizer) == 407
    ids = tokenizer("Zer da <image>?", add_special_tokens=False)["input_ids"]
    assert ids.count(406) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zer da ?"
    opened = open_model(tmp_path / "joined")
    table = opened.leaves(conversions.abstract(opened.config.model))["language/embedding"].read()
    old = tensors(source)["model.embed_tokens.weight"]
    changed = [row for row in range(412) if not np.array_equal(table[row], old[row])]
    assert changed == [406], "the new token's row is drawn although a padding row was there"


def test_join_refuses_the_wrong_folders(oracle: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no vision tower"):
        conversions.join(tmp_path / "x", oracle / "llama", oracle / "llama")
    with pytest.raises(ConfigError, match="has no language model"):
        conversions.join(tmp_path / "x", clip / "full", clip / "vision")
    with pytest.raises(ConfigError, match="connector='cubic'"):
        conversions.join(tmp_path / "x", clip / "full", oracle / "llama", "cubic")
    with pytest.raises(ConfigError, match="new-rows='mine': allowed are transformers and ndino"):
        conversions.join(tmp_path / "x", clip / "full", oracle / "llama", new_rows="mine")
    assert list(tmp_path.iterdir()) == []


def test_join_draws_rows_as_it_is_told(oracle: Path, clip: Path, tmp_path: Path) -> None:
    """412 rows, one for every token of the tokenizer and 5 that were padding before; 448 after."""
    old = tensors(oracle / "llama31")
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    means = [old[name].mean(0, dtype=np.float64) for name in tables]
    found = {}
    for how in ("transformers", "ndino"):
        conversions.join(tmp_path / how, clip / "vision", oracle / "llama31", new_rows=how)
        opened = open_model(tmp_path / how)
        leaves = opened.leaves(conversions.abstract(opened.config.model))
        read = [leaves[f"language/{name}"].read() for name in ("embedding", "head/kernel")]
        assert all(np.array_equal(x[:412], old[name]) for x, name in zip(read, tables, strict=True))
        found[how] = [x[412:] for x in read]
    for (rows, others), mean in zip(zip(*found.values(), strict=True), means, strict=True):
        assert 0 < np.abs(rows - mean).max() < 1e-3
        assert not np.array_equal(rows, others)
    assert np.abs(found["ndino"][0] - means[0]).max() < 0.05
    assert np.abs(found["ndino"][1] - means[0]).max() < 0.05, "of the token table's distribution"


def unread() -> np.ndarray:
    raise AssertionError("only shape and number format are looked at")


PEAK = """
import re, sys
from pathlib import Path
from mllm_jax.conversion import conversions as convert

def peak():  # ru_maxrss would start with the peak of the process that forked this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

convert.from_hf(sys.argv[1], sys.argv[3])
convert.to_hf(sys.argv[3], sys.argv[3] + "_hf")
base = peak()
convert.from_hf(sys.argv[2], sys.argv[4])
peak_in = peak()
convert.to_hf(sys.argv[4], sys.argv[5])
print(base, peak_in, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_is_bounded_by_the_largest_parameter(oracle: Path, tmp_path: Path) -> None:
    """A Llama of 340 MB in shards of 60 MB; its largest stacked parameter has 79 MB."""
    D, F, L = 512, 1200, 32
    config = json.loads((oracle / "llama" / "config.json").read_text())
    config |= {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "head_dim": D // 4}
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_bytes((oracle / "llama" / "tokenizer.json").read_bytes())
    shapes = {
        "model.embed_tokens.weight": (412, D),
        "lm_head.weight": (412, D),
        "model.norm.weight": (D,),
    }
    for i in range(L):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.{name}.weight": (D,)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        shapes |= {
            f"{layer}.self_attn.{name}_proj.weight": (rows, D)
            for name, rows in zip("qkvo", (D, D // 2, D // 2, D), strict=True)
        }
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (D, F)
    random = np.random.default_rng(0)
    leaves = {name: Leaf(shape, np.dtype(np.float32), unread) for name, shape in shapes.items()}
    arrays = ((name, random.standard_normal(shape, np.float32)) for name, shape in shapes.items())
    tensor_files.write_tensors(source, leaves, arrays, shard_bytes=60_000_000)
    outs = [str(tmp_path / name) for name in ("warm", "model", "hf")]
    command = [sys.executable, "-c", PEAK, str(oracle / "llama"), str(source), *outs]
    # glibc keeps freed memory for later; with a fixed threshold it gives large blocks back, so that
    # the peak is what the program holds
    environment = {**os.environ, "XLA_FLAGS": "", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    base, peak_in, peak_out = (int(x) / 1024 for x in result.stdout.split("\n")[-2].split())
    total = sum(4 * np.prod(shape) for shape in shapes.values()) / 2**20
    largest = 4 * L * D * F / 2**20
    allowed = largest + 60_000_000 / 2**20
    assert total > 2 * allowed, "the test could not fail"
    assert peak_in - base < allowed
    assert peak_out - base < allowed


# ----------------------------------------------------------------------------------- chat templates


def without_template(source: Path, out: Path, tokens: dict[str, str] | None = None) -> Path:
    """A backbone as published before anybody taught it to chat."""
    folder = rewrite(source, out, lambda t: t)
    (folder / "chat_template.jinja").unlink()
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in (tokens or {}).items():
        text = text.replace(old, new)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def ends(folder: Path) -> list[str]:
    known, ids = hf_tokenizer.tokens(folder), hf_tokenizer.special_ids(folder)["eos_token_id"]
    ids = ids if isinstance(ids, list) else [ids]
    return [text for text, number in known.items() if number in ids]


@pytest.mark.parametrize(
    ("chosen", "name", "words"),
    [
        (None, "llama31", "chat template: llama31, since {source} has none; --chat-format chooses"),
        ("llama3", "llama3", "chat template: llama3\n"),
        ("plain", "plain", "chat template: plain\n"),
    ],
)
def test_a_backbone_without_a_template_gets_one(
    chosen: str | None,
    name: str,
    words: str,
    oracle: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = without_template(oracle / "llama31", tmp_path / "src")
    conversions.join(tmp_path / "joined", clip / "vision", source, chat_format=chosen)
    assert words.format(source=source) in capsys.readouterr().out
    written = (tmp_path / "joined" / "chat_template.jinja").read_text(encoding="utf-8")
    assert written == TEMPLATES[name]
    end = "<|end_of_text|>" if name == "plain" else "<|eot_id|>"
    assert end in ends(tmp_path / "joined"), "where its answers end, generation stops"


def test_a_backbones_own_template_stays(
    oracle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversions.join(tmp_path / "joined", clip / "vision", oracle / "llama31")
    own = (oracle / "llama31" / "chat_template.jinja").read_text(encoding="utf-8")
    assert (tmp_path / "joined" / "chat_template.jinja").read_text(encoding="utf-8") == own
    assert "chat template" not in capsys.readouterr().out


def test_a_format_whose_tokens_are_not_there(
    oracle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"<|start_header_id|>": "<|im_start|>"}
    source = without_template(oracle / "llama31", tmp_path / "src", other)
    with pytest.raises(ConfigError) as caught:
        conversions.join(tmp_path / "a", clip / "vision", source, chat_format="llama3")
    assert str(caught.value) == (
        f"--chat-format llama3: the tokenizer of {source} has no <|start_header_id|>; its tokens "
        "fit plain"
    )
    assert not (tmp_path / "a").exists()
    other["<|end_of_text|>"] = "<|end|>"
    source = without_template(oracle / "llama31", tmp_path / "none", other)
    conversions.join(tmp_path / "b", clip / "vision", source)
    conversions.to_hf(tmp_path / "b", tmp_path / "hf")
    said = capsys.readouterr().out
    assert (
        f"{source}: no chat template, and no special tokens of llama31, llama3, vicuna_v1, plain"
        in said
    )
    for out in ("b", "hf"):
        assert f"{tmp_path / out}: no chat template, so generate, chat and evaluate" in said


def test_the_command_line_knows_the_formats() -> None:
    assert set(CHAT_FORMATS) == TEMPLATES.keys()
    assert set(PREFERRED) == {*QUESTION_FORMATS, "plain"}
