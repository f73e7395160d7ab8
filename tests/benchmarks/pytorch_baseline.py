"""PyTorch baseline of `mllm-jax bench --size`: transformers' LLaVA, trained on the same rows.

Sizes, rows and JSON field names are those of `mllm-jax bench`, so the two results can be divided.
Weights are random. A step is forward, backward, clipping by the global norm, AdamW, and the loss
fetched to the host. Prints one JSON object. `mllm-jax bench --size small --baseline` runs it in
turn with ours, in the best of its settings.

    python -m tests.benchmarks.pytorch_baseline --size small --length 1024 --batch 2 --threads 2
    python -m tests.benchmarks.pytorch_baseline --size 8b --length 2048 --batch 8 --device cuda \\
        --dtype bfloat16 --attention flash_attention_2 --compile --remat
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  # installed for tests, on Python 3.11
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mllm_jax.commands.bench import work as bench
from mllm_jax.commands.bench.request import STEPS, WARMUP
from mllm_jax.config.model import ModelConfig

FROZEN = {  # by transformers' names of the parameters
    "align": r"\.(vision_tower|language_model)\.|^lm_head\.",
    "instruct": r"\.vision_tower\.",
    "full": r"(?!)",
}
ADAPTED = r".*\.language_model\..*_proj"  # the matrices that --lora adapts
IGNORED = -100  # transformers' label of a token that is not trained


def build(size: str, connector: str = "mlp") -> LlavaForConditionalGeneration:
    """transformers' model of a key of `bench.SIZES`."""
    vision, language = bench.SIZES[size]
    width, mlp, layers, heads, image, patch = vision
    vision_config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
    )
    width, mlp, layers, heads, kv_heads, vocab = language
    language_config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        use_cache=False,
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=language_config,
        image_token_index=vocab - 1,
        image_seq_length=(image // patch) ** 2,
        projector_hidden_act="gelu" if connector == "mlp" else "linear",
    )
    return LlavaForConditionalGeneration(config)


def trained_parameters(model: LlavaForConditionalGeneration, stage: str) -> list[Any]:
    """The parameters that a stage trains; freezes the others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(FROZEN[stage], name) is None)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_model(options: argparse.Namespace, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """The model on its device, in its number format."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            model = build(options.size, options.connector)
    finally:
        torch.set_default_dtype(default)
    model.set_attn_implementation(options.attention)
    if options.remat:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def with_adapters(model: LlavaForConditionalGeneration, rank: int) -> Any:
    """The model with PEFT's adapters of the language layers, beside which the connector is trained.

    What is frozen stays as it is, as in `bench.from_size`.
    """
    import peft  # pyright: ignore[reportMissingImports]  # for --lora alone

    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    return adapted


def make_inputs(
    model: ModelConfig, options: argparse.Namespace, dtype: torch.dtype
) -> dict[str, Any]:
    """The rows of `bench.synthetic` as transformers takes them."""
    batch = bench.synthetic(model, options.batch, options.length, not options.text_only)
    ids = torch.from_numpy(batch.tokens).long()
    labels = ids.clone()
    # transformers shifts labels itself: a token is trained where the weight before it is 1
    labels[:, 1:][torch.from_numpy(batch.weights[:, :-1]) == 0] = IGNORED
    inputs = {"input_ids": ids, "labels": labels}
    if batch.pixels.size:
        pixels = torch.from_numpy(batch.pixels).flatten(0, 1).permute(0, 3, 1, 2)
        inputs["pixel_values"] = (pixels / 127.5 - 1).to(dtype)
    return {name: x.to(options.device) for name, x in inputs.items()}


def make_step(
    model: Any, trainable: list[Any], inputs: dict[str, Any], compiled: bool
) -> Callable[[], float]:
    """A training step that returns its loss."""
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        loss = forward(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the device

    return step


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times the steps after the warm-up; field names as those of `mllm-jax bench`."""
    torch.manual_seed(0)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    model: Any = make_model(options, dtype)
    if options.lora is None:
        trainable = trained_parameters(model, options.stage)
    else:
        model = with_adapters(model, options.lora)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = bench.from_size(
        options.size, options.stage, options.length, options.batch, options.dtype, "none"
    ).model
    inputs = make_inputs(config, options, dtype)
    step = make_step(model, trainable, inputs, options.compile)
    first = time.perf_counter()
    loss = step()  # compiles, with --compile
    first = time.perf_counter() - first
    seconds, used = [], time.process_time()
    for number in range(1, options.warmup + options.steps):
        if number == options.warmup:
            seconds, used = [], time.process_time()
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    median, used = statistics.median_high(seconds), time.process_time() - used
    on_gpu = torch.device(options.device).type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "baseline": f"transformers {transformers.__version__}",
        "torch": torch.__version__,
        "size": options.size,
        "stage": options.stage,
        "dtype": options.dtype,
        "batch": options.batch,
        "length": options.length,
        "images": not options.text_only,
        "lora": options.lora,
        "attention": options.attention,
        "median_step_seconds": round(median, 4),
        "step_seconds": [round(second, 4) for second in seconds],
        "cpu_seconds": round(used / len(seconds), 4),
        "compile_seconds": round(first, 2),
        "tokens_per_second": round(options.batch * options.length / median, 1),
        "loss": round(loss, 4),
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trained in sizes if trained),
        "peak_gib": None if memory is None else round(memory / 2**30, 2),
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="times a training step of transformers' LLaVA")
    parser.add_argument("--size", choices=bench.SIZES, default="small")
    parser.add_argument("--stage", choices=FROZEN, default="instruct", help="what is trained")
    parser.add_argument("--connector", choices=("linear", "mlp"), default="mlp")
    parser.add_argument("--length", type=int, default=1024, help="tokens in a row")
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--text-only", action="store_true", help="rows without pictures")
    parser.add_argument("--lora", type=int, help="rank of PEFT's adapters, with --stage instruct")
    parser.add_argument("--steps", type=int, default=STEPS, help="timed steps")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps before those, 1 or more")
    parser.add_argument("--threads", type=int, help="torch's, on a CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2 or eager")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--remat", action="store_true", help="with gradient checkpointing")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for and prints it."""
    print(json.dumps(measure(parse(words))))


if __name__ == "__main__":
    main()
