"""Bad Hugging Face folders: config, tensors, tokenizer, processor; bad model and run folders."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import torch_files
from tests.support.workplace import Case, Change, append, cut_file, in_json, remove, write

FROM = ["convert", "from-hf", "hf", "out"]
ASK = ["generate", "hf", "--prompt", "gorria?", "--max-new-tokens", "2"]
ASK_MODEL = ["generate", "model", "--prompt", "gorria?", "--max-new-tokens", "2"]
JOIN = ["convert", "join", "out", "--vision", "clip", "--language", "llama"]
TRAINED = [*JOIN, "--connector-weights", "mm_projector.bin"]
ASK_RUN = ["generate", "run", "--prompt", "gorria?", "--max-new-tokens", "2"]
CONFIG = "hf/config.json"
DEEP = "[" * 100_000

# (key of config.json, value)
FIELDS: list[tuple[str, Any]] = [
    ("model_type", 7),
    ("model_type", "qwen2_vl"),
    ("image_token_index", "three"),
    ("image_token_index", 10**9),
    ("image_token_index", -1),
    ("vision_feature_layer", "last"),
    ("vision_feature_layer", 99),
    ("vision_feature_layer", [-2, -3]),
    ("vision_feature_select_strategy", "all"),
    ("vision_feature_select_strategy", "full"),  # would keep the class token of CLIP
    ("projector_hidden_act", "swish"),
    ("projector_hidden_act", 7),
    ("multimodal_projector_bias", "yes"),
    ("tie_word_embeddings", "no"),
    ("text_config", []),
    ("text_config.model_type", "mistral"),
    ("text_config.vocab_size", 7),
    ("text_config.vocab_size", 10**12),
    ("text_config.vocab_size", -1),
    ("text_config.hidden_size", "wide"),
    ("text_config.hidden_size", 0),
    ("text_config.hidden_size", 1.5),
    ("text_config.intermediate_size", 7),
    ("text_config.num_hidden_layers", 10**7),
    ("text_config.num_hidden_layers", 0),
    ("text_config.num_hidden_layers", 3),
    ("text_config.num_attention_heads", 0),
    ("text_config.num_attention_heads", 3),
    ("text_config.num_key_value_heads", 0),
    ("text_config.num_key_value_heads", True),
    ("text_config.head_dim", 7),
    ("text_config.head_dim", 0),
    ("text_config.hidden_act", "relu"),
    ("text_config.hidden_act", ["silu"]),
    ("text_config.rms_norm_eps", float("nan")),
    ("text_config.rms_norm_eps", -1),
    ("text_config.rms_norm_eps", "small"),
    ("text_config.attention_bias", True),
    ("text_config.mlp_bias", 1),
    ("text_config.max_position_embeddings", 0),
    ("text_config.max_position_embeddings", "long"),
    ("text_config.rope_parameters", [1]),
    ("text_config.rope_parameters.rope_theta", -1.0),
    ("text_config.rope_parameters.rope_theta", "big"),
    ("text_config.rope_parameters.rope_type", "yarn"),
    ("text_config.rope_parameters.rope_type", 3),
    ("text_config.rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
    ("text_config.rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("text_config.partial_rotary_factor", 0.5),
    ("vision_config", 3),
    ("vision_config.model_type", "siglip2_vision_model"),
    ("vision_config.hidden_size", None.__class__.__name__),
    ("vision_config.image_size", [16, 16, 16]),
    ("vision_config.image_size", 17),
    ("vision_config.image_size", 0),
    ("vision_config.patch_size", 0),
    ("vision_config.patch_size", "8"),
    ("vision_config.num_hidden_layers", 10**7),
    ("vision_config.num_attention_heads", 3),
    ("vision_config.hidden_act", "tanh"),
    ("vision_config.num_channels", 4),
    ("vision_config.layer_norm_eps", float("inf")),
    ("vision_config.projection_dim", -3),
]


def header(change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> Change:
    """Rewrites the JSON header of hf/NAME; the bytes after it stay."""

    def edit(place: Path) -> None:
        path = place / "hf" / name
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        tree = json.loads(data[8 : 8 + length])
        text = change(tree)
        text = json.dumps(tree) if text is None else text
        raw = text.encode() if isinstance(text, str) else text
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    return edit


def first(tree: dict[str, Any]) -> dict[str, Any]:
    """An entry of a header."""
    return tree[next(name for name in tree if name != "__metadata__")]


def entry(**fields: Any) -> Change:
    """Sets fields of one tensor's entry."""
    return header(lambda tree: first(tree).update(fields))


