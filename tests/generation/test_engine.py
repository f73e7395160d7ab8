"""Answers: batch = single, cache = whole row, stops, draws, literal text, and what is refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mllm_jax import __main__ as command_line
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.model import ModelConfig, VisionConfig
from mllm_jax.config.stage import FolderConfig
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.records.parse import Turn, user_turn
from mllm_jax.generation.answer import generate
from mllm_jax.generation.opened import compute_for
from mllm_jax.generation.shapes import bucket
from mllm_jax.models import decoding, mllm

# (text, images): prompts of several lengths, with none, one and two images
ASKED = [
    ("Zein kolore daude irudian?", 1),
    ("gorria?", 0),
    ("Which colours are in the picture? red, green, blue, black, white or yellow?", 2),
    ("Zein kolore daude irudian? " * 8, 1),
    ("a", 0),
]


@pytest.fixture(scope="module")
def asked(opened, data):
    """(prompts, pictures) of ASKED."""
    files = sorted((data / "images").iterdir())
    prompts = [opened.prompt([user_turn(text, count)], 16) for text, count in ASKED]
    return prompts, [opened.pictures(files[n : n + count]) for n, (_, count) in enumerate(ASKED)]


# ----------------------------------------------------------------------------------------- decoding


def test_batch_equals_single(opened, asked):
    prompts, pictures = asked
    together = opened.answer(prompts, pictures, 16, ends=())
    alone = [opened.answer([p], [own], 16, ends=())[0] for p, own in zip(*asked, strict=True)]
    assert together == alone
    assert all(len(tokens) == 16 for tokens in alone)
    assert len({tuple(tokens) for tokens in alone}) == len(ASKED)
    padded = opened.answer(prompts[:2], pictures[:2], 16, ends=(), rows=7, slots=3)
    assert padded == alone[:2]


def test_each_token_is_the_likeliest_of_the_whole_row(opened, asked):
    """No cache, no padding on the left: prompt and answer read at once give the same tokens."""

    @functools.partial(jax.jit, static_argnums=0)
    def likeliest(model, params, row):
        return jnp.argmax(mllm.logits(mllm.hidden(model, params, row), mllm.head(params)), axis=-1)

    prompts, pictures = asked
    for prompt, own in zip(prompts[:3], pictures[:3], strict=True):
        (tokens,) = opened.answer([prompt], [own], 16, ends=())
        size = len(prompt.tokens)
        whole = prompt._replace(
            tokens=np.append(prompt.tokens, tokens).astype(np.int32),
            weights=np.append(prompt.weights, np.zeros(16)).astype(np.float32),
            placeholders=np.append(prompt.placeholders, np.full(16, -1)).astype(np.int32),
        )
        row = opened.batch([whole], [own], rows=1, slots=len(own)).inputs
        found = likeliest(opened.model, opened.params, row)[0, size - 1 : size + 15]
        assert found.tolist() == tokens


def test_the_answer_depends_on_the_image(opened, data):
    prompt = opened.prompt([user_turn("Zein kolore daude irudian?", 1)], 16)
    numbers = np.arange(opened.config.patches, dtype=np.int32)
    dark, light = (Tiles(np.full((1, 16, 16, 3), v, np.uint8), numbers) for v in (0, 255))
    first, second = opened.answer([prompt] * 2, [[dark], [light]], 16, ends=())
    assert first != second


def test_stops_behind_the_first_end_token(opened, asked):
    """Every row stops on its own; the end token is part of the answer."""
    prompts, pictures = asked
    endless = opened.answer(prompts, pictures, 16, ends=())
    ends = (endless[0][4], endless[1][9])
    expected = []
    for tokens in endless:
        found = [n for n, token in enumerate(tokens) if token in ends]
        expected.append(tokens[: found[0] + 1] if found else tokens)
    assert opened.answer(prompts, pictures, 16, ends=ends) == expected
    assert len({len(tokens) for tokens in expected}) > 1


def test_a_cut_answer_is_the_beginning_of_a_longer_one(opened, asked):
    prompts, pictures = asked
    short = opened.answer(prompts[:1], pictures[:1], 1, ends=())
    assert short == [tokens[:1] for tokens in opened.answer(prompts[:1], pictures[:1], 16, ends=())]


def test_the_folder_says_what_ends_an_answer(opened):
    names = [opened.tokenizer.convert_ids_to_tokens(token) for token in opened.ends]
    assert set(names) == {"<|eot_id|>", "<|end_of_text|>"}


def test_draws_are_seeded(opened, asked):
    prompts, pictures = [asked[0][1]], [asked[1][1]]
    draw = functools.partial(opened.answer, prompts, pictures, 16, ends=(), temperature=5.0)
    assert draw(seed=3) == draw(seed=3)
    assert len({tuple(draw(seed=seed)[0]) for seed in (0, 1, -3, 2**40 + 5)}) == 4
    cold = opened.answer(prompts, pictures, 16, ends=(), temperature=1e-30)
    assert cold == opened.answer(prompts, pictures, 16, ends=())


def test_the_coldest_draw_of_large_logits_is_the_likeliest(opened, asked, monkeypatch):
    """Divided by the smallest temperature, several of them would be infinite."""
    prompts, pictures = [asked[0][1]], [asked[1][1]]
    expected = opened.answer(prompts, pictures, 16, ends=())
    head = {"language/head/kernel": opened.params["language/head/kernel"] * 1e4}
    monkeypatch.setitem(vars(opened), "params", opened.params | head)
    assert opened.answer(prompts, pictures, 16, ends=(), temperature=1e-45) == expected


def test_every_prompt_and_step_draws_numbers_of_its_own(opened, asked):
    """Equal prompts of one call, and of two calls whose prompts are numbered on, differ."""
    prompts, pictures = [asked[0][1]] * 4, [asked[1][1]] * 4
    draw = functools.partial(opened.answer, max_new_tokens=16, ends=(), temperature=1e6, seed=3)
    four = draw(prompts, pictures)
    first = draw(prompts[:2], pictures[:2], numbers=[0, 1])
    last = draw(prompts[:2], pictures[:2], numbers=[2, 3])
    assert first + last == four  # the same whatever the calls
    assert len({tuple(tokens) for tokens in four}) == 4
    assert all(len(set(tokens)) > 4 for tokens in four)  # nearly uniform: no step repeats another's


def test_a_prompt_that_fits_exactly_is_answered(opened):
    limit = opened.config.language.max_length
    opened.check_length(limit - 16, 16)
    with pytest.raises(ConfigError, match="more than the model's max_length"):
        opened.check_length(limit - 15, 16)


def test_draws_follow_the_temperature(opened, asked):
    """2,000 draws of one token: shares as softmax(logits / temperature) says."""
    prompt, temperature = asked[0][4], 20.0
    row = opened.batch([prompt], [[]], rows=1, slots=0, left=True).inputs
    slots = row.tokens.shape[1] + 1
    prefill = jax.jit(functools.partial(decoding.prefill, opened.model, slots=slots))
    expected = jax.nn.softmax(prefill(opened.params, row)[0][0] / temperature)
    drawn = opened.answer([prompt] * 2000, [[]] * 2000, 1, ends=(), temperature=temperature)
    counts = np.bincount([tokens[0] for tokens in drawn], minlength=len(expected))
    # total variation of 2,000 fair draws from V classes is about sqrt(V / (2 pi n)) = 0.16 at most
    assert 0.5 * np.abs(counts / 2000 - expected).sum() < 0.2
    assert counts.max() < 2000


# ------------------------------------------------------------------------------------------ prompts


def test_prompt_as_the_template_renders_it(opened, run, data):
    """Images first, each with its seats; one beginning token; the stock tokenizer's ids."""
    answer = generate(run, "Zer da?", sorted((data / "images").iterdir())[:2], max_new_tokens=1)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Zer da?"}]
    text = opened.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=opened.template,
        tokenize=False,
        add_generation_prompt=True,
    )
    text = text.replace("<image>", "<image>" * opened.config.patches)
    assert answer.prompt_tokens == opened.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert answer.prompt_tokens.count(opened.config.image_token) == 2 * opened.config.patches
    assert answer.prompt_tokens.count(opened.tokenizer.bos_token_id) == 1


