"""Our models as `LM` of lm-evaluation-harness (the extra [lm-eval]).

    simple_evaluate(model=MllmJax("runs/instruct"), tasks=["xstorycloze_eu"])

lm-eval finds models that it does not ship by an import alone, so its command is started from here:

    python -m mllm_jax.evaluation.harness.lm_eval_model run --model mllm_jax \\
        --model_args pretrained=runs/instruct --tasks xstorycloze_eu

Texts are what the harness writes: exactly one beginning token comes before them, and special tokens
in them are read as such, since a rendered conversation is a text too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

from mllm_jax.batch import TEXT
from mllm_jax.common.errors import ConfigError, one_line, quoted
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.evaluation.harness.asking import Asker, Request
from mllm_jax.evaluation.harness.decoding import LIMIT, decoding


@register_model("mllm_jax")
class MllmJax(LM):
    """A model, run or Hugging Face folder; text alone."""

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_gen_toks: int = LIMIT,
        **options: Any,
    ):
        """Opens the folder.

        Args:
            pretrained, batch_size, options: see `Asker`.
            max_batch_size: what lm-eval passes on; it belongs to a batch size of auto.
            device: PyTorch's, which lm-eval passes on always (cuda:0); JAX has its own devices.
            max_gen_toks: tokens of an answer where a task states none.

        Raises:
            ConfigError: see `Asker`.
        """
        super().__init__()
        del device
        if max_batch_size is not None:
            raise ConfigError(f"max_batch_size={quoted(max_batch_size)}: give batch_size instead")
        self._asker = Asker(pretrained, batch_size, **options)
        self._opened, self._limit = self._asker.opened, max_gen_toks

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(natural logarithm of the continuation's probability, whether it is the greedy one)."""
        encoded = [
            self._opened.continued(*request.args, prefix=f"{_name(request)}: ")
            for request in requests
        ]
        found = self._asker.losses(encoded, [()] * len(encoded))
        return [(one.sum, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Logarithms of the probabilities of whole texts, in windows of the model's length."""
        windows = [self._windows(*request.args) for request in requests]
        encoded = [window for each in windows for window in each]
        found = iter(self._asker.losses(encoded, [()] * len(encoded)))
        return [sum(next(found).sum for _ in each) for each in windows]

    def _windows(self, text: str) -> list[Encoded]:
        """As lm-eval cuts texts: every token is scored once, behind as many as there is room for.

        The beginning token is before the first window alone.
        """
        bos, *tokens = self._opened.plain(text).tokens.tolist()
        language = self._opened.config.language
        assert language is not None
        parts = utils.get_rolling_token_windows(tokens, bos, language.max_length, 1)
        return [_window(*utils.make_disjoint_window(part)) for part in parts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, each ended before the first of its stop strings."""
        asked = []
        for request in requests:
            text, arguments = request.args
            how = decoding(arguments, _name(request), self._limit)
            prompt = self._opened.plain(text, how.max_new_tokens, f"{_name(request)}: ")
            asked.append(Request(prompt, (), how))
        return self._asker.generate(asked)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, by the folder's own template.

        Raises:
            ConfigError: the template refuses it.
        """
        tokenizer: Any = self._opened.tokenizer
        try:
            return tokenizer.apply_chat_template(
                chat_history,
                chat_template=self._opened.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except TemplateError as error:
            raise ConfigError(
                f"{self._opened.path}: chat template: {one_line(str(error))}"
            ) from error

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, for the results; "" where none is used."""
        return self._opened.template if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Tells the cached requests of one tokenizer and template from those of others."""
        return str(self._opened.path).replace("/", "__")


def _name(request: Any) -> str:
    return f"task {request.task_name}"


def _window(context: list[int], continuation: list[int]) -> Encoded:
    tokens = np.array(context + continuation, np.int32)
    weights = np.zeros(len(tokens), np.float32)
    weights[len(context) :] = 1
    return Encoded(tokens, weights, np.full(len(tokens), TEXT, np.int32))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
