"""Joins filled prompt templates to tokens, with the loss mask and the placeholders of images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from mllm_jax.batch import TEXT
from mllm_jax.common.errors import ConfigError, quoted
from mllm_jax.data.chat.prompt_template import Items, Run

NO_TOKEN = -1  # the image token of a model that reads no images


class Encoded(NamedTuple):
    """A conversation as tokens.

    `placeholders[t]` is TEXT, NEWLINE, or k * P + p for patch p of the conversation's k-th slot.
    """

    tokens: Int32[np.ndarray, "T"]
    weights: Float32[np.ndarray, "T"]
    placeholders: Int32[np.ndarray, "T"]


class Flat(NamedTuple):
    """Many conversations as tokens, end to end, none of them empty; an image is one token."""

    tokens: Int32[np.ndarray, "t"]
    trained: Bool[np.ndarray, "t"]
    ends: Int64[np.ndarray, "n"]

    @classmethod
    def join(cls, parts: Sequence["Flat"]) -> "Flat":
        """One after the other."""
        sizes = [np.diff(part.ends, prepend=0) for part in parts]
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(part.tokens for part in parts)]),
            np.concatenate([np.zeros(0, np.bool_), *(part.trained for part in parts)]),
            np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes])),
        )


# `Run.key` -> ids, and the characters of each where they were asked for
Encodings = dict[tuple[str, bool], tuple[list[int], Sequence[tuple[int, int]]]]


def flatten(
    plans: Sequence[Items],
    encodings: Encodings,
    names: Sequence[str],
    control: bool = False,
    end_of_turn: bool = True,
) -> Flat:
    """Ids and encoded texts, end to end. Trained are answers, and the token after each.

    Args:
        plans: filled prompt templates.
        encodings: of every run's text; offsets where one has borders.
        names: what messages call the conversations; may be empty.
        control: whether special tokens are trained wherever they are.
        end_of_turn: whether the token after an answer is trained.

    Raises:
        ConfigError: a token crosses the border of an answer.
    """
    tokens: list[int] = []
    trained = bytearray()
    ends = []
    for n, items in enumerate(plans):
        answered = False  # the item before was an answer: this one ends its turn
        for item in items:
            if isinstance(item, Run):
                ids, offsets = encodings[item.key]
                tokens += ids
                answered = bool(item.spans)
                if not item.has_borders:
                    trained += _ALL[answered] * len(ids)
                    continue
                try:
                    trained += loss_mask(item, offsets)
                except ConfigError as error:
                    raise named(names, n, error) from error
            else:
                tokens.append(item)
                trained.append(control or (answered and end_of_turn))
                answered = False
        ends.append(len(tokens))
    ids = np.array(tokens, np.int32)
    return Flat(ids, np.frombuffer(trained, np.bool_), np.array(ends, np.int64))


_ALL = (b"\0", b"\1")


def loss_mask(run: Run, offsets: Sequence[tuple[int, int]]) -> bytes:
    """1 for tokens of a trained span, 0 outside.

    SentencePiece-style tokenizers write the space before a word into its token, so a token that
    begins before an answer is one of its tokens if only white space of it is outside:

        ASSISTANT: Ondo.      spans [11, 16)
        ASS IST ANT : ▁O nd o .
         0   0   0  0  1  1 1 1

    Raises:
        ConfigError: any other token crosses the border of a span.
    """
    trained = bytearray(len(offsets))
    for start, end in run.spans:
        for t, (left, right) in enumerate(offsets):
            if left >= start and right <= end:
                trained[t] = 1
            elif right > start and left < end:
                token, outside = run.text[left:right], run.text[left:start]
                if right > end or token.isspace() or not outside.isspace():
                    raise _crossing(run.text[start:end])
                trained[t] = 1
    return bytes(trained)


def _crossing(answer: str) -> ConfigError:
    spaced = answer != answer.strip()
    return ConfigError(
        f"a token crosses the border of the answer {quoted(answer, 60)}"
        + ("; trim the white space around it" if spaced else "")
    )


def starts(ends: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Where things that are stored end to end begin."""
    return np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]


def counts(flat: Flat, token: int) -> Int64[np.ndarray, "n"]:
    """How many times each conversation has the token."""
    if not len(flat.ends):  # reduceat wants one
        return np.zeros(0, np.int64)
    return np.add.reduceat(flat.tokens == token, starts(flat.ends), dtype=np.int64)


def named(names: Sequence[str], number: int, error: ConfigError) -> ConfigError:
    """The error with the name of the conversation that caused it before it."""
    return ConfigError(f"{names[number]}: {error}" if names else str(error))


def expand(
    tokens: Int32[np.ndarray, "t"],
    weights: Float32[np.ndarray, "t"],
    image_token: int,
    images: Sequence[Int32[np.ndarray, "_"]],
) -> Encoded:
    """Widens every image token of a record to its placeholders, untrained.

    With the placeholders 0 1 2:  a <image> b  ->  a <image> <image> <image> b,  TEXT 0 1 2 TEXT

    Args:
        tokens, weights: of the record, an image being one token.
        image_token: id of `<image>`.
        images: the placeholders of each, numbered over the record: `tiles.of_record`.

    Raises:
        ValueError: not as many images as image tokens.
    """
    is_image = tokens == image_token
    if int(is_image.sum()) != len(images):
        raise ValueError(f"{is_image.sum()} image tokens, placeholders of {len(images)} images")
    weights = weights * ~is_image
    copies = np.ones(len(tokens), np.int64)
    copies[is_image] = [len(image) for image in images]
    tokens, weights, is_image = (np.repeat(x, copies) for x in (tokens, weights, is_image))
    placeholders = np.full(len(tokens), TEXT, np.int32)
    if images:
        placeholders[is_image] = np.concatenate(images)
    return Encoded(tokens, weights, placeholders)


# of the images of a conversation -> their placeholders, or None: squares of P patches
ImagePlaceholders = Sequence[Int32[np.ndarray, "_"]] | None


def expand_all(
    flat: Flat, image_token: int, patches: int, images: Sequence[ImagePlaceholders] | None = None
) -> list[Encoded]:
    """`expand` of every conversation.

    Args:
        flat: the conversations.
        image_token: id of `<image>`.
        patches: of an image that takes one square, P.
        images: the placeholders of every conversation's images; where None, each takes a square.
    """
    weights, encoded = flat.trained.astype(np.float32), []
    for n, (a, b) in enumerate(pairwise([0, *flat.ends.tolist()])):
        tokens, laid_out = flat.tokens[a:b], None if images is None else images[n]
        if laid_out is None:
            squares = int((tokens == image_token).sum())
            laid_out = list(np.arange(squares * patches, dtype=np.int32).reshape(squares, patches))
        encoded.append(expand(tokens, weights[a:b], image_token, laid_out))
    return encoded