def test_a_literal_mark_is_text(opened):
    prompt = opened.prompt([user_turn("Zer da <image> eta <|eot_id|>?")], 1)
    plain = opened.prompt([user_turn("Zer da")], 1)
    for token in (opened.config.image_token, opened.tokenizer.eos_token_id):
        assert prompt.tokens.tolist().count(token) == plain.tokens.tolist().count(token)
    assert "<image>" in opened.text(prompt.tokens.tolist())


def test_history(opened):
    """A conversation so far is rendered like the beginning of a trained one."""
    turns = [Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    whole = opened.chat.encode([*turns, Turn("assistant", ("d",))]).tokens.tolist()
    prompt = opened.prompt(turns, 1).tokens.tolist()
    assert whole[: len(prompt)] == prompt


# ------------------------------------------------------------------------------------- command line


def test_prints_json_or_text(run, data, capsys):
    picture = str(data / "images" / "0.png")
    words = [
        "generate",
        str(run),
        "--prompt",
        "Zein kolore?",
        "--image",
        picture,
        "--max-new-tokens",
        "5",
    ]
    assert command_line.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert out.count("\n") == 1 and set(found) == {"text", "tokens", "prompt_tokens"}
    assert 1 <= len(found["tokens"]) <= 5
    assert command_line.main(words) == 0
    assert capsys.readouterr().out == found["text"] + "\n"
    assert found == generate(run, "Zein kolore?", [picture], 5)._asdict()


def refused(capsys, *words: str) -> str:
    """The message of a call that must end with code 2, one line on stderr and nothing on stdout."""
    assert command_line.main(["generate", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_refuses_what_is_no_model(run, tmp_path, capsys):
    assert "no such folder" in refused(capsys, str(tmp_path / "nowhere"), "--prompt", "a")
    assert "is a file" in refused(capsys, str(run / "config.yaml"), "--prompt", "a")
    assert "not a model" in refused(capsys, str(tmp_path), "--prompt", "a")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run / "model", unfinished / "model")
    assert "without a finished checkpoint" in refused(capsys, str(unfinished), "--prompt", "a")


def test_refuses_a_vision_tower_alone(tmp_path, capsys):
    (tmp_path / "params").mkdir()
    tower = VisionConfig(image_size=8, patch_size=4, width=8, mlp=8, layers=2, heads=2)
    loading.dump(FolderConfig(ModelConfig(vision=tower)), tmp_path / "config.yaml")
    assert "no language model" in refused(capsys, str(tmp_path), "--prompt", "a")


def test_refuses_a_model_without_a_template(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model" / "chat_template.jinja").unlink()
    assert "no chat template" in refused(capsys, str(tmp_path / "run"), "--prompt", "a")


def test_refuses_what_is_no_image(run, tmp_path, capsys):
    words = (str(run), "--prompt", "a", "--image")
    assert "no such image file" in refused(capsys, *words, str(tmp_path / "a.png"))
    (tmp_path / "b.png").write_text("not a picture")
    assert "not an image" in refused(capsys, *words, str(tmp_path / "b.png"))
    Image.new("RGB", (40, 40)).save(tmp_path / "c.png")
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    assert "broken" in refused(capsys, *words, str(tmp_path / "c.png"))


def test_refuses_prompts_that_are_too_long(run, capsys):
    message = refused(capsys, str(run), "--prompt", "gorria " * 600)
    assert "max_length=512" in message and "128 for the answer" in message
    assert "max_length=512" in refused(capsys, str(run), "--prompt", "a", "--max-new-tokens", "512")


def test_refuses_a_prompt_that_is_no_text(run, capsys):
    assert "not UTF-8" in refused(capsys, str(run), "--prompt", "a\udce9")


def test_refuses_images_for_a_model_that_reads_text_only(oracle, data, capsys):
    words = (str(oracle / "llama"), "--prompt", "a", "--image", str(data / "images" / "0.png"))
    assert "reads text only" in refused(capsys, *words)


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("stored", "platform", "compute"),
    [
        ("float32", "cpu", "float32"),
        ("bfloat16", "cpu", "float32"),
        ("float16", "cpu", "float32"),
        ("float32", "gpu", "float32"),
        ("bfloat16", "gpu", "bfloat16"),
        ("float16", "tpu", "float32"),  # bfloat16 would round it
    ],
)
def test_number_format(stored, platform, compute):
    assert compute_for(stored, platform).compute == compute


def test_buckets():
    """At most a sixteenth of a row is padding."""
    assert [bucket(n) for n in (1, 64, 65, 96, 97, 128, 129, 193, 600)] == [
        64, 64, 68, 96, 100, 128, 136, 200, 608,
    ]  # fmt: skip
    sizes = {bucket(n) for n in range(1, 4097)}
    assert len(sizes) == 1 + 16 * 6
    assert all(n <= bucket(n) <= max(64, n * 1.0625) for n in range(1, 4097))
