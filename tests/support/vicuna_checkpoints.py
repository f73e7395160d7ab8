"""Makes reference checkpoints with a SentencePiece vocabulary, as `reference_checkpoints` does.

python -m tests.support.vicuna_checkpoints OUT

OUT/llava_vicuna   as llava-hf/llava-1.5-7b-hf: its chat template, a tokenizer.json of a
                   converted slow tokenizer
OUT/llava_first    the same with a tokenizer.json that transformers 5 converts
OUT/vicuna         as lmsys/vicuna-7b-v1.5: no chat template, tokenizer.model alone
"""

import argparse
import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import LlamaForCausalLM

from tests.support.reference_checkpoints import WIDE, Reference, language, llava, make
from tests.support.vocabulary import IMAGE, LLAVA15, make_tokenizers, write_slow

VOCAB = 32000
QUESTION = "Zenbat itsasontzi daude portuan? 三"


def main() -> None:
    """Makes all of them."""
    parser = argparse.ArgumentParser(description="reference checkpoints with SentencePiece")
    parser.add_argument("out", type=Path, metavar="OUT")
    out = parser.parse_args().out
    for name, reference in REFERENCES.items():
        make(out / name, reference)
    for file in ("tokenizer.json", "chat_template.jinja"):
        (out / "vicuna" / file).unlink()
    write_slow(out / "vicuna")


@functools.cache
def tokenizers() -> dict[str, Any]:
    """One for each kind, with the chat template."""
    with TemporaryDirectory() as folder:
        made: dict[str, Any] = dict(make_tokenizers(Path(folder)))
    for tokenizer in made.values():
        tokenizer.chat_template, tokenizer.image_token = LLAVA15, "<image>"
    return made


def vicuna(tokenizer: Any) -> LlamaForCausalLM:
    """A Llama with a row for each piece."""
    config = language(tokenizer, llama3_rope=False, tied=False)
    config.vocab_size = VOCAB
    return LlamaForCausalLM(config)


assert IMAGE == VOCAB
REFERENCES = {
    "llava_vicuna": Reference(
        1, QUESTION, llava, (WIDE,), tokenizer=lambda: tokenizers()["normalizer"]
    ),
    "llava_first": Reference(1, QUESTION, llava, (WIDE,), tokenizer=lambda: tokenizers()["first"]),
    "vicuna": Reference(1, QUESTION, vicuna, tokenizer=lambda: tokenizers()["first"]),
}


if __name__ == "__main__":
    main()
