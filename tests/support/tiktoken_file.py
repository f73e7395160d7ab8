"""Converts Llama 3's published vocabulary, a file of ranks, to a tokenizer of transformers."""

import base64
import itertools
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that byte-pair encoding joins last to make each token, by rank."""
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            best = min(range(len(found)), key=found.__getitem__)
            if found[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((rank, parts[0], parts[1]))
    return [(a, b) for _, a, b in sorted(merges)]


def convert_tiktoken(path: Path) -> PreTrainedTokenizerFast:
    """Llama-3's rank file as a tokenizers BPE, special tokens behind it as Meta numbers them."""
    lines = path.read_bytes().splitlines()
    ranks = {base64.b64decode(w): int(r) for w, r in (line.split() for line in lines)}
    shown = bytes_to_text()

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    merges = [(text(a), text(b)) for a, b in merges_of(ranks)]
    vocab = {text(token): rank for token, rank in ranks.items()}
    bpe = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    special += [f"<|reserved_special_token_{n}|>" for n in range(4)]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>"]
    special += ["<|eot_id|>", *(f"<|reserved_special_token_{n}|>" for n in range(5, 251))]
    special += ["<image>"]  # 128256
    bpe.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def bytes_to_text() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}
