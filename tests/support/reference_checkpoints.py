"""Makes small Hugging Face checkpoints and records what stock transformers computes from them.

    python -m tests.support.reference_checkpoints OUT

OUT/NAME is a complete folder (weights, config, tokenizer; processor and chat template as well) for
each NAME of `REFERENCES`. Weights are random, sizes tiny, but every part has a size of its own, so
that mixed-up axes show. OUT/NAME/image_0.png, ... are the pictures, and expected.npz holds:

    question      what the user asks, without the chat template
    prompt        the text given to the tokenizer or processor
    input_ids     int64 [1, T], each image token repeated once per patch
    pixel_values  float32 [I, C, height, width], if there are pictures; LLaVA-NeXT: [I, tiles, ...]
    image_sizes   int64 [I, 2], LLaVA-NeXT: height, width of the pictures
    logits        float32 [1, T, V]
    greedy        int64 [12], generated without stopping at the end of a turn
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # installed for tests, on Python 3.11
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

IMAGE_SIZE, PATCH_SIZE = 28, 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]  # height, width
NEW_TOKENS = 12
UNUSED_ROWS = 5  # of the token table, as published models have them
# A greedy choice must not depend on how a sum was rounded: the least difference between the two
# highest scores, in units of the logits' root mean square, for each number format.
LEAST_MARGIN = {torch.float32: 0.03, torch.bfloat16: 0.1}

BEGIN, END = "<|begin_of_text|>", "<|eot_id|>"
PADDING, IMAGE = "<|finetune_right_pad_id|>", "<image>"
HEADER = "<|start_header_id|>", "<|end_header_id|>"
CHAT_TEMPLATE = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<image>\n' if part.type == 'image' else part.text | trim }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
TEXTS = (  # enough for all merges of the vocabulary
    "Mendi gainean elurra dago oraindik, baina herriko plazan haurrak jolasean dabiltza.",
    "Zenbat itsasontzi daude portuan? Hiru txiki eta bat handia, denak urdinez margotuta.",
    "Who is standing beside the red bicycle? An old woman with two baskets of apples.",
    "Quante finestre ha la casa gialla? Ne ha quattro, e una porta verde verso il giardino.",
    "¿De qué color es el paraguas? Es blanco con rayas azules, y está abierto bajo la lluvia.",
    "Que hai na mesa? Un prato de peixe, pan recén feito e unha xerra de auga fría.",
)


class Reference(NamedTuple):
    """One checkpoint and the conversation it is asked to continue."""

    seed: int
    question: str
    build: Callable[[Any], Any]  # a model with transformers' initial weights
    pictures: tuple[tuple[int, int], ...] = ()  # (height, width)
    dtype: torch.dtype = torch.float32
    shard: str | None = None  # largest file of weights: more than one file
    one_layer: bool = False  # whether LLaVA's two layers compute one
    tokenizer: Callable[[], Any] | None = None  # another than `make_tokenizer`


def main() -> None:
    """Makes every reference in the folder given on the command line."""
    parser = argparse.ArgumentParser(description="makes the reference checkpoints for parity tests")
    parser.add_argument("out", type=Path, metavar="OUT")
    out = parser.parse_args().out
    for name, reference in REFERENCES.items():
        make(out / name, reference)


def make(folder: Path, reference: Reference) -> None:
    """Writes a checkpoint's folder with its pictures and `expected.npz`."""
    torch.manual_seed(reference.seed)
    rng = np.random.default_rng(reference.seed)
    tokenizer: Any = (reference.tokenizer or make_tokenizer)()
    model = reference.build(tokenizer)
    spread(model)
    if reference.one_layer:
        one_layer(model.model.multi_modal_projector, model.config.projector_hidden_act)
    model = model.to(reference.dtype).eval()
    processor = make_processor(tokenizer, model.config) if reference.pictures else None
    pictures = [picture(rng, height, width) for height, width in reference.pictures]
    prompt = make_prompt(tokenizer, reference.question, len(pictures))
    inputs = make_inputs(tokenizer, processor, prompt, pictures, reference.dtype)
    expected = compute(model, inputs, tokenizer.pad_token_id)

    model.save_pretrained(
        folder, **({} if reference.shard is None else {"max_shard_size": reference.shard})
    )
    (processor or tokenizer).save_pretrained(folder)
    for number, image in enumerate(pictures):
        image.save(folder / f"image_{number}.png")
    texts: dict[str, Any] = {"question": np.array(reference.question), "prompt": np.array(prompt)}
    arrays: dict[str, Any] = {name: as_numpy(x) for name, x in (inputs | expected).items()}
    np.savez(folder / "expected.npz", **(texts | arrays))


