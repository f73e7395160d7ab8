"""What a token stands for: bytes that are no character stay, and nothing is lost on the way."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mllm_jax.data.chat.token_text import TokenTexts

TEXTS = [
    "Zer ikusten da irudian?\n\n\tÑandú bat — 5 €.",
    "🐈‍⬛ eta \u202eatzera\u200b",
    "".join(map(chr, range(1, 256))),
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_together_are_the_text(tokenizer: PreTrainedTokenizerFast, text: str):
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    data = "".join(texts[token] for token in ids).encode("utf-8", "surrogateescape")
    assert data.decode("utf-8") == text


def test_every_byte_has_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast):
    texts = TokenTexts(tokenizer)
    found = {texts[token].encode("utf-8", "surrogateescape") for token in range(len(tokenizer))}
    assert found >= {bytes([byte]) for byte in range(256)}


def test_control_tokens_are_themselves(tokenizer: PreTrainedTokenizerFast, image_token: int):
    texts = TokenTexts(tokenizer)
    assert texts[image_token] == "<image>"
    assert texts.is_control(image_token)
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    assert texts[end] == "<|eot_id|>"
    assert texts.is_control(end)
    assert not texts.is_control(tokenizer.encode("Zer", add_special_tokens=False)[0])


def test_an_id_behind_the_vocabulary_is_its_number(tokenizer: PreTrainedTokenizerFast):
    assert TokenTexts(tokenizer)[400] == "[400]"


def test_sentencepiece_marks_spaces_and_bytes():
    words = {"▁katu": 0, "a": 1, "<0xF0>": 2, "<s>": 3}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    pieces = list(words)
    fake = SimpleNamespace(
        added_tokens_decoder={3: SimpleNamespace(content="<s>")},
        backend_tokenizer=backend,
        convert_ids_to_tokens=lambda token: pieces[token],
    )
    texts = TokenTexts(fake)
    assert [texts[token] for token in range(4)] == [" katu", "a", "\udcf0", "<s>"]
