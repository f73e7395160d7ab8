"""Answers the requests of a harness in batches, whatever their order and arguments.

requests -> groups of one decoding -> batches of like length and image count -> texts
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mllm_jax.common.errors import quoted, require
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.evaluation.harness.decoding import Decoding, cut
from mllm_jax.generation.batching import batches, read_ahead
from mllm_jax.generation.devices import Devices
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.likelihood import LogLikelihood
from mllm_jax.generation.opened import File
from mllm_jax.generation.shapes import power


class Request(NamedTuple):
    """What is answered by a text."""

    prompt: Encoded
    images: tuple[File, ...]
    decoding: Decoding


class Asker:
    """A model folder, opened for a harness.

    Attributes:
        opened: the model.
        rows: answered at the same time.
    """

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int | str = 8,
        fsdp: int = 1,
        tensor: int = 1,
        seed: int = 0,
    ):
        """Opens the folder on all devices of the process.

        Args:
            pretrained: a model, run or Hugging Face folder.
            batch_size: rows that are answered at the same time.
            fsdp, tensor: devices that share the parameters; rows are divided over the others.
            seed: of draws, where a task asks for them.

        Raises:
            ConfigError: it is not a complete language model, or `batch_size` is not a number.
        """
        text = str(batch_size)
        require(
            text.isdecimal() and int(text) > 0,
            f"batch_size={quoted(batch_size)} is not a number of 1 or more",
        )
        mesh = Devices(None, fsdp, tensor).mesh()
        self.opened, self.rows = Answerer(pretrained, mesh=mesh), int(text)
        self._seed, self._answered = seed, 0

    def generate(self, requests: Sequence[Request]) -> list[str]:
        """The answers, cut at their stop strings; a progress bar on stderr.

        Draws differ from request to request, also where they ask the same.
        """
        answers: dict[int, str] = {}
        numbers: dict[Decoding, list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault(request.decoding, []).append(number)
        with _progress(len(requests), "answering") as bar:
            for decoding, same in numbers.items():
                for number, text in self._alike([requests[n] for n in same], decoding, same):
                    answers[number] = text
                    bar.update()
        self._answered += len(requests)
        return [answers[number] for number in range(len(requests))]

    def _alike(
        self, requests: Sequence[Request], decoding: Decoding, numbers: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        """(number, answer) of requests that differ in their prompts alone."""
        opened, ends = self.opened, self._ends(decoding.until)
        slots = [sum(one.tiles for one in opened.layouts(request.images)) for request in requests]
        sizes = [len(request.prompt.tokens) for request in requests]
        groups = batches(sizes, slots, self.rows)
        read = lambda n: opened.pictures(requests[n].images)  # noqa: E731
        for group, pictures in read_ahead(groups, read):
            output_ids = opened.answer(
                [requests[n].prompt for n in group.items],
                pictures,
                decoding.max_new_tokens,
                temperature=decoding.temperature,
                seed=self._seed,
                numbers=[self._answered + numbers[n] for n in group.items],
                ends=ends,
                rows=group.rows,
                slots=group.slots,
            )
            for n, ids in zip(group.items, output_ids, strict=True):
                yield numbers[n], cut(opened.text(ids), decoding.until)

    def losses(
        self, encoded: Sequence[Encoded], images: Sequence[Sequence[File]]
    ) -> list[LogLikelihood]:
        """See `Answerer.losses_of`; a progress bar on stderr."""
        with _progress(len(encoded), "scoring") as bar:
            return self.opened.losses_of(encoded, images, self.rows, bar.update)

    def _ends(self, until: Sequence[str]) -> list[int]:
        """Ids after which an answer is over: the folder's, and those with a stop string inside.

        A stop string of several tokens is found afterwards. The number of ids is rounded up, so
        that few programs are compiled.
        """
        ends = list(self.opened.ends)
        if until:
            names, texts = self._control, self._texts
            ends += [names[one] for one in until if one in names]
            ends += [n for n, text in enumerate(texts) if any(one in text for one in until)]
            ends = list(dict.fromkeys(ends))
        return [*ends, *ends[:1] * (power(len(ends)) - len(ends))]

    @cached_property
    def _texts(self) -> list[str]:
        """What each token adds to an answer; control tokens add nothing."""
        return [self.opened.text([number]) for number in range(len(self._tokenizer))]

    @cached_property
    def _control(self) -> dict[str, int]:
        """Control tokens by name; a task may end answers by one."""
        return {one.content: n for n, one in self._tokenizer.added_tokens_decoder.items()}

    @property
    def _tokenizer(self) -> Any:
        return self.opened.tokenizer


@contextmanager
def _progress(total: int, text: str) -> Iterator[Any]:
    with tqdm(total=total, desc=text, unit="request", file=sys.stderr, disable=None) as bar:
        yield bar
