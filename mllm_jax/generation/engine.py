"""An opened model that answers: what `generate`, `evaluate` and the harnesses share.

    pictures -> embed -> image embeddings       once, for all that is asked about them
    prompts -> left-padded rows -> prefill -> decode, until every row has ended -> tokens
    prompts with continuations -> rows -> score -> log-likelihoods

Prompts end together: padding is on the left, so the next token of every row takes the same
cache slot, and the number of rows or their lengths change no answer.

    .     .     <bos> Zer da  hau  <assistant> | katu bat  <eot> .
    <bos> <img> <img> Zer da  hori <assistant> | bi   katu beltz <eot>
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mllm_jax.batch import ModelInputs
from mllm_jax.data.chat.encoder import Encoded
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.records.parse import Turn
from mllm_jax.distributed import sharding
from mllm_jax.generation import programs
from mllm_jax.generation.batching import batches, read_ahead
from mllm_jax.generation.images import Images
from mllm_jax.generation.likelihood import LogLikelihood, Scored, shared
from mllm_jax.generation.opened import File, Opened
from mllm_jax.generation.shapes import bucket, multiple, power


class Answerer(Opened):
    """A model, run or Hugging Face folder, opened to answer."""

    def embed(self, pictures: Sequence[Sequence[Tiles]]) -> Images:
        """The image embeddings of conversations, for any number of questions about them.

        A picture that several conversations share (the same object) is embedded once.

        Args:
            pictures: from `pictures`, those of each conversation.
        """
        images = Images(pictures)
        if images.squares is not None:
            count = multiple(power(len(images.squares)), self._ways)
            pixels = np.zeros((count, *images.squares.shape[1:]), np.uint8)
            pixels[: len(images.squares)] = images.squares
            with self._on_mesh():
                images.embeddings = programs.encode(self.model, self.params, pixels)
        return images

    def answer(
        self,
        prompts: Sequence[Encoded],
        pictures: Sequence[Sequence[Tiles]] | Images,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        ends: Sequence[int] | None = None,
        rows: int | None = None,
        slots: int | None = None,
    ) -> list[list[int]]:
        """The tokens that each answer appends, the one that ends it included.

        Args:
            prompts: from `prompt`.
            pictures: from `pictures`, those of each prompt; or their embeddings, from `embed`.
            max_new_tokens: where an answer is cut.
            temperature: 0 takes the likeliest token; above, tokens are drawn from
                softmax(logits / temperature).
            seed: of the draws; the prompt's number and the step are folded in.
            numbers: of the prompts among all that are asked with this seed, so that every one draws
                numbers of its own, in whatever call and row it is; default 0, 1, 2 ...
            ends: ids that end an answer; default the folder's; empty: none does.
            rows, slots: at least so many rows and image slots: one compiled program for many
                calls.
        """
        images = pictures if isinstance(pictures, Images) else self.embed(pictures)
        rows = multiple(max(rows or 0, len(prompts)), self._ways)
        inputs, vectors = self._inputs(prompts, images, rows, slots or 0, left=True)
        of_rows = np.zeros(rows, np.int32)
        of_rows[: len(prompts)] = range(len(prompts)) if numbers is None else numbers
        request = programs.Request(
            real=np.arange(rows) < len(prompts),
            limit=np.asarray(max_new_tokens, np.int32),
            ends=np.asarray(self.ends if ends is None else ends, np.int32),
            temperature=np.asarray(max(temperature, np.finfo(np.float32).tiny), np.float32),
            key=jax.random.key(seed % 2**32),
            numbers=of_rows,
        )
        room = power(max_new_tokens, least=16)
        size = bucket(inputs.tokens.shape[1] + room)
        with self._on_mesh():
            begun = programs.prefill(self.model, size, self.params, inputs, vectors)
            out, _ = programs.decode(
                self.model, temperature > 0, room, self.params, *begun, request
            )
        return [
            [token for token in row if token >= 0]
            for row in np.asarray(out)[: len(prompts)].tolist()
        ]

    def losses(
        self,
        encoded: Sequence[Encoded],
        pictures: Sequence[Sequence[Tiles]] | Images,
        *,
        rows: int | None = None,
        slots: int | None = None,
    ) -> list[LogLikelihood]:
        """The log-likelihood of every conversation's weighted tokens, given all that is before.

        Of conversations that differ in their last token alone, such as the letters of a question's
        options, the part that they share is read once.

        Args:
            encoded: conversations, or prompts with a continuation.
            pictures: as in `answer`.
            rows, slots: as in `answer`.
        """
        images = pictures if isinstance(pictures, Images) else self.embed(pictures)
        scored = Scored(encoded, images)
        count = len(scored.rows)
        rows = multiple(min(max(rows or 0, count), power(count)), self._ways)
        inputs, vectors = self._inputs(
            scored.rows, images.of(scored.items), rows, slots or 0, left=False
        )
        places, targets = scored.places(rows)
        with self._on_mesh():
            found = programs.score(self.model, self.params, inputs, vectors, places, targets)
        return scored.results(*map(np.asarray, found))

    def log_likelihoods(
        self,
        contexts: Sequence[Sequence[Turn] | str],
        continuations: Sequence[str],
        images: Sequence[Sequence[File]] | None = None,
        rows: int = 8,
    ) -> list[LogLikelihood]:
        """The log-likelihood of each continuation behind its context, in any number of batches.

            opened.log_likelihoods([turns, turns], ["Bai", "Ez"], [["a.jpg"], ["a.jpg"]])

        A continuation is tokenised together with what is before it, as one text.

        Args:
            contexts: conversations that end with a user's turn, for the chat template; or text
                without a template, see `continued`.
            continuations: of each context.
            images: files of each conversation's images.
            rows: different contexts that are read at the same time.

        Raises:
            ConfigError: naming the context by its number: as `prompt` and `continued`.
        """
        images = [()] * len(contexts) if images is None else images
        encoded = [
            self.continued(context, text, f"context {n}: ")
            if isinstance(context, str)
            else self.prompt(context, 0, f"context {n}: ", files, text)
            for n, (context, text, files) in enumerate(
                zip(contexts, continuations, images, strict=True)
            )
        ]
        return self.losses_of(encoded, images, rows)

    def losses_of(
        self,
        encoded: Sequence[Encoded],
        images: Sequence[Sequence[File]],
        rows: int = 8,
        advance: Callable[[int], object] | None = None,
    ) -> list[LogLikelihood]:
        """As `losses`, of any number of conversations, in batches of like length.

        Args:
            encoded: conversations, or prompts with a continuation.
            images: files of each one's images.
            rows: different contexts that are read at the same time.
            advance: called with the number of conversations of every batch that is done.

        Raises:
            ConfigError: an image that cannot be read.
        """
        together = shared(encoded, [tuple(files) for files in images])
        sizes = [len(encoded[items[0]].tokens) for items in together]
        slots = [sum(of.tiles for of in self.layouts(images[items[0]])) for items in together]
        found: dict[int, LogLikelihood] = {}
        groups = batches(sizes, slots, rows)
        read = lambda n: self.pictures(images[together[n][0]])  # noqa: E731
        for group, pictures in read_ahead(groups, read):
            items = [together[n] for n in group.items]
            numbers = list(itertools.chain(*items))
            seen = [own for own, same in zip(pictures, items, strict=True) for _ in same]
            chosen = [encoded[n] for n in numbers]
            results = self.losses(chosen, seen, rows=group.rows, slots=group.slots)
            found |= zip(numbers, results, strict=True)
            if advance is not None:
                advance(len(numbers))
        return [found[n] for n in range(len(encoded))]

    def _inputs(
        self, encoded: Sequence[Encoded], images: Images, rows: int, slots: int, left: bool
    ) -> tuple[ModelInputs, jax.Array | None]:
        """Rows, and the image embeddings of their slots."""
        slots = max(slots, *images.counts)
        slots = power(slots) if slots else 0
        batch = self.batch(encoded, images.placeholders, rows, slots, left)
        inputs = batch.inputs._replace(pixels=np.zeros((rows, 0, 1, 1, 3), np.uint8))
        if self.mesh is not None:
            inputs = jax.device_put(inputs, sharding.batch_sharding(self.mesh))
        if images.embeddings is None or not slots:
            return inputs, None
        with self._on_mesh():
            return inputs, programs.gather(images.embeddings, images.slots(rows, slots))

    @property
    def _ways(self) -> int:
        """The number of rows is a multiple of it."""
        return 1 if self.mesh is None else sharding.ways(self.mesh, "batch")

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        if self.mesh is None:
            return contextlib.nullcontext()
        # read before: their shapes are those of a single row, which no mesh divides
        _ = self.params
        return jax.set_mesh(self.mesh)
