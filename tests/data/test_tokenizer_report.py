"""How a tokenizer splits languages: counted by hand, and Llama 3's published tokenizer."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mllm_jax.data.tokenizer_report import (
    Parallel,
    Row,
    TextCounts,
    count_text,
    count_tokens,
    pair,
    table,
)
from tests.support.tiktoken_file import bytes_to_text, convert_tiktoken


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, `ba`, `bat`, and a special token that no count has."""
    vocab = {text: byte for byte, text in bytes_to_text().items()} | {"ba": 256, "bat": 257}
    bpe = Tokenizer(models.BPE(vocab, [("b", "a"), ("ba", "t")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def test_counted_by_hand(tokenizer: PreTrainedTokenizerFast):
    texts = ["Katu bat.", "bat  bat", "<s>"]
    tokens = count_tokens(tokenizer, texts)
    # K a t u _ bat .   bat _ _ bat   < s >
    assert tokens == [7, 4, 3]
    counts = count_text(texts, tokens)
    assert counts == TextCounts(tokens=14, word_count=5, characters=20)
    assert counts.tokens_per_word("eu") == 14 / 5 and counts.tokens_per_character == 14 / 20
    assert count_text(["é 人"], count_tokens(tokenizer, ["é 人"])) == TextCounts(6, 2, 3)


def test_the_premium_is_a_ratio_of_sums_over_texts_that_both_have():
    parallel = pair({"a": 8, "b": 2, "c": 100}, {"a": 4, "b": 3, "d": 50})
    assert parallel == Parallel(tokens=10, english=7, texts=2)
    assert parallel.premium == 10 / 7
    assert pair({"a": 8}, {}).premium is None


def test_the_table():
    rows = [
        Row("s", "eu", TextCounts(25, 10, 60), Parallel(20, 12, 3)),
        Row("s", "en", TextCounts(12, 10, 50), None),
        Row("t", "zh-Hant", TextCounts(9, 1, 6), Parallel(0, 0, 0)),
        Row("u", "it", TextCounts(0, 0, 0), Parallel(0, 0, 0)),
    ]
    lines = table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "text", "language", "words", "tokens per word", "tokens per character",
        "premium over English", "parallel texts",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:5]]
    assert cells == [
        ["s", "eu", "10", "2.50", "0.42", "1.67", "3"],
        ["s", "en", "10", "1.20", "0.24", "", ""],
        ["t", "zh-Hant", "", "", "1.50", "", ""],
    ]
    assert lines[5:] == ["zh-Hant: written without spaces, so tokens are per character only"]


def test_why_there_is_no_premium():
    eu = Row("s", "eu", TextCounts(25, 10, 60), Parallel(0, 0, 0))
    assert "no premium over English: there is no English text" in table([eu])
    en = Row("s", "en", TextCounts(12, 10, 50), None)
    assert "no premium over English: no text is there in English too" in table([eu, en])
    assert "no premium" not in table([en])
    assert table([]) == table([eu._replace(counts=TextCounts(0, 0, 0))])


@pytest.mark.realdata
def test_llama_3_on_tatoeba(shared: Path):
    """1,000 sentences in each language and their English translations."""
    llama3 = convert_tiktoken(shared / "realdata/tokenizer/tokenizer_llama3.tiktoken")
    fertility, premiums = {}, {}
    for code in ("eus", "ita", "glg", "cat", "spa", "fra"):
        files = [shared / f"realdata/text_tatoeba/tatoeba.{code}-eng.{x}" for x in (code, "eng")]
        texts, english = (file.read_text(encoding="utf-8").splitlines() for file in files)
        tokens, english_tokens = count_tokens(llama3, texts), count_tokens(llama3, english)
        fertility[code] = count_text(texts, tokens).tokens_per_word(code)
        premiums[code] = pair(dict(enumerate(tokens)), dict(enumerate(english_tokens))).premium
        if code == "eus":
            fertility["eng"] = count_text(english, english_tokens).tokens_per_word("en")
    measured = {"eus": 2.560, "cat": 1.801, "glg": 1.831, "ita": 1.795, "spa": 1.629, "fra": 1.620}
    assert fertility == pytest.approx(measured | {"eng": 1.262}, abs=0.0005)
    measured = {"eus": 1.674, "cat": 1.446, "glg": 1.372, "ita": 1.355, "spa": 1.266, "fra": 1.445}
    assert premiums == pytest.approx(measured, abs=0.0005)