def without(field: str) -> Change:
    """Removes a field of one tensor's entry."""

    def change(tree: dict[str, Any]) -> None:
        del first(tree)[field]

    return header(change)


def twice(tree: dict[str, Any]) -> str:
    name = next(name for name in tree if name != "__metadata__")
    doubled = json.dumps({name: tree[name]})[1:-1]
    return json.dumps(tree)[:-1] + ", " + doubled + "}"


def index(weight_map: Any) -> Change:
    """An index over the one shard; None as a value of `weight_map` stands for its name."""

    def edit(place: Path) -> None:
        path = place / "hf" / "model.safetensors"
        names = list(
            json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
        )
        shard = "model-00001-of-00001.safetensors"
        path.rename(path.with_name(shard))
        full = {name: shard for name in names if name != "__metadata__"}
        tree = weight_map(full) if callable(weight_map) else weight_map
        path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": tree}))

    return edit


def in_torch_file(instructions: bytes) -> Change:
    """Puts a pytorch_model.bin whose pickle has these instructions in place of safetensors."""

    def edit(place: Path) -> None:
        (place / "hf/model.safetensors").unlink()
        path = place / "hf/pytorch_model.bin"
        torch_files.write_file(
            path, torch_files.PROTO + instructions + torch_files.STOP, {"0": bytes(24)}
        )

    return edit


