"""What the compiled programs hold: no copy of the cache per token, no square of scores; meshes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax.batch import ModelInputs
from mllm_jax.config.model import LanguageConfig, ModelConfig
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation import programs
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm
from tests.support import unstacked

LAYERS, ROWS, HEADS, WIDTH = 3, 8, 2, 16
CONFIG = ModelConfig(
    language=LanguageConfig(
        vocab=96, width=32, mlp=48, layers=LAYERS, heads=4, kv_heads=HEADS, head_dim=WIDTH,
        max_length=8192,
    )
)  # fmt: skip
MODEL = mllm.build(CONFIG, ComputeConfig(compute="float32", remat="none"))


def shapes(length: int) -> tuple[Any, ModelInputs]:
    """Parameters and rows, without any array."""
    whole: Any = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
    pixels: Any = jax.ShapeDtypeStruct((ROWS, 0, 1, 1, 3), jnp.uint8)
    return unstacked.shapes(MODEL), ModelInputs(whole, whole, whole, whole, pixels)


def request() -> Any:
    return jax.eval_shape(
        lambda: programs.Request(
            jnp.ones(ROWS, bool),
            jnp.int32(5),
            jnp.zeros(2, jnp.int32),
            jnp.float32(1),
            jax.random.key(0),
            jnp.zeros(ROWS, jnp.int32),
        )
    )


def compiled_decode(params: Any) -> Any:
    """The program of decoding behind prompts of 200 tokens, 232 slots."""
    _, inputs = shapes(200)
    begun = jax.eval_shape(lambda p, i: programs.prefill(MODEL, 232, p, i, None), params, inputs)
    return programs.decode.lower(MODEL, False, 32, params, *begun, request()).compile()


@pytest.fixture(scope="module")
def compiled() -> Any:
    return compiled_decode(unstacked.shapes(MODEL))


@pytest.fixture(scope="module")
def decoding(compiled) -> str:
    return str(compiled.as_text())


def test_a_token_copies_no_cache(decoding):
    """In the loop, what has the shape of a layer's cache is written where it is."""
    slots = {f"f32[{ROWS},{HEADS},{WIDTH},232]", f"f32[{ROWS},{HEADS},232,{WIDTH}]"}
    made = re.findall(r"^\s+(?:ROOT )?(%\S+) = (f32\[[\d,]+\])\S* ([\w-]+)\(", decoding, re.M)
    found = [(name, opcode) for name, shape, opcode in made if shape in slots]
    allowed = ("parameter", "get-tuple-element", "dynamic-update-slice", "bitcast")
    wrong = [
        name
        for name, opcode in found
        if opcode not in allowed and not (opcode == "fusion" and "update" in name)
    ]
    assert not wrong
    updates = [name for name, opcode in found if "update" in name or "update" in opcode]
    assert len(updates) >= 2 * LAYERS


def test_the_cache_is_given_away(decoding):
    """Its memory is that of the result: no second cache while a program runs."""
    (aliased,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", decoding)
    assert aliased.count("alias") == 2 * LAYERS + 2  # first and used as well


def test_a_call_copies_no_parameters(compiled):
    """Layers that are held apart are read where they are; stacked ones are sliced in the loop."""
    stacked = compiled_decode(mllm.abstract_params(MODEL))
    kernels = ("32,48", "48,32", "1,32,48", "1,48,32")  # of a layer's feed-forward
    made = [f"f32[{kernel}]" for kernel in kernels]
    parts = [str(program.as_text()).partition("\nENTRY") for program in (compiled, stacked)]
    (apart, _, apart_entry), (body, _, entry) = parts
    sliced = lambda text: [x for x in re.findall(r"= (\S+\])\S* slice\(", text) if x in made]  # noqa: E731
    assert not sliced(apart) and not sliced(apart_entry) and not sliced(entry)
    assert len(sliced(body)) == 3 * LAYERS


def test_a_layer_is_read_behind_the_one_before():
    """Or XLA gathers, casts or slices all layers at once, and holds the language model again."""
    for params in (unstacked.shapes(MODEL), mllm.abstract_params(MODEL)):
        _, inputs = shapes(200)
        begun = jax.eval_shape(
            lambda p, i: programs.prefill(MODEL, 232, p, i, None), params, inputs
        )
        text = programs.decode.lower(MODEL, False, 32, params, *begun, request()).as_text()
        barriers = re.findall(r"optimization_barrier (.*) :", text)
        assert len(barriers) == LAYERS
        streams = [line.split(", ")[-1] for line in barriers]
        assert len(set(streams)) == LAYERS  # each waits for another x


def test_prompts_have_no_square_of_scores():
    """8 prompts of 2,048: all scores at once would be 512 MiB a layer."""
    params, inputs = shapes(2048)
    compiled = programs.prefill.lower(MODEL, 2304, params, inputs, None).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    scores = ROWS * 4 * 2048 * 2048 * 4
    assert analysis.temp_size_in_bytes < scores / 8
    assert not re.search(r"\[(?:\d+,)*2048,(?:\d+,)*2(?:048|304)\]", str(compiled.as_text()))


# -------------------------------------------------------------------------------------- one program


def test_answers_of_other_lengths_run_the_same_program(opened, prompt):
    decode: Any = programs.decode
    answers = [opened.answer([prompt], [()], 3, ends=())]
    compiled = decode._cache_size()
    answers += [opened.answer([prompt], [()], limit, ends=()) for limit in (9, 16)]
    assert [len(tokens) for (tokens,) in answers] == [3, 9, 16]
    assert answers[2][0][:9] == answers[1][0]
    assert decode._cache_size() == compiled


# ------------------------------------------------------------------------------------------- meshes


@pytest.fixture(scope="module")
def prompt(opened) -> Any:
    return opened.prompt([user_turn("gorria?", 0)], 16)


@pytest.mark.parametrize("shape", [(4, 1, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_one_device_equals_eight(run, opened, wide, data, make_mesh, shape):
    """Answers and log-likelihoods; three prompts on rows that come in fours."""
    names = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    mesh = make_mesh(**names)
    shared = Answerer(run, mesh=mesh)
    placed = unstacked.shardings(shared.model, mesh)
    assert {path: x.sharding for path, x in shared.params.items()} == placed
    shared.__dict__["params"] = jax.device_put(wide, placed)
    files = sorted((data / "images").iterdir())
    asked = ["Zein kolore?", "red or blue? " * 5, "b"]
    turns = [[user_turn(text, 1)] for text in asked]
    images = [[file] for file in files[:3]]
    prompts = [opened.prompt(each, 16) for each in turns]
    pictures = [opened.pictures(each) for each in images]
    expected = opened.answer(prompts, pictures, 16, ends=())
    assert shared.answer(prompts, pictures, 16, ends=()) == expected
    answers = ["gorria", "berdea eta horia", "x"]
    ours = shared.log_likelihoods(turns, answers, images)
    theirs = opened.log_likelihoods(turns, answers, images)
    np.testing.assert_allclose([x.sum for x in ours], [x.sum for x in theirs], atol=1e-4)
    assert [x[1:] for x in ours] == [x[1:] for x in theirs]
