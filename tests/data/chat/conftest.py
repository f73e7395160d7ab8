"""Llama 3's own tokenizer, where its file is."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.tiktoken_file import convert_tiktoken


@pytest.fixture(scope="session")
def llama3(shared) -> PreTrainedTokenizerFast:
    """With `<image>` as 128256, as in llava-hf/llama3-llava-next-8b-hf."""
    return convert_tiktoken(shared / "realdata/tokenizer/tokenizer_llama3.tiktoken")