TENSORS: dict[str, tuple[Change, str]] = {
    "no tensors": (remove("hf/model.safetensors"), "safetensors"),
    "an empty file": (write("hf/model.safetensors", b""), "model.safetensors"),
    "seven bytes": (write("hf/model.safetensors", b"1234567"), "model.safetensors"),
    "a header of 2^63 bytes": (write("hf/model.safetensors", b"\xff" * 64), "model.safetensors"),
    "a header that is cut": (cut_file("hf/model.safetensors", 100), "model.safetensors"),
    "tensors that are cut": (cut_file("hf/model.safetensors", -10), "model.safetensors"),
    "bytes behind the end": (
        append("hf/model.safetensors", b"more"),
        "model.safetensors",
    ),
    "a header that is not JSON": (header(lambda tree: "{a}"), "model.safetensors"),
    "a header that is a list": (header(lambda tree: "[]"), "model.safetensors"),
    "a header nested deeply": (header(lambda tree: '{"a":' + DEEP), "model.safetensors"),
    "a header in Latin-1": (header(lambda tree: b'{"a\xf1": 1}'), "model.safetensors"),
    "an empty header": (header(lambda tree: tree.clear()), "model.safetensors"),
    "metadata that is a list": (header(lambda tree: tree.update(__metadata__=[])), "model.safe"),
    "metadata of numbers": (header(lambda tree: tree.update(__metadata__={"a": 1})), "model.safe"),
    "a tensor twice": (header(twice), "model.safetensors"),
    "a tensor that is a number": (header(lambda t: t.update({next(iter(t)): 7})), "model.safe"),
    "no dtype": (without("dtype"), "model.safetensors"),
    "no shape": (without("shape"), "model.safetensors"),
    "no offsets": (without("data_offsets"), "model.safetensors"),
    "an unknown dtype": (entry(dtype="F7"), "model.safetensors"),
    "a dtype of another type": (entry(dtype=7), "model.safetensors"),
    "a shape of fractions": (entry(shape=[1.5, 2]), "model.safetensors"),
    "a negative shape": (entry(shape=[-1]), "model.safetensors"),
    "a shape of 2^70": (entry(shape=[2**70]), "model.safetensors"),
    "a shape of text": (entry(shape="16"), "model.safetensors"),
    "negative offsets": (entry(data_offsets=[-64, 0]), "model.safetensors"),
    "offsets turned round": (entry(data_offsets=[64, 0]), "model.safetensors"),
    "one offset": (entry(data_offsets=[0]), "model.safetensors"),
    "offsets beyond the end": (entry(data_offsets=[2**40, 2**40 + 64]), "model.safetensors"),
    "offsets of text": (entry(data_offsets=["0", "64"]), "model.safetensors"),
    "an index beside the file": (
        write("hf/model.safetensors.index.json", '{"weight_map": {"a": "b"}}'),
        "model.safetensors.index.json",
    ),
    "an index of nothing": (index({}), "index.json"),
    "an index that is a list": (index([]), "index.json"),
    "an index of numbers": (index(lambda full: dict.fromkeys(full, 7)), "index.json"),
    "an index that leaves the folder": (
        index(lambda full: dict.fromkeys(full, "../clip/model.safetensors")),
        "../clip",
    ),
    "an index with an absolute path": (
        index(lambda full: dict.fromkeys(full, "/etc/passwd")),
        "/etc/passwd",
    ),
    "an index of shards that are not there": (
        index(lambda full: dict.fromkeys(full, "other.safetensors")),
        "index.json",
    ),
    "an index that lacks a tensor": (
        index(lambda full: dict(list(full.items())[1:])),
        "index.json",
    ),
    "an index with a tensor too many": (
        index(lambda full: full | {"more": next(iter(full.values()))}),
        "more",
    ),
    "safetensors that are called a pickle": (
        lambda place: (place / "hf/model.safetensors").rename(place / "hf/pytorch_model.bin"),
        "not a file of torch.save",
    ),
    "a pickle that runs a program": (
        in_torch_file(torch_files.call(torch_files.name("posix", "system"), "touch out")),
        "data.pkl: asks for 'posix.system'",
    ),
    "a pickle that evaluates": (
        in_torch_file(torch_files.call(torch_files.name("builtins", "eval"), "open('out', 'w')")),
        "'builtins.eval'",
    ),
    "a pickle of other tensors": (
        in_torch_file(torch_files.state_dict(a=torch_files.tensor())),
        "missing",
    ),
    "a pickle of a dict of state dicts": (
        in_torch_file(torch_files.value({"model": {}})),
        "'model' is a dict, not a tensor",
    ),
    "a pickle of tensors past the end": (
        in_torch_file(torch_files.state_dict(a=torch_files.tensor(offset=2**40))),
        "leaves its storage of 6 numbers",
    ),
    "a pickle of a pointer": (
        lambda place: (
            (place / "hf/model.safetensors").unlink(),
            (place / "hf/pytorch_model.bin").write_text("version https://git-lfs.github.com/"),
        ),
        "git lfs pull",
    ),
    "shards of pickles without an index": (
        lambda place: (place / "hf/model.safetensors").rename(
            place / "hf/pytorch_model-00001-of-00002.bin"
        ),
        "pytorch_model.bin.index.json",
    ),
}

ENDS_A_RUN = ("a run with damage",)  # exit code 1


def connector(instructions: bytes) -> Change:
    """An mm_projector.bin whose pickle has these instructions."""

    def edit(place: Path) -> None:
        pickle = torch_files.PROTO + instructions + torch_files.STOP
        torch_files.write_file(place / "mm_projector.bin", pickle, {"0": bytes(24)})

    return edit


