"""An opened model that answers: what `generate` and `evaluate` share.

    folder -> Answerer                          config, tokenizer, chat, parameters
    turns -> prompt -> left-padded rows -> prefill -> decode, until every row has ended -> tokens

Prompts end together: padding is on the left, so the next token of every row takes the same
cache slot, and the number of rows or their lengths change no answer.

    .     .     <bos> Zer da  hau  <assistant> | katu bat  <eot> .
    <bos> <img> <img> Zer da  hori <assistant> | bi   katu beltz <eot>
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mllm_jax.batch import Batch, Example
from mllm_jax.checkpoints.hf.tokenizer import end_ids
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.data.chat.encoder import Chat, Encoded
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.chat.tokens import ImagePlaceholders
from mllm_jax.data.images import decode
from mllm_jax.data.images.tiles import Tiles, of_record, placeholders
from mllm_jax.data.mixture import packing
from mllm_jax.data.records.parse import Turn
from mllm_jax.models import mllm

File = str | Path | bytes


class Answerer:
    """A model, run or Hugging Face folder, opened to answer. Weights are read when first needed.

    Attributes:
        path: the folder.
        source: the opened folder.
        config: its model section.
        tokenizer, template, chat: the folder's own.
        ends: ids that end an answer.
        compute: number format and attention of the forward pass.
        model: the network.
    """

    def __init__(self, path: str | Path, compute: ComputeConfig | None = None):
        """Opens the folder. Raises ConfigError unless it holds a complete language model."""
        self.path, self.source = Path(path), open_model(path)
        self.config = self.source.config.model
        language = self.config.language
        require(language is not None, f"{path}: has no language model, so it cannot answer")
        assert language is not None
        files = self.source.files
        self.tokenizer = load_tokenizer(files)
        self.template = load_template(files, self.tokenizer)
        image_token = self.config.image_token if self.config.patches else None
        self.chat = Chat(self.tokenizer, self.template, image_token, self.config.patches)
        self.ends = end_ids(files, self.source.ids)
        require(
            any(end < language.vocab for end in self.ends),
            f"{path}: eos_token_id={quoted(self.ends)} is outside of the {language.vocab} rows of "
            "the token table, so no answer would end; correct generation_config.json",
        )
        platform = jax.default_backend()
        self.compute = compute or compute_for(self.source.config.dtype, platform)
        self.model = mllm.build(self.config, self.compute, platform)

    @functools.cached_property
    def params(self) -> dict[str, jax.Array]:
        """The parameters by path in compute format, on the first device.

        Raises:
            ConfigError: as `ModelSource.load`.
        """
        dtype = jnp.dtype(self.compute.compute)
        shapes = mllm.abstract_params(self.model)
        return self.source.load(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
        )

    def prompt(
        self,
        turns: Sequence[Turn],
        max_new_tokens: int,
        prefix: str = "",
        images: Sequence[File] = (),
    ) -> Encoded:
        """Turns that end with a user's, as tokens by the folder's own template.

        Args:
            turns: the conversation so far.
            max_new_tokens: room that the answer must have.
            prefix: what messages begin with.
            images: files of its images; needed where their sizes decide how many tokens they take.

        Raises:
            ConfigError: the template refuses the turns, an image cannot be read, or prompt and
                answer do not fit the model's length.
        """
        try:
            encoded = self.chat.prompt(turns, self.placeholders(images))
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from error
        self.check_length(len(encoded.tokens), max_new_tokens, prefix)
        return encoded

    def check_length(self, size: int, more: int, prefix: str = "") -> None:
        """Refuses what is longer than the model's positions. Raises ConfigError."""
        assert self.config.language is not None
        limit = self.config.language.max_length
        require(
            size + more <= limit,
            f"{prefix}the prompt has {size} tokens; with {more} for the answer that is more than "
            f"the model's max_length={limit}; shorten the prompt or the answer",
        )

    def layouts(self, images: Sequence[File]) -> list[ImageLayout]:
        """How the images of one conversation are laid out; no file is read where all are alike.

        Raises:
            ConfigError: an image whose header cannot be read.
        """
        alike = self.config.grids is None
        sizes = [(1, 1) if alike else decode.check(image) for image in images]
        return [self.config.image_layout(size, len(images)) for size in sizes]

    def placeholders(self, images: Sequence[File]) -> ImagePlaceholders:
        """Those of a conversation's images; None where each takes one square.

        Raises:
            ConfigError: as `layouts`.
        """
        vision = self.config.vision
        if self.config.grids is None or vision is None:
            return None
        pairs = [(of.tiles, placeholders(of, vision)) for of in self.layouts(images)]
        return of_record(pairs, self.config.patches)

    def pictures(self, images: Sequence[File]) -> list[Tiles]:
        """The images of one conversation as the vision tower takes them.

        Raises:
            ConfigError: a file that is not an image.
        """
        require(
            not images or self.config.patches > 0,
            f"{self.path}: the model reads text only; leave images out",
        )
        fit: Any = self.source.image_fit
        return [decode.load_tiles(image, self.config, fit, len(images)) for image in images]

    def batch(
        self,
        encoded: Sequence[Encoded],
        pictures: Sequence[Sequence[Tiles]],
        rows: int,
        slots: int,
        left: bool = False,
    ) -> Batch:
        """One conversation a row, padded to one of few lengths, and with empty rows to `rows`.

        Args:
            encoded: at most `rows` conversations or prompts.
            pictures: those of each.
            rows: B.
            slots: image slots, I.
            left: padding is on the left (prompts), not on the right.
        """
        length = bucket(max(len(one.tokens) for one in encoded))
        size = self.config.vision.image_size if self.config.vision is not None and slots else 1
        assembled = []
        for one, images in zip(encoded, pictures, strict=True):
            names = tuple("" for _ in images)
            example = Example(
                one.tokens, one.weights, one.placeholders, names, stream=0, language=0, record=""
            )
            assembled.append(
                packing.assemble([example], images, length, slots, self.config.patches, size)
            )
            if left:
                assembled[-1] = _shifted(assembled[-1], length - len(one.tokens))
        assembled += [packing.assemble([], [], length, slots, self.config.patches, size)] * (
            rows - len(assembled)
        )
        return packing.stack(assembled)

    def answer(
        self,
        prompts: Sequence[Encoded],
        pictures: Sequence[Sequence[Tiles]],
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
            pictures: from `pictures`, those of each prompt.
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
        rows, slots = max(rows or 0, len(prompts)), max(slots or 0, *map(slots_of, pictures))
        batch = self.batch(prompts, pictures, rows, slots, left=True)
        of_rows = np.zeros(rows, np.int32)
        of_rows[: len(prompts)] = range(len(prompts)) if numbers is None else numbers
        request = _Request(
            real=jnp.arange(rows) < len(prompts),
            ends=jnp.asarray(self.ends if ends is None else ends, jnp.int32),
            temperature=jnp.float32(max(temperature, np.finfo(np.float32).tiny)),
            key=jax.random.key(seed % 2**32),
            numbers=jnp.asarray(of_rows),
        )
        out = _answer(self.model, temperature > 0, max_new_tokens, self.params, batch, request)
        return [
            [token for token in row if token >= 0]
            for row in np.asarray(out)[: len(prompts)].tolist()
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, control tokens left out."""
        text: Any = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def slots_of(pictures: Sequence[Tiles]) -> int:
    """Image slots that the pictures of a conversation take."""
    return sum(len(picture.pixels) for picture in pictures)


def compute_for(stored: str, platform: str) -> ComputeConfig:
    """The parameters' own number format; float32 on CPUs: faster there, and it holds all others."""
    dtype = "bfloat16" if stored == "bfloat16" and platform != "cpu" else "float32"
    return ComputeConfig(compute=dtype, parameters=dtype, remat="none")


def _shifted(row: packing.Row, places: int) -> packing.Row:
    """The row with its padding on the left."""
    fields = row._asdict()
    pixels = fields.pop("pixels")
    return packing.Row(**{name: np.roll(x, places) for name, x in fields.items()}, pixels=pixels)


def bucket(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, ...: few programs are compiled, and padding is little."""
    size = 64
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


# ----------------------------------------------------------------------------------------- decoding


class _Request(NamedTuple):
    real: Bool[Array, "B"]  # rows that are asked; the others are padding
    ends: Int[Array, "E"]
    temperature: Float[Array, ""]
    key: Key[Array, ""]
    numbers: Int[Array, "B"]  # of the prompts; see `Answerer.answer`


class _State(NamedTuple):
    count: Int[Array, ""]  # tokens appended so far
    token: Int[Array, "B"]  # the last of them
    ended: Bool[Array, "B"]
    out: Int[Array, "B N"]  # -1 where nothing was appended
    cache: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _answer(
    model: mllm.MLLM, sample: bool, limit: int, params: Any, prompt: Batch, request: _Request
) -> Int[Array, "B limit"]:
    """Prefill and decoding in one program; leaves the loop when every row has ended."""
    B, T = prompt.tokens.shape
    after = jnp.asarray(prompt.positions[:, -1]) + 1  # position of the first appended token
    keys = jax.vmap(lambda number: jax.random.fold_in(request.key, number))(request.numbers)

    def pick(scores: Float[Array, "B V"], count: Any) -> Int[Array, "B"]:
        if not sample:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)
        # the likeliest token gets 0: a small temperature must not overflow
        scores = (scores - jnp.max(scores, axis=-1, keepdims=True)) / request.temperature
        draws = jax.vmap(
            lambda key, row: jax.random.categorical(jax.random.fold_in(key, count), row)
        )
        return draws(keys, scores).astype(jnp.int32)

    def append(state: _State, scores: Float[Array, "B V"], cache: Any) -> _State:
        token = pick(scores, state.count)
        out = state.out.at[:, state.count].set(jnp.where(state.ended, -1, token))
        is_end = jnp.any(token[:, None] == request.ends[None, :], axis=1)
        return _State(state.count + 1, token, state.ended | is_end, out, cache)

    def turn(state: _State) -> _State:
        return append(
            state, *mllm.decode(model, params, state.token, after + state.count - 1, state.cache)
        )

    scores, cache = mllm.prefill(model, params, prompt.inputs, slots=T + limit)
    empty = jnp.full((B, limit), -1, jnp.int32)
    start = _State(jnp.int32(0), after, ~request.real, empty, None)
    unfinished = lambda state: (state.count < limit) & ~jnp.all(state.ended)  # noqa: E731
    return jax.lax.while_loop(unfinished, turn, append(start, scores, cache)).out
