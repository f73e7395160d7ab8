"""Answer a few held-out questions with the parameters of a run that is still training.

    held-out example -> tokens before its first trained one: the prompt -> greedy answer -> text
                     -> its first trained tokens: what was expected

Prompts come from the tokens that the held-out loss is measured on, so a sample shows the model what
training shows it. Documents have no prompt and are left out.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from mllm_jax.batch import TEXT, Example
from mllm_jax.checkpoints.hf.tokenizer import end_ids, special_ids
from mllm_jax.common.errors import require
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.encoder import Encoded
from mllm_jax.data.heldout import HeldOut
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.prompt_text import prompt_text
from mllm_jax.models import mllm
from mllm_jax.models.kernels.select import device_of


class Question(NamedTuple):
    """A held-out example as it is asked."""

    name: str  # "stream/id"
    language: str
    prompt: Encoded
    pictures: list[Tiles]  # of the prompt
    expected: list[int]


def sampler(
    config: Config, run: Path, tokenizer: Any, heldout: HeldOut, mesh: Mesh
) -> Callable[[Any], str]:
    """The function parameters -> sample answers as text, for `training.loop.train`.

    Args:
        config: the stage; `train.evaluate` says how many samples, and how long.
        run: its folder, whose model/ names the tokens that end an answer.
        tokenizer: of the model.
        heldout: the records.
        mesh: on which the parameters are.
    """
    evaluate = config.train.evaluate
    assert evaluate is not None
    files = run / "model"
    answerer = _Answerer(config, tokenizer, end_ids(files, special_ids(files)), mesh)
    asked = questions(config, heldout, evaluate.samples)
    require(
        len(asked) > 0,
        f"train.evaluate.samples={evaluate.samples}: the held-out records are documents, which ask "
        "nothing; set 0",
    )
    return functools.partial(_samples, answerer, asked, evaluate.max_new_tokens)


def _samples(
    answerer: "_Answerer",
    asked: Sequence[Question],
    limit: int,
    params: Any,
) -> str:
    answerer.params = params
    prompts, pictures = [one.prompt for one in asked], [one.pictures for one in asked]
    output_ids = answerer.answer(prompts, pictures, limit)
    parts = [
        f"--- {one.name} ({one.language})\n"
        f"prompt:   {prompt_text(answerer.tokenizer, one.prompt, one.pictures).strip()}\n"
        f"expected: {answerer.text(one.expected).strip()}\n"
        f"answer:   {answerer.text(ids).strip()}\n"
        for one, ids in zip(asked, output_ids, strict=True)
    ]
    return "\n".join(parts)


def questions(config: Config, heldout: HeldOut, count: int) -> list[Question]:
    """The first `count` held-out examples that have a prompt, the languages taking turns."""
    by_language: dict[int, list[Example]] = {}
    documents = {name for name, stream in heldout.config.streams.items() if stream.is_text}
    for ref in heldout.refs:
        stream = heldout.streams[ref.stream]
        group = by_language.setdefault(stream.language(ref.record), [])
        if stream.name not in documents and len(group) < count:
            group.append(stream[ref.record])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_language.values()))
    chosen = [example for example in turns if example is not None][:count]
    languages = config.data.languages
    return [_question(example, heldout.tiles(example.images), languages) for example in chosen]


def _question(example: Example, pictures: list[Tiles], languages: Sequence[str]) -> Question:
    """The example up to its first answer, and that answer.

    tokens   <user> # # what <assistant> bi katu <eot> <user> more
    weights    0    0 0  0       0        1   1    1     0     0
                        prompt          | expected   |
    """
    trained = example.weights > 0
    start = int(np.argmax(trained))
    end = start + int(np.argmin(np.append(trained[start:], False)))
    placeholders = example.placeholders[:start]
    ends = np.cumsum([len(picture.placeholders) for picture in pictures])
    count = int(np.searchsorted(ends, np.count_nonzero(placeholders != TEXT), side="right"))
    prompt = Encoded(example.tokens[:start], np.zeros(start, np.float32), placeholders)
    expected = example.tokens[start:end].tolist()
    language = languages[example.language]
    return Question(example.record, language, prompt, pictures[:count], expected)


class _Answerer(Answerer):
    """Answers with parameters that are handed over, where they are on the mesh."""

    def __init__(self, config: Config, tokenizer: Any, ends: tuple[int, ...], mesh: Mesh):
        self.config, self.tokenizer, self.ends, self.mesh = config.model, tokenizer, ends, mesh
        compute = config.compute
        self.compute = dataclasses.replace(compute, remat="none", remat_vision=None)
        device, segments = device_of(mesh.devices.flat[0]), config.data.segments
        # attention is that of the steps, which was tried before the run
        self.model = mllm.build(
            config.model, self.compute, device, config.adapter, segments=segments
        )