def compute(model: Any, inputs: dict[str, Any], padding: int) -> dict[str, Any]:
    """The prompt's logits, and the tokens that greedy decoding appends to it."""
    with torch.no_grad():
        logits = model(**inputs).logits
        generated = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=padding,
            output_scores=True,
            return_dict_in_generate=True,
        )
    scores = torch.cat(generated.scores).float()
    first, second = scores.topk(2).values.unbind(-1)
    margin = float((first - second).min() / scores.square().mean().sqrt())
    least = LEAST_MARGIN[model.dtype]
    assert margin >= least, f"greedy choice too close: margin {margin:.4f}, at least {least}"
    return {"logits": logits, "greedy": generated.sequences[0, inputs["input_ids"].shape[1] :]}


# ------------------------------------------------------------------------------------------ inputs


def make_tokenizer() -> PreTrainedTokenizerFast:
    """400 pieces of byte-level BPE, then Llama 3's special tokens and LLaVA's image token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    pieces.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        extra_special_tokens=["<|end_of_text|>", *HEADER, IMAGE],
        model_max_length=4096,
    )
    assert len(tokenizer) == 407
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.image_token = IMAGE
    return tokenizer


def make_processor(tokenizer: Any, config: Any) -> LlavaProcessor | LlavaNextProcessor:
    """LLaVA-1.5's processor for the model's tower, or LLaVA-NeXT's with tiles of its size."""
    clip = config.vision_config.model_type == "clip_vision_model"
    is_next = config.model_type == "llava_next"
    size = config.vision_config.image_size
    square = {"height": size, "width": size}
    cropped: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": square}
    if is_next:
        pixels = LlavaNextImageProcessorPil(**cropped, image_grid_pinpoints=PINPOINTS)
    else:
        pixels = CLIPImageProcessorPil(**cropped) if clip else SiglipImageProcessorPil(size=square)
    return (LlavaNextProcessor if is_next else LlavaProcessor)(
        pixels,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(clip),  # the class token, which is then left out
        chat_template=tokenizer.chat_template,
    )


