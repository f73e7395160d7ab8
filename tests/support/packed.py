"""A small whole model and packed rows with images, as the loader makes them: for many devices.

Sizes are chosen so that a shape in a compiled program tells what it is: no two dimensions are equal
where a test asks which.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mllm_jax.batch import TEXT, Batch, Example
from mllm_jax.config.adapter import AdapterConfig
from mllm_jax.config.grids import GridsConfig
from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.model import ConnectorConfig, LanguageConfig, ModelConfig, VisionConfig
from mllm_jax.config.stage import ComputeConfig, OptimizerConfig, PartConfig
from mllm_jax.data.images.tiles import Tiles, of_record, placeholders
from mllm_jax.data.mixture import packing
from mllm_jax.distributed import sharding
from mllm_jax.training import setup, state
from mllm_jax.training.setup import TrainSetup

V, P, SIDE = 208, 4, 16  # vocabulary, patches and pixels of an image
ROWS, LENGTH, SLOTS = 16, 66, 5
CHUNK = 33  # two chunks of logits
MODEL = ModelConfig(
    VisionConfig(image_size=SIDE, patch_size=8, width=16, mlp=40, layers=6, heads=2),
    ConnectorConfig("linear"),
    LanguageConfig(vocab=V, width=24, mlp=56, layers=3, heads=4, kv_heads=2, head_dim=8),
    image_token=V - 1,
    grids=GridsConfig("hw", sizes=((SIDE, 2 * SIDE), (2 * SIDE, SIDE))),
)
# a tower without class token, which leaves out the last pixels of a side, as SigLIP of 384 / 14
SIGLIP = VisionConfig(
    image_size=SIDE, patch_size=7, width=16, mlp=40, layers=6, heads=2,
    activation="gelu_pytorch_tanh", kind="siglip", pooling_head=True,
)  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "align": MODEL,
    "instruct": MODEL,
    "neftune": MODEL,
    "lora": MODEL,
    "dora": MODEL,
    "siglip": dataclasses.replace(MODEL, vision=SIGLIP),
    # whole blocks of 64 on two devices
    "int8": dataclasses.replace(
        MODEL,
        language=LanguageConfig(
            vocab=V, width=128, mlp=56, layers=3, heads=4, kv_heads=2, head_dim=8
        ),
    ),
}
COMPUTE = ComputeConfig(compute="float32", attention="blocks", loss_chunk=CHUNK)
TOWER = PartConfig("vision/.*", train=False)
CONNECTOR = PartConfig("connector/.*")
PARTS = {
    "align": {
        "connector": CONNECTOR,
        "language": PartConfig("language/.*", train=False),
        "vision": TOWER,
    },
    "instruct": {"connector": CONNECTOR, "language": PartConfig("language/.*"), "vision": TOWER},
    "siglip": {"all": PartConfig(".*")},
}
PARTS["neftune"] = PARTS["instruct"]
PARTS["lora"] = PARTS["dora"] = PARTS["int8"] = PARTS["align"]
# in both towers; the connector is trained itself, as in LLaVA's LoRA recipe
ADAPTER = AdapterConfig("(vision|language)/layers/.*/kernel", rank=5, alpha=10.0, dropout=0.3)
BETA1 = 0.9


def make_setup(stage: str, mesh: Mesh, compute: ComputeConfig = COMPUTE) -> TrainSetup:
    """The stage; its first update leaves (1 - BETA1) x gradient in Adam's first moments."""
    config = OptimizerConfig(
        PARTS[stage],
        1e-3,
        beta1=BETA1,
        warmup_ratio=0.0,
        clip_norm=None,
        neftune_alpha=20.0 if stage == "neftune" else 0.0,
    )
    adapters = {
        "lora": ADAPTER,
        "dora": dataclasses.replace(ADAPTER, dora=True),
        "int8": AdapterConfig("language/layers/.*/kernel", rank=5, alpha=10.0, base="int8"),
    }
    adapter = adapters.get(stage)
    return setup.make_setup(MODELS[stage], compute, config, mesh, steps=10, adapter=adapter)


