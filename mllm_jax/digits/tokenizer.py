"""A small tokenizer in the manner of Llama 3, learnt from texts: byte-level pairs, the same control
tokens.

Any text can be written with it (every byte is a token); words of the texts it learnt from are
mostly one token.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mllm_jax.common.errors import require

BOS, EOT, PAD, IMAGE = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "<image>"
# in the order of their ids, after all other tokens, as in Llama 3; <image> takes the last row of
# the table
CONTROL = (BOS, "<|end_of_text|>", PAD, "<|start_header_id|>", "<|end_header_id|>", EOT, IMAGE)
# Llama 3's pattern, but every digit alone, so that figures are read one by one
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what chat templates write between control tokens
HEADERS = ("user", "assistant", "system", "\n\n", "\n\n")


def make_tokenizer(texts: Iterable[str], folder: Path, template: str, vocab: int) -> None:
    """Learns a tokenizer and writes tokenizer.json, tokenizer_config.json, chat_template.jinja,
    generation_config.json.

    Args:
        texts: to learn from.
        folder: made when missing.
        template: the Jinja chat template of the folder.
        vocab: number of tokens, control tokens included; exactly so many rows has the model's
            table.

    Raises:
        ConfigError: the texts hold too few different words for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=vocab - len(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [text.replace(IMAGE, "") for text in texts]
    tokenizer.train_from_iterator([*lines, *HEADERS * (1 + len(lines) // 10)], learner)
    learnt = tokenizer.get_vocab_size()
    require(
        learnt == vocab - len(CONTROL),
        f"vocab={vocab}: the texts give only {learnt + len(CONTROL)} tokens",
    )
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    _write(tokenizer, folder, template)


def _write(tokenizer: Tokenizer, folder: Path, template: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "pad_token": PAD,
        "extra_special_tokens": {"image_token": IMAGE},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    ids = {token: tokenizer.token_to_id(token) for token in CONTROL}
    generation = {
        "bos_token_id": ids[BOS],
        "eos_token_id": [ids[EOT], ids["<|end_of_text|>"]],
        "pad_token_id": ids[PAD],
        "do_sample": False,
    }
    for file, tree in (("tokenizer_config.json", config), ("generation_config.json", generation)):
        (folder / file).write_text(
            json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
