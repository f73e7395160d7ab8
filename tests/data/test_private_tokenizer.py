"""No text becomes a control token, and the tokenizer it is copied from stays as it was."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from mllm_jax.data.private_tokenizer import LiteralTokenizer, control_tokens, token_text
from mllm_jax.errors import ConfigError

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
