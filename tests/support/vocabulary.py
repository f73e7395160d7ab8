"""A published SentencePiece vocabulary for tests, and Llama-2-style tokenizers made of it.

32,000 pieces with byte fallback, of the kind that Llama 2, Vicuna and Mistral have: the file
`tokenizer.model.v1` of the package mistral-common. `prepare test` (launch/environment.sh) puts that
package beside the environment's own: transformers fails to start where it can import it without all
of its requirements.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

FILE = Path(sys.prefix, "share/vocabulary/mistral_common/data/tokenizer.model.v1")
IMAGE = 32000  # the id that `<image>` gets
# What `tokenizer_config.json` of lmsys/vicuna-7b-v1.5 says
CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "model_max_length": 4096,
    "pad_token": "<unk>",
    "padding_side": "right",
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}
# Where the space before the first word comes from: tokenizer.json of converted slow tokenizers
# (llava-hf/llava-1.5-7b-hf, before transformers 4.40) has a normalizer, newer ones Metaspace.
KINDS = ("first", "always", "normalizer")
# chat_template.json of llava-hf/llava-1.5-7b-hf: typed parts only, an answer ends by a space
LLAVA15 = """\
{% for message in messages %}{% if message['role'] != 'system' %}\
{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
{{ '<image>\\n' }}{% endfor %}{# Render all text next #}\
{% if message['role'] != 'assistant' %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ content['text'] + ' '}}{% endfor %}{% else %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def model_file() -> Path:
    """The vocabulary; a test fails without it."""
    if not FILE.is_file():
        pytest.fail(
            f"{FILE} does not exist; run `bash launch/test.sh` once, or its line for the vocabulary"
            " in launch/environment.sh"
        )
    return FILE


def write_slow(folder: Path) -> Path:
    """A tokenizer folder as lmsys/vicuna-7b-v1.5 is published: without tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model_file().read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def make_tokenizers(folder: Path) -> dict[str, PreTrainedTokenizerFast]:
    """A tokenizer of each of KINDS, with `<image>`; `folder` is for a copy of the vocabulary."""
    slow = LlamaTokenizer.from_pretrained(str(write_slow(folder)))
    tree = json.loads(slow.backend_tokenizer.to_str())
    return {kind: _fast(tree, kind) for kind in KINDS}


def _fast(tree: dict[str, Any], kind: str) -> PreTrainedTokenizerFast:
    if kind == "normalizer":
        tree = tree | {"normalizer": _NORMALIZER, "pre_tokenizer": None}
    else:
        tree = tree | {"pre_tokenizer": tree["pre_tokenizer"] | {"prepend_scheme": kind}}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE
    return tokenizer
