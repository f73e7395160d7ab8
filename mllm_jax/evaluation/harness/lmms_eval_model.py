"""Our models as `lmms` of lmms-eval (the extra [lmms-eval], found by its entry point).

    lmms-eval --model mllm_jax --model_args pretrained=runs/instruct --tasks pope --batch_size 16

Generation takes the chat class: messages with images in their places. Tasks by log-likelihood
(`output_type: multiple_choice`) exist for simple models alone: add --force_simple.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

from mllm_jax.common.errors import RunError, quoted, require
from mllm_jax.data.records.parse import Turn
from mllm_jax.evaluation.harness.asking import Asker, Request
from mllm_jax.evaluation.harness.decoding import Decoding, decoding
from mllm_jax.evaluation.harness.messages import from_context, from_messages
from mllm_jax.generation.opened import File

ROUNDS = 64  # of a document; tasks end theirs themselves, after a few

Prompt = tuple[list[Turn], tuple[File, ...]]


class _Next(NamedTuple):
    """What a task says before a round."""

    prompt: Prompt | None  # None: there are no more
    outputs: list[str]  # of the rounds so far
    info: Any  # the task's own


class _Document(NamedTuple):
    """A request, whatever class of model it was made for."""

    name: str
    decoding: Decoding
    first: Prompt
    more: Callable[[int, list[str], Any], _Next]


class MllmJax(lmms):
    """A model, run or Hugging Face folder, asked by messages."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int | str = 8,
        device: str | None = None,
        **options: Any,
    ):
        """Opens the folder.

        Args:
            pretrained, batch_size, options: see `Asker`.
            device: PyTorch's, as lmms-eval passes it on; JAX has its own devices.

        Raises:
            ConfigError: see `Asker`.
        """
        super().__init__()
        del device
        self._asker = Asker(pretrained, batch_size, **options)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, each ended before the first of its stop strings."""
        documents = [self._document(request) for request in requests]
        return self._answers([(one, one.first) for one in documents])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of all rounds of each document, asked until its task ends it.

        Every round is a prompt of its own; what it takes over from earlier ones is up to the task.

        Raises:
            RunError: a task that does not end.
        """
        documents = [self._document(request) for request in requests]
        rounds: dict[int, _Next] = {
            n: _Next(one.first, [], None) for n, one in enumerate(documents)
        }
        finished: dict[int, list[str]] = {}
        for number in range(1, ROUNDS + 1):
            pairs = [
                (documents[n], step.prompt) for n, step in rounds.items() if step.prompt is not None
            ]
            texts = self._answers(pairs)
            for (n, step), text in zip(list(rounds.items()), texts, strict=True):
                following = documents[n].more(number, [*step.outputs, text], step.info)
                rounds[n] = following
                if following.prompt is None:
                    finished[n] = rounds.pop(n).outputs
            if not rounds:
                return [finished[n] for n in range(len(documents))]
        name = documents[next(iter(rounds))].name
        raise RunError(f"{name}: no end after {ROUNDS} rounds; its doc_to_text must say when")

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """(mean loss of the continuation's tokens in nats, whether it is the greedy answer).

        The LOSS, as lmms-eval's own models give it and its metrics need it: `acc` takes the lowest.
        Unlike theirs it holds what the continuation says alone, not the mark that ends the answer,
        and white space before an answer belongs to no answer.

        Raises:
            ConfigError: a document that cannot be read, or is too long.
        """
        encoded, images = [], []
        for request in requests:
            context, target, to_visual, doc_id, task, split = request.args
            document, name = self.task_dict[task][split][doc_id], f"task {task}, {doc_id}"
            visuals = to_visual(document) if to_visual is not None else ()
            turns, files = from_context(context, visuals, name)
            text = (target if isinstance(target, str) else target(document)).strip()
            require(text != "", f"{name}: the continuation is empty; there is nothing to score")
            opened = self._asker.opened
            encoded.append(opened.prompt(turns, 0, f"{name}: ", files, text))
            images.append(files)
        found = self._asker.losses(encoded, images)
        # lmms-eval 0.7.3 makes a text of a bare pair, which its metrics cannot read
        return [GenerationResult((-one.sum / one.tokens, one.greedy)) for one in found]

    def _answers(self, pairs: Sequence[tuple[_Document, Prompt]]) -> list[str]:
        requests = []
        for document, (turns, images) in pairs:
            length = document.decoding.max_new_tokens
            prompt = self._asker.opened.prompt(turns, length, f"{document.name}: ", images)
            requests.append(Request(prompt, images, document.decoding))
        return self._asker.generate(requests)

    def _document(self, request: Any) -> _Document:
        _, to_messages, arguments, doc_id, task, split = request.args
        document, name = self.task_dict[task][split][doc_id], f"task {task}, {doc_id}"

        def more(number: int, outputs: list[str], info: Any) -> _Next:
            answer = to_messages(
                document, round_idx=number, previous_output=outputs, previous_round_info=info
            )
            messages, over, outputs, info = _checked(answer, 4, name)
            prompt = None if over else from_messages(messages, name)
            return _Next(prompt, list(outputs), info)

        first = from_messages(to_messages(document), name)
        return _Document(name, decoding(arguments, f"task {task}"), first, more)


class MllmJaxSimple(MllmJax):
    """As `MllmJax`, asked by a text and its images: what --force_simple takes."""

    is_simple = True

    def _document(self, request: Any) -> _Document:
        context, arguments, to_visual, *to_text, doc_id, task, split = request.args
        document, name = self.task_dict[task][split][doc_id], f"task {task}, {doc_id}"

        def more(number: int, outputs: list[str], info: Any) -> _Next:
            answer = to_text[0](
                document, round_idx=number, previous_output=outputs, previous_round_info=info
            )
            visuals, text, over, outputs, info = _checked(answer, 5, name)
            prompt = None if over else from_context(text, visuals, name)
            return _Next(prompt, list(outputs), info)

        visuals = to_visual(document) if to_visual is not None else ()
        first = from_context(context, visuals, name)
        return _Document(name, decoding(arguments, f"task {task}"), first, more)


def _checked(answer: Any, size: int, name: str) -> Any:
    """What a task says before a round. Raises RunError where it is of another kind."""
    if not (isinstance(answer, tuple) and len(answer) == size):
        raise RunError(f"{name}: {quoted(answer, 60)} does not say whether a round follows")
    return answer
