"""Opens a model folder, and turns conversations and pictures into what the model reads.

folder -> Opened                            config, tokenizer, chat, parameters
turns, or text with a continuation -> prompt -> rows of a batch
image files -> pictures
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mllm_jax.batch import Batch, Example
from mllm_jax.checkpoints.hf.tokenizer import end_ids
from mllm_jax.checkpoints.open_model import ModelSource, open_model
from mllm_jax.common import compilation_cache
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
from mllm_jax.distributed import sharding
from mllm_jax.generation.contexts import Contexts
from mllm_jax.generation.shapes import bucket
from mllm_jax.models import axes, decoding, mllm
from mllm_jax.models.kernels.select import device_of

File = str | Path | bytes


class Opened:
    """A model, run or Hugging Face folder, opened. Weights are read when first needed.

    Attributes:
        path: the folder.
        source: the opened folder.
        config: its model section.
        tokenizer, template, chat: the folder's own.
        ends: ids that end an answer.
        compute: number format and attention of the forward pass.
        model: the network.
        mesh: the devices that share the work; None for the first one alone.
    """

    mesh: Mesh | None

    def __init__(
        self,
        path: str | Path | ModelSource,
        compute: ComputeConfig | None = None,
        mesh: Mesh | None = None,
    ):
        """Opens the folder.

        Args:
            path: a model, run or Hugging Face folder; or as `open_model` opened it.
            compute: number format and attention; default `compute_for`.
            mesh: from `Devices.mesh` or `sharding.make_mesh`. Rows are divided over `data` and
                `fsdp`, parameters over `fsdp` and `tensor`; answers are those of one device.

        Raises:
            ConfigError: it does not hold a complete language model, or a mesh with a context axis.
        """
        compilation_cache.enable()
        self.source = path if isinstance(path, ModelSource) else open_model(path)
        self.path = self.source.where
        self.config = self.source.config.model
        language = self.config.language
        require(language is not None, f"{self.path}: has no language model, so it cannot answer")
        assert language is not None
        files = self.source.files
        self.tokenizer = load_tokenizer(files)
        self.template = load_template(files, self.tokenizer)
        image_token = self.config.image_token if self.config.patches else None
        self.chat = Chat(self.tokenizer, self.template, image_token, self.config.patches)
        self.ends = end_ids(files, self.source.ids)
        require(
            any(end < language.vocab for end in self.ends),
            f"{self.path}: eos_token_id={quoted(self.ends)} is outside of the token table "
            f"({language.vocab} rows), so no answer would end; correct generation_config.json",
        )
        context = mesh.shape["context"] if mesh is not None else 1
        require(context == 1, f"mesh: context={context}: answers are not divided by length; give 1")
        self.mesh = mesh
        device = device_of(jax.devices()[0] if mesh is None else mesh.devices.flat[0])
        self.compute = compute or compute_for(self.source.config.dtype, device.platform)
        self.model = mllm.build(self.config, self.compute, device)

    @functools.cached_property
    def params(self) -> dict[str, jax.Array]:
        """The parameters by path in compute format, on the first device or the mesh.

        Each language layer has arrays of its own, see `decoding.unstack`.

        Raises:
            ConfigError: as `ModelSource.load`, or a dimension that the mesh does not divide.
        """
        dtype = jnp.dtype(self.compute.compute)
        shapes = mllm.abstract_params(self.model)
        places: dict[str, Any] = dict.fromkeys(shapes)
        if self.mesh is not None:
            names = axes.logical_axes(shapes)
            sharding.check_divides(self.mesh, names, shapes)
            places = sharding.shardings(self.mesh, names)
        stacked = self.source.load(
            {
                path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=places[path])
                for path, x in shapes.items()
            }
        )
        return decoding.unstack(stacked)

    def prompt(
        self,
        turns: Sequence[Turn],
        max_new_tokens: int,
        prefix: str = "",
        images: Sequence[File] = (),
        continuation: str = "",
    ) -> Encoded:
        """Turns that end with a user's, as tokens by the folder's own template.

        Args:
            turns: the conversation so far.
            max_new_tokens: room that the answer must have.
            prefix: what messages begin with.
            images: files of its images; needed where their sizes decide how many tokens they take.
            continuation: text behind them whose log-likelihood will be asked, see `Chat.prompt`.

        Raises:
            ConfigError: the template refuses the turns, an image cannot be read, or prompt and
                answer do not fit the model's length.
        """
        try:
            encoded = self.chat.prompt(turns, self.placeholders(images), continuation)
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from error
        self.check_length(len(encoded.tokens), max_new_tokens, prefix)
        return encoded

    @functools.cached_property
    def _contexts(self) -> Contexts:
        return Contexts(self.tokenizer)

    def continued(self, context: str, continuation: str, prefix: str = "") -> Encoded:
        """Text without a chat template, and the continuation whose log-likelihood will be asked.

        One beginning token is put before it unless the text begins with it; see `Contexts.encode`.

        Raises:
            ConfigError: the continuation is empty, or both do not fit the model's length.
        """
        encoded = self._contexts.encode(context, continuation, prefix)
        self.check_length(len(encoded.tokens), 0, prefix)
        return encoded

    def plain(self, text: str, max_new_tokens: int | None = None, prefix: str = "") -> Encoded:
        """Text without a chat template as a prompt, one beginning token before it.

        Args:
            text: special tokens in it are read as such.
            max_new_tokens: room that the answer must have; None for a text of any length.
            prefix: what messages begin with.

        Raises:
            ConfigError: it and the answer do not fit the model's length.
        """
        encoded = self._contexts.prompt(text)
        if max_new_tokens is not None:
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
        size = max((tiles.pixels.shape[1] for each in pictures for tiles in each), default=1)
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

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, control tokens left out."""
        text: Any = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def compute_for(stored: str, platform: str) -> ComputeConfig:
    """The parameters' own number format; float32 on CPUs: faster there, and it holds all others.

    On GPUs attention is plain JAX: a prompt is read once, and no kernel has to be tried for it.
    """
    dtype = "bfloat16" if stored == "bfloat16" and platform != "cpu" else "float32"
    attention = "blocks" if platform == "gpu" else "auto"
    return ComputeConfig(compute=dtype, parameters=dtype, remat="none", attention=attention)


def _shifted(row: packing.Row, places: int) -> packing.Row:
    """The row with its padding on the left."""
    fields = row._asdict()
    pixels = fields.pop("pixels")
    return packing.Row(**{name: np.roll(x, places) for name, x in fields.items()}, pixels=pixels)