def image(rng: np.random.Generator, kind: str) -> Tiles:
    """`square`: as LLaVA-1.5's; `padded`: a newline behind it; `tiles`: three, partly cut off."""
    layout = {
        "square": ImageLayout(1, P, None, None, newline=False),
        "padded": ImageLayout(1, P + 1, None, None, newline=True),
        "tiles": MODEL.image_layout((SIDE, 20)),
    }[kind]
    assert MODEL.vision is not None
    pixels = rng.integers(0, 256, (layout.tiles, SIDE, SIDE, 3), dtype=np.uint8)
    return Tiles(pixels, placeholders(layout, MODEL.vision))


def example(rng: np.random.Generator, images: list[Tiles], text: int, setup: str) -> Example:
    """Images and text with a trained answer; a caption trains all its words."""
    numbered = of_record([(len(one.pixels), one.placeholders) for one in images], P)
    seats = np.concatenate([*numbered, np.full(text, TEXT)])
    size = len(seats) - text
    tokens = np.concatenate([np.full(size, V - 1), rng.integers(0, V - 1, text)])
    weights = np.zeros(len(seats))
    weights[-text if setup == "align" else -(text // 2) :] = 1
    return Example(
        tokens.astype(np.int32),
        weights.astype(np.float32),
        seats.astype(np.int32),
        tuple(str(rng.integers(1 << 30)) for _ in images),
        int(rng.integers(2)),
        int(rng.integers(2)),
        "stream/id",
    )


KINDS = {
    "images": (("tiles",), ("square", "padded")),
    "text": ((), (), ()),
    "both": (("padded", "square"), (), ("tiles",)),
}


def row(seed: int, kind: str, setup: str) -> packing.Row:
    """A packed row: every example has images, none has, or both."""
    rng = np.random.default_rng(seed)
    images = [[image(rng, name) for name in names] for names in KINDS[kind]]
    examples = [example(rng, few, int(rng.integers(6, 15)), setup) for few in images]
    flat = [one for few in images for one in few]
    return packing.assemble(examples, flat, LENGTH, SLOTS, P, SIDE)


def batch(kinds: str, stage: str, seed: int = 0) -> Batch:
    """16 rows, a letter each: i images, t text only, b both."""
    names = {"i": "images", "t": "text", "b": "both"}
    assert len(kinds) == ROWS
    made = [row(100 * seed + i, names[letter], stage) for i, letter in enumerate(kinds)]
    return packing.stack(made)


class Run(NamedTuple):
    """A compiled step with all that a test needs to call it, and to read its program."""

    setup: TrainSetup
    call: Any
    fresh: state.TrainState  # host arrays: the step gives its argument's memory away

    @property
    def text(self) -> str:
        return self.call.as_text()

    def first_step(self, batch: Batch) -> tuple[dict[str, np.ndarray], Any, state.TrainState]:
        """(metrics, gradient of the mean loss, state after) of one step from the fresh state."""
        fresh = jax.device_put(self.fresh, self.setup.shardings)
        after, metrics = self.call(fresh, setup.shard_batch(batch, self.setup.mesh))
        gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - BETA1), after.opt_state.mu)
        return jax.tree.map(np.asarray, metrics), gradient, after


@functools.cache
def drawn(stage: str) -> Any:
    """One set of random parameters for every mesh, with the stage's model.

    Adapters have an effect from the start.
    """
    one = sharding.make_mesh(devices=jax.devices()[:1])
    made = make_setup(stage, one)
    params = setup.init_params(made, made.params, seed=1)
    params = jax.tree.map(np.asarray, setup.with_magnitudes(made, params))
    rng = np.random.default_rng(1)
    effect = lambda x: 0.1 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
    return {path: effect(x) if path.endswith("/lora_b") else x for path, x in params.items()}


@functools.cache
def compiled(stage: str, mesh: Mesh, microbatches: int) -> Run:
    """The real train step of the stage, compiled for the mesh, with a fresh state."""
    made = make_setup(stage, mesh)
    params = jax.device_put(drawn(stage), made.shardings.params)
    fresh = state.create_state(params, made.optimizer, made.abstract, made.shardings)
    shapes = jax.eval_shape(lambda: batch("b" * ROWS, stage))
    call = setup.compile_train_step(made, made.abstract, shapes, microbatches, 2, 2)
    return Run(made, call.call, jax.tree.map(np.asarray, fresh))