FILES: dict[str, tuple[list[str], Change, str]] = {
    "new rows of nobody": ([*JOIN, "--new-rows", "mine"], lambda place: None, "--new-rows"),
    "two connectors": ([*TRAINED, "--connector", "mlp"], lambda place: None, "not allowed with"),
    "a connector that is not there": (
        TRAINED,
        lambda place: None,
        "mm_projector.bin: no such file",
    ),
    "a connector that runs a program": (
        TRAINED,
        connector(torch_files.call(torch_files.name("posix", "system"), "touch out")),
        "'posix.system'",
    ),
    "a connector of another width": (
        TRAINED,
        connector(torch_files.value({"model.mm_projector.weight": torch_files.tensor()})),
        "linear_1.weight is [2, 3]",
    ),
    "a connector that is a language model": (
        TRAINED,
        connector(torch_files.value({"model.norm.weight": torch_files.tensor()})),
        "'model.norm.weight' is not of a connector",
    ),
    "no config": (FROM, remove(CONFIG), "config.json"),
    "config cut short": (FROM, cut_file(CONFIG, 50), "config.json"),
    "config that is a list": (FROM, write(CONFIG, "[]"), "config.json"),
    "config nested deeply": (FROM, write(CONFIG, DEEP), "config.json"),
    "config with a key twice": (FROM, write(CONFIG, '{"a": 1, "a": 2}'), "config.json"),
    "config in UTF-16": (FROM, write(CONFIG, "{}".encode("utf-16")), "config.json"),
    "config with a huge number": (FROM, write(CONFIG, '{"a": ' + "9" * 5000 + "}"), "config.json"),
    "config that is a folder": (
        FROM,
        lambda place: ((place / CONFIG).unlink(), (place / CONFIG).mkdir()),
        "hf",
    ),
    "no tokenizer": (ASK, remove("hf/tokenizer.json"), "tokenizer.json"),
    "tokenizer cut short": (ASK, cut_file("hf/tokenizer.json", 500), "tokenizer.json"),
    "tokenizer that is a list": (ASK, write("hf/tokenizer.json", "[]"), "tokenizer.json"),
    "tokenizer without a model": (
        ASK,
        lambda place: (place / "hf/tokenizer.json").write_text(
            json.dumps(
                {
                    k: v
                    for k, v in json.loads((place / "hf/tokenizer.json").read_text()).items()
                    if k != "model"
                }
            )
        ),
        "tokenizer.json",
    ),
    "tokenizer of another model": (
        ASK,
        in_json("hf/tokenizer.json", "model.type", "Magic"),
        "tokenizer",
    ),
    "tokenizer with a vocabulary of text": (
        ASK,
        in_json("hf/tokenizer.json", "model.vocab", {"a": "b"}),
        "tokenizer.json",
    ),
    "tokenizer config that is a list": (
        ASK,
        write("hf/tokenizer_config.json", "[]"),
        "tokenizer_config.json",
    ),
    "end token that is a number": (
        ASK,
        in_json("hf/tokenizer_config.json", "eos_token", 7),
        "eos_token",
    ),
    "end token that no vocabulary has": (
        ASK,
        in_json("hf/generation_config.json", "eos_token_id", 10**9),
        "eos_token_id",
    ),
    "end token that is text": (
        ASK,
        in_json("hf/generation_config.json", "eos_token_id", "end"),
        "eos_token_id",
    ),
    "end tokens that are nested": (
        ASK,
        in_json("hf/generation_config.json", "eos_token_id", [[1]]),
        "eos_token_id",
    ),
    "generation config that is a list": (
        ASK,
        write("hf/generation_config.json", "[]"),
        "generation_config.json",
    ),
    "template that is broken": (ASK, write("hf/chat_template.jinja", "{% for %}"), "templ"),
    "template that loops": (
        ASK,
        write(
            "hf/chat_template.jinja",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x",
        ),
        "template",
    ),
    "template that reaches out": (
        ASK,
        write("hf/chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "template",
    ),
    "template that multiplies": (
        ASK,
        write("hf/chat_template.jinja", "{{ 'a' * 10**10 }}"),
        "template",
    ),
    "template that takes a power": (
        ASK,
        write("hf/chat_template.jinja", "{{ 9 ** 9 ** 9 }}"),
        "template",
    ),
    "template that raises": (
        ASK,
        write("hf/chat_template.jinja", "{{ raise_exception('never') }}"),
        "never",
    ),
    "template that divides by zero": (ASK, write("hf/chat_template.jinja", "{{ 1 / 0 }}"), "templ"),
    "template that calls itself": (
        ASK,
        write("hf/chat_template.jinja", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        "template",
    ),
    "template not in UTF-8": (ASK, write("hf/chat_template.jinja", b"\xff\xfe"), "hf"),
    "processor that is a list": (
        FROM,
        write("hf/preprocessor_config.json", "[]"),
        "preprocessor_config.json",
    ),
    "processor of a text size": (
        FROM,
        in_json("hf/preprocessor_config.json", "size", "big"),
        "size",
    ),
    "SigLIP whose first patch would be left out as a class token": (
        FROM,
        in_json(CONFIG, "vision_config.model_type", "siglip_vision_model"),
        "vision_feature_select_strategy='default'; expected full: SigLIP has no class token",
    ),
    "processor of another size": (
        FROM,
        in_json("hf/preprocessor_config.json", "size", {"shortest_edge": 99}),
        "size",
    ),
    "processor with a mean of text": (
        FROM,
        in_json("hf/preprocessor_config.json", "image_mean", ["a", "b", "c"]),
        "image_mean",
    ),
    "processor with a deviation of zero": (
        FROM,
        in_json("hf/preprocessor_config.json", "image_std", [0, 0, 0]),
        "image_std",
    ),
    "processor that does not rescale": (
        FROM,
        in_json("hf/preprocessor_config.json", "do_rescale", False),
        "do_rescale",
    ),
    "processor of another filter": (
        FROM,
        in_json("hf/preprocessor_config.json", "resample", 99),
        "resample",
    ),
    "a model without config": (ASK_MODEL, remove("model/config.yaml"), "model"),
    "a model with a broken config": (ASK_MODEL, write("model/config.yaml", "model: ["), "config.y"),
    "a model with a config of a stage": (
        ASK_MODEL,
        lambda place: (place / "model/config.yaml").write_text((place / "stage.yaml").read_text()),
        "init",
    ),
    "a model without parameters": (
        ASK_MODEL,
        lambda place: shutil.rmtree(place / "model/params"),
        "model",
    ),
    "a model without metadata": (ASK_MODEL, remove("model/params/_METADATA"), "params"),
    "a model with broken metadata": (ASK_MODEL, write("model/params/_METADATA", "{"), "params"),
    "a model with other metadata": (ASK_MODEL, write("model/params/_METADATA", "[]"), "params"),
    "a model without its manifest": (
        ASK_MODEL,
        remove("model/params/manifest.ocdbt"),
        "params",
    ),
    "a model with a broken manifest": (
        ASK_MODEL,
        write("model/params/manifest.ocdbt", b"\0" * 64),
        "params",
    ),
    "a run without checkpoints": (
        ASK_RUN,
        lambda place: shutil.rmtree(place / "run/checkpoints"),
        "run",
    ),
    "a run with damage": (
        ASK_RUN,
        lambda place: [
            path.write_bytes(path.read_bytes()[:-1] + b"\1")
            for path in (place / "run/checkpoints").rglob("*")
            if path.is_file() and path.parent.name == "d"
        ],
        "run",
    ),
}

# what a field disagrees with, where the message names that in its place
NAMED = {
    "vision_feature_layer=99": "feature_layer=99",
    "text_config.vocab_size=7": "vocab",
    "text_config.intermediate_size=7": "mlp",
    "text_config.num_hidden_layers=3": "layers.2",
    "text_config.num_attention_heads=3": "heads=3",
    "vision_config.image_size=17": "17",
    "vision_config.num_attention_heads=3": "heads=3",
}
CASES = []
for key, value in FIELDS:
    name = f"{key}={json.dumps(value):.30}"
    CASES.append(Case(name, FROM, in_json(CONFIG, key, value), NAMED.get(name, key.split(".")[-1])))
CASES += [Case(name, FROM, change, said) for name, (change, said) in TENSORS.items()]
CASES += [
    Case(name, words, change, said, 1 if name in ENDS_A_RUN else 2)
    for name, (words, change, said) in FILES.items()
]
CASES += [
    Case(
        f"join: {name}",
        JOIN,
        change,
        said,
    )
    for name, change, said in [
        ("a tower cut short", cut_file("clip/model.safetensors", -1), "model.safetensors"),
        ("a Llama cut short", cut_file("llama/model.safetensors", -1), "model.safetensors"),
        ("a Llama without a tokenizer", remove("llama/tokenizer.json"), "tokenizer.json"),
        ("a tower of another kind", in_json("clip/config.json", "model_type", "vit"), "model_type"),
        ("a config cut short", cut_file("llama/config.json", 20), "config.json"),
    ]
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refused(case: Case, refuse: Callable[[Case], None]):
    refuse(case)