def make_prompt(tokenizer: PreTrainedTokenizerFast, question: str, images: int) -> str:
    """One user turn, images first, up to where the assistant answers."""
    content = [*[{"type": "image"}] * images, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def make_inputs(
    tokenizer: PreTrainedTokenizerFast,
    processor: Any,  # None: text only
    prompt: str,
    pictures: list[Image.Image],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What the model is called with."""
    if processor is None:
        encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        return {"input_ids": encoded["input_ids"]}
    encoded = processor(text=prompt, images=pictures, return_tensors="pt")
    sizes = {"image_sizes": encoded["image_sizes"]} if "image_sizes" in encoded else {}
    return {
        "input_ids": encoded["input_ids"],
        "pixel_values": encoded["pixel_values"].to(dtype),
        **sizes,
    }


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Waves of random direction and length in each colour, with noise that resizing smooths."""
    y, x = np.indices((height, width))[..., None]
    down, across, phase = rng.uniform(-0.5, 0.5, (3, 3))
    waves = 100 * np.sin(down * y + across * x + 6 * phase)
    noise = rng.normal(0, 15, (height, width, 3))
    return Image.fromarray((128 + waves + noise).clip(0, 255).astype(np.uint8))


def as_numpy(x: torch.Tensor) -> np.ndarray:
    """numpy has no bfloat16: float32 holds its values exactly."""
    return (x.float() if x.is_floating_point() else x).numpy()


# ------------------------------------------------------------------------------------------ models


def language(tokenizer: Any, *, llama3_rope: bool, tied: bool) -> LlamaConfig:
    """A Llama with grouped heads; Llama 3.1's RoPE begins to stretch within the prompt."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e5}
    if llama3_rope:
        rope |= {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaConfig(
        vocab_size=len(tokenizer) + UNUSED_ROWS,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def llama(tokenizer: Any, *, llama3_rope: bool = True, tied: bool = False) -> LlamaForCausalLM:
    """A text-only model."""
    return LlamaForCausalLM(language(tokenizer, llama3_rope=llama3_rope, tied=tied))


def llava(
    tokenizer: Any, activation: str = "gelu", vision_width: int = 48, is_next: bool = False
) -> LlavaForConditionalGeneration | LlavaNextForConditionalGeneration:
    """A LLaVA-1.5 or LLaVA-NeXT whose connector has this activation between its layers."""
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=32,
    )
    fields: dict[str, Any] = {
        "vision_config": vision,
        "text_config": language(tokenizer, llama3_rope=True, tied=False),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "projector_hidden_act": activation,
    }
    if is_next:
        config = LlavaNextConfig(**fields, image_grid_pinpoints=PINPOINTS)
        return LlavaNextForConditionalGeneration(config)
    return LlavaForConditionalGeneration(LlavaConfig(**fields))


def llava_siglip(
    tokenizer: Any, layer: int, is_next: bool = False
) -> LlavaForConditionalGeneration | LlavaNextForConditionalGeneration:
    """A LLaVA with SigLIP's tower; without tiles its side holds no whole number of patches."""
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE if is_next else IMAGE_SIZE + PATCH_SIZE - 1,
        patch_size=PATCH_SIZE,
    )
    fields: dict[str, Any] = {
        "vision_config": vision,
        "text_config": language(tokenizer, llama3_rope=True, tied=False),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": "full",
    }
    if is_next:
        config = LlavaNextConfig(**fields, image_grid_pinpoints=PINPOINTS)
        return LlavaNextForConditionalGeneration(config)
    return LlavaForConditionalGeneration(LlavaConfig(**fields))


@torch.no_grad()
def spread(model: Any) -> None:
    """Makes weights six times wider and moves norms and biases off their initial values.

    With transformers' own initial values logits are close to each other, and a norm or bias that
    was never read would go unnoticed.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter *= 6
        else:
            parameter += torch.randn_like(parameter) / 10


@torch.no_grad()
def one_layer(connector: Any, activation: str) -> None:
    """Makes stock LLaVA's two layers compute one: with an identity, or as gelu(x) - gelu(-x) = x.

    The first needs no activation; the second a text width of twice the vision width.
    """
    first, second = connector.linear_1, connector.linear_2
    if activation == "linear":
        torch.nn.init.eye_(second.weight)
        torch.nn.init.zeros_(second.bias)
        return
    features, kernel = first.in_features, second.weight[:, : first.in_features].clone()
    torch.nn.init.zeros_(first.bias)
    for matrix in (first.weight, second.weight):
        torch.nn.init.zeros_(matrix)
    for start, sign in ((0, 1), (features, -1)):
        first.weight[range(start, start + features), range(features)] = sign
        second.weight[:, start : start + features] = sign * kernel


LONG = "Mendi gainean elurra dago oraindik. " * 6  # well beyond Llama 3.1's original length of 64
SQUARE, WIDE, TALL = (40, 40), (30, 75), (90, 33)
SMALL, ODD = (20, 20), (51, 61)  # a square takes the first of two canvases
# Seeds for clear greedy choices, and for logits that float32 tells to 1e-4: of siglip_last with
# seed 0, and of next_siglip with seed 2, torch's are 5e-4 from those in float64. llama
# and llava_linear end their turn early.
REFERENCES = {
    "llama": Reference(10, LONG, functools.partial(llama, llama3_rope=False)),
    "llama31": Reference(90, LONG, llama),
    "llama32_tied": Reference(46, LONG, functools.partial(llama, tied=True)),
    "llava_mlp": Reference(16, "Zenbat itsasontzi daude portuan?", llava, (WIDE,), shard="100KB"),
    "llava_linear": Reference(
        98,
        "Who is standing there?",
        functools.partial(llava, activation="linear"),
        (TALL,),
        one_layer=True,
    ),
    "llava_linear_gelu": Reference(
        1,
        "Zer dago mahai gainean?",
        functools.partial(llava, vision_width=32),
        (WIDE,),
        one_layer=True,
    ),
    "llava_two_images": Reference(21, "Zertan dira desberdinak?", llava, (SQUARE, TALL)),
    "llava_siglip": Reference(
        4,
        "Zenbat sagar daude saskian?",
        functools.partial(llava_siglip, layer=-2),
        (WIDE, TALL),
    ),
    "llava_siglip_last": Reference(
        15, "Quante finestre ha la casa?", functools.partial(llava_siglip, layer=-1), (TALL,)
    ),
    "llava_bf16": Reference(
        56, "Di che colore è la porta?", llava, (SQUARE,), dtype=torch.bfloat16
    ),
    "llava_next_mlp": Reference(
        13, "Zenbat itsasontzi daude portuan?", functools.partial(llava, is_next=True), (WIDE,)
    ),
    "llava_next_linear": Reference(
        5,
        "Who is standing there?",
        functools.partial(llava, vision_width=32, is_next=True),
        (TALL,),
        one_layer=True,
    ),
    "llava_next_siglip": Reference(
        7,
        "Zenbat sagar daude saskian?",
        functools.partial(llava_siglip, layer=-2, is_next=True),
        (WIDE, ODD),
    ),
    "llava_next_two_images": Reference(
        6, "Zertan dira desberdinak?", functools.partial(llava, is_next=True), (SMALL, ODD)
    ),
}


if __name__ == "__main__":
    main()
