"""Equal to transformers: pixels, prompt ids, logits, greedy tokens of each reference checkpoint.

The reference stores what transformers computed; its greedy tokens never stop, ours stop at the
folder's end-of-turn id unless told otherwise. `llava_bf16` was computed in bfloat16 by torch: see
`test_bfloat16_logits`.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.batch import NEWLINE, ModelInputs
from mllm_jax.config.image_tokens import ImageLayout
from mllm_jax.config.stage import ComputeConfig
from mllm_jax.data.images import decode
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.answer import generate
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm

NAMES = (
    "llama",
    "llama31",
    "llama32_tied",
    "llava_bf16",
    "llava_linear",
    "llava_linear_gelu",
    "llava_mlp",
    "llava_next_linear",
    "llava_next_mlp",
    "llava_next_siglip",
    "llava_next_two_images",
    "llava_siglip",
    "llava_siglip_last",
    "llava_two_images",
)
LLAVA = [name for name in NAMES if name.startswith("llava")]
FLOAT32 = ComputeConfig(compute="float32", remat="none")


class Case:
    """A reference checkpoint and what transformers computed from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pictures = sorted(folder.glob("image_*.png"))
        self.expected = dict(np.load(folder / "expected.npz"))
        self.prompt = str(self.expected["question"])
        self.greedy: list[int] = self.expected["greedy"].tolist()

    def pixels(self, layouts: Sequence[ImageLayout]) -> np.ndarray:
        """The given pixel values as [slots, height, width, C], without the padding to one count."""
        given = self.expected["pixel_values"]
        if given.ndim == 5:  # LLaVA-NeXT: image, tile, C, height, width
            given = np.concatenate([x[: of.tiles] for x, of in zip(given, layouts, strict=True)])
        return given.transpose(0, 2, 3, 1)


@pytest.fixture(params=NAMES)
def case(request, oracle) -> Case:
    return Case(oracle / request.param)


@pytest.fixture(params=LLAVA)
def llava(request, oracle) -> Case:
    return Case(oracle / request.param)


@functools.partial(jax.jit, static_argnums=0)
def all_logits(model, params, tokens, image_index, pixels):
    ones = jnp.ones_like(tokens)
    positions = jnp.arange(tokens.shape[1])[None]
    inputs = ModelInputs(tokens, ones, positions, image_index, pixels)
    hidden = mllm.hidden(model, params, inputs)
    return mllm.logits(hidden, mllm.head(params))


def our_logits(case: Case, compute: ComputeConfig = FLOAT32) -> np.ndarray:
    opened = Answerer(case.folder, compute)
    prompt = opened.prompt([user_turn(case.prompt, len(case.pictures))], 1, images=case.pictures)
    layouts = opened.layouts(case.pictures)
    pixels = case.pixels(layouts) if layouts else np.zeros((0, 1, 1, 3), np.float32)
    newline = len(pixels) * opened.config.patches
    index = np.where(prompt.placeholders == NEWLINE, newline, prompt.placeholders)
    row = prompt.tokens[None], index[None], pixels[None]
    return np.asarray(all_logits(opened.model, opened.params, *row))


def test_the_reference_holds_what_is_tested_here(oracle):
    assert sorted(folder.name for folder in oracle.iterdir()) == sorted(NAMES)


def test_some_turns_of_the_reference_end_early(oracle):
    cases = [Case(oracle / name) for name in NAMES]
    assert any(1 < len(until_stop(case)) < len(case.greedy) for case in cases)


def test_pixel_values_from_the_image_files(llava):
    opened = Answerer(llava.folder)
    vision = opened.config.vision
    assert vision is not None
    ours = np.concatenate([one.pixels for one in opened.pictures(llava.pictures)])
    ours = decode.normalise(ours, vision.image_mean, vision.image_std)
    given = llava.pixels(opened.layouts(llava.pictures))
    # the bfloat16 model was given its pixels in bfloat16: half a unit in the last of 8 bits
    rounding = 2**-8 * np.abs(given) if llava.folder.name == "llava_bf16" else 0
    assert np.all(np.abs(ours - given) <= 1e-5 + rounding)


def test_prompt_ids_equal_the_processors(case):
    opened = Answerer(case.folder)
    prompt = opened.prompt([user_turn(case.prompt, len(case.pictures))], 1, images=case.pictures)
    assert prompt.tokens.tolist() == case.expected["input_ids"][0].tolist()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llava_bf16"])
def test_logits(oracle, name):
    case = Case(oracle / name)
    np.testing.assert_allclose(our_logits(case), case.expected["logits"], atol=2e-4, rtol=0)


def test_bfloat16_logits(oracle):
    """In float32 equal to torch in float32; equal to the stored logits as far as bfloat16 can be.

    bfloat16 rounds to u = 2^-8 relative at most. A logit passes about 40 roundings (8 in each of
    the 2 + 3 blocks) that add like a random walk: sqrt(40) u = 2.5 % of the logits' root mean
    square for torch's rounding, sqrt(2) times that where both sides round.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = Case(oracle / "llava_bf16")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        case.folder, dtype=torch.float32
    )
    given = {k: torch.from_numpy(case.expected[k]) for k in ("input_ids", "pixel_values")}
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    exact = our_logits(case)
    np.testing.assert_allclose(exact, expected, atol=2e-4, rtol=0)
    rounded = our_logits(case, ComputeConfig(compute="bfloat16", remat="none"))
    stored = case.expected["logits"]
    assert error(exact, stored) < 40**0.5 * 2**-8
    assert error(rounded, stored) < 80**0.5 * 2**-8


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))


def test_greedy_tokens(case):
    answer = generate(case.folder, case.prompt, case.pictures, max_new_tokens=12, end_ids=())
    assert answer.tokens == case.greedy
    assert answer.prompt_tokens == case.expected["input_ids"][0].tolist()


def words(case: Case) -> list[str]:
    pictures = [word for path in case.pictures for word in ("--image", str(path))]
    flags = ["--prompt", case.prompt, *pictures, "--max-new-tokens", "12", "--json"]
    return ["generate", str(case.folder), *flags]


def until_stop(case: Case) -> list[int]:
    """What transformers would append if it were not told to go on behind the end of the turn."""
    stop = json.loads((case.folder / "generation_config.json").read_text())["eos_token_id"]
    found = case.greedy.index(stop) + 1 if stop in case.greedy else len(case.greedy)
    return case.greedy[:found]


def test_greedy_tokens_through_the_command_line(case, capsys):
    assert command_line.main(words(case)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"text", "tokens", "prompt_tokens"}
    assert printed["tokens"] == until_stop(case)
    assert printed["prompt_tokens"] == case.expected["input_ids"][0].tolist()


def test_the_command_itself(oracle):
    """As a process of its own: standard output holds one JSON object and nothing else."""
    case = Case(oracle / "llava_two_images")
    command = [sys.executable, "-m", "mllm_jax", *words(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout)["tokens"] == until_stop(case)
