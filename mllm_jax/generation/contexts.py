"""Tokenises a text with its continuation as one text, for log-likelihoods without a chat template.

context     "Hiriburua Gasteiz "     continuation     "da."
tokens      <bos> Hiri buru a ▁Gasteiz ▁da .
weights       0    0    0   0    0      1  1
"""

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mllm_jax.batch import TEXT
from mllm_jax.common.errors import require
from mllm_jax.data.chat.tokens import Encoded


class Contexts:
    """A tokenizer as a function from a context and its continuation to tokens.

    Special tokens in the texts are read as such: a context may be a rendered conversation.
    """

    def __init__(self, tokenizer: Any):
        """Copies the tokenizer, whose post-processor may move the borders of tokens.

        Args:
            tokenizer: as `load_tokenizer` gives it; not changed.
        """
        tree = json.loads(tokenizer.backend_tokenizer.to_str())
        tree.update(post_processor=None, truncation=None, padding=None)
        self._tokenizer, self._bos = Tokenizer.from_str(json.dumps(tree)), tokenizer.bos_token_id

    def encode(self, context: str, continuation: str, prefix: str = "") -> Encoded:
        """Exactly one beginning token, then the whole text; the weights are the continuation's.

        White space at the end of the context counts as the continuation's. So does a token that
        has characters of both: nothing of the continuation is left out. Errors begin with `prefix`.

        Raises:
            ConfigError: the continuation has no tokens.
        """
        encoded = self._encode(context + continuation, len(context.rstrip()))
        require(
            bool(encoded.weights.any()),
            f"{prefix}the continuation is empty; there is nothing to score",
        )
        return encoded

    def prompt(self, text: str) -> Encoded:
        """Exactly one beginning token, then the text, with no weights: a prompt to be continued."""
        return self._encode(text, len(text))

    def _encode(self, text: str, border: int) -> Encoded:
        """The weights are those of tokens that end behind the border."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        tokens, ends = encoding.ids, [right for _, right in encoding.offsets]
        weights = [end > border for end in ends]
        if tokens[:1] != [self._bos]:
            tokens, weights = [self._bos, *tokens], [False, *weights]
        weights[0] = False  # nothing is before it
        return Encoded(
            np.array(tokens, np.int32),
            np.array(weights, np.float32),
            np.full(len(tokens), TEXT, np.int32),
        )
