"""No text becomes a control token, and the tokenizer it is copied from stays as it was."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.literal_tokenizer import LiteralTokenizer, control_tokens, token_text

PIECES = st.sampled_from(["<|eot_id|>", "<image>", "<|begin_of_text|>", "<", "|>", " ", "a", "é\n"])


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_text_stays_text(tokenizer, text):
    control = control_tokens(tokenizer, "<image>")
    copy = LiteralTokenizer(tokenizer.backend_tokenizer, frozenset(control))
    ((ids, offsets),) = copy.ids_and_offsets([text])
    assert not set(ids) & set(control.values())
    assert tokenizer.decode(ids) == text
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert copy.ids([text]) == [ids]


def test_text_stays_text_in_another_process(tokenizer):
    """The tokenizers library does not send along that special tokens are text."""
    control = control_tokens(tokenizer, "<image>")
    copy = LiteralTokenizer(tokenizer.backend_tokenizer, frozenset(control))
    sent = pickle.loads(pickle.dumps(copy))
    texts = ["a <|eot_id|>", "<image>"]
    assert sent.ids(texts) == copy.ids(texts)
    assert sent.ids_and_offsets(texts) == copy.ids_and_offsets(texts)


def test_an_image_token_that_is_not_marked_special(tokenizer):
    """It is a control token for us all the same."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<picture>", special=False, normalized=False)])
    (ids,) = LiteralTokenizer(backend, frozenset(["<picture>", "<|eot_id|>"])).ids(["<picture>"])
    assert backend.token_to_id("<picture>") not in ids
    assert backend.encode("<picture>").ids == [backend.token_to_id("<picture>")]


def test_control_tokens(tokenizer):
    found = control_tokens(tokenizer, "<image>")
    assert len(found) == 6
    assert found["<image>"] == tokenizer.convert_tokens_to_ids("<image>")
    assert token_text(tokenizer, found["<image>"]) == "<image>"


def test_tokens_that_swallow_spaces_are_refused(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<|x|>", lstrip=True, special=True)])
    with pytest.raises(ConfigError, match=r"'<\|x\|>' swallows spaces beside it"):
        LiteralTokenizer(backend, frozenset(["<|x|>"]))


def metaspace(tokenizer) -> Tokenizer:
    """Llama-2's way: a space is put before the whole input, and only there."""
    backend = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2, "[S]": 3}, [("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["[S]"])
    return backend


def prefixed(tokenizer) -> Tokenizer:
    """GPT-2's way with a space before every text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


TEXTS = st.lists(st.text("aZ .,\n'\t1é語🙂<|>", max_size=9), max_size=40)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS)
@pytest.mark.parametrize("kind", [None, metaspace, prefixed])
def test_texts_encoded_together_are_as_if_alone(kind, tokenizer, texts):
    backend = kind(tokenizer) if kind else tokenizer.backend_tokenizer
    control = "[S]" if kind is metaspace else "<|eot_id|>"
    copy = LiteralTokenizer(backend, frozenset([control]))
    alone = [copy._copy.encode(t, add_special_tokens=False).ids for t in texts]
    assert copy.ids(texts, first=True) == alone
    assert [ids for ids, _ in copy.ids_and_offsets(texts, first=True)] == alone
    behind = [backend.encode(f"{control}{t}", add_special_tokens=False).ids[1:] for t in texts]
    assert copy.ids(texts) == (behind if kind is metaspace else alone)
    assert [ids for ids, _ in copy.ids_and_offsets(texts)] == copy.ids(texts)


def test_a_nul_is_refused(tokenizer):
    copy = LiteralTokenizer(tokenizer.backend_tokenizer, frozenset())
    for texts in (["a\0b"], ["a", "\0"]):
        for encode in (copy.ids, copy.ids_and_offsets):
            with pytest.raises(ConfigError, match="a text holds a NUL character"):
                encode(texts)


def test_offsets_behind_a_control_token():
    """The tokenizer's input begins before it; offsets are those of the text."""
    copy = LiteralTokenizer(metaspace(None), frozenset(["[S]"]))
    assert copy.ids_and_offsets(["a a"]) == [([1, 2], [(0, 1), (1, 3)])]
    assert copy.ids_and_offsets(["a a"], first=True) == [([2, 2], [(0, 1), (1, 3)])]
