"""Hugging Face -> model folder -> Hugging Face at full 8B size: bits, memory and time beside `cp`.

Makes a LLaVA folder of CLIP ViT-L/14-336 and Llama 3 8B (bfloat16, 16.7 GB) from a seed, written by
the safetensors library, and keeps a hash of every tensor. Then `mllm-jax convert from-hf` and
`to-hf`, and `cp -r` before and after each, every one in a process of its own. The same rules for
all: the files that are read are out of the page cache, and the clock stops when all written files
are on the disk (fsync). What is not needed any more is deleted on the way; 50 GB of disk are
enough. Prints one JSON object.

    python tests/benchmarks/big_convert.py --out DIR [--layers 32]
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mllm_jax.common.versions import versions
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.tokenizer import make_tokenizer

SHARD_BYTES = 10**9
BF16 = np.dtype(ml_dtypes.bfloat16)
LIBRARIES = ("jax", "orbax-checkpoint", "tensorstore", "safetensors", "numpy")
VOCAB, WIDTH, MLP, HEADS, KV_HEADS, HEAD = 128256, 4096, 14336, 32, 8, 128
V_WIDTH, V_MLP, V_LAYERS, PATCHES = 1024, 4096, 24, 576


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape, as transformers writes LLaVA."""
    tower, text = "vision_tower.vision_model.", "language_model.model."
    found: dict[str, tuple[int, ...]] = {
        f"{tower}embeddings.class_embedding": (V_WIDTH,),
        f"{tower}embeddings.patch_embedding.weight": (V_WIDTH, 3, 14, 14),
        f"{tower}embeddings.position_embedding.weight": (PATCHES + 1, V_WIDTH),
        "multi_modal_projector.linear_1.weight": (WIDTH, V_WIDTH),
        "multi_modal_projector.linear_1.bias": (WIDTH,),
        "multi_modal_projector.linear_2.weight": (WIDTH, WIDTH),
        "multi_modal_projector.linear_2.bias": (WIDTH,),
        f"{text}embed_tokens.weight": (VOCAB, WIDTH),
        f"{text}norm.weight": (WIDTH,),
        "language_model.lm_head.weight": (VOCAB, WIDTH),
    }
    norms = [f"{tower}pre_layrnorm", f"{tower}post_layernorm"]
    for i in range(V_LAYERS):
        at = f"{tower}encoder.layers.{i}."
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
        for name in "qkv":
            found |= _linear(f"{at}self_attn.{name}_proj", V_WIDTH, V_WIDTH)
        found |= _linear(f"{at}self_attn.out_proj", V_WIDTH, V_WIDTH)
        found |= _linear(f"{at}mlp.fc1", V_MLP, V_WIDTH) | _linear(f"{at}mlp.fc2", V_WIDTH, V_MLP)
    found |= {f"{norm}.{kind}": (V_WIDTH,) for norm in norms for kind in ("weight", "bias")}
    for i in range(layers):
        at = f"{text}layers.{i}."
        found |= {
            f"{at}input_layernorm.weight": (WIDTH,),
            f"{at}post_attention_layernorm.weight": (WIDTH,),
            f"{at}self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
            f"{at}self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
            f"{at}mlp.gate_proj.weight": (MLP, WIDTH),
            f"{at}mlp.up_proj.weight": (MLP, WIDTH),
            f"{at}mlp.down_proj.weight": (WIDTH, MLP),
        }
    return found


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def make(folder: Path, layers: int) -> dict[str, str]:
    """Writes the folder; returns name -> hash. The numbers are normal, like trained weights."""
    folder.mkdir(parents=True)
    todo, hashes = shapes(layers), {}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in todo.items():
        nbytes = 2 * math.prod(shape)
        if filled and filled + nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    weight_map = {}
    for n, names in enumerate(shards):
        file = f"model-{n + 1:05}-of-{len(shards):05}.safetensors"
        held = {}
        for k, name in enumerate(names):
            random = np.random.default_rng([n, k])
            held[name] = random.standard_normal(todo[name], np.float32).astype(BF16)
            hashes[name] = hashlib.sha256(held[name].tobytes()).hexdigest()
            weight_map[name] = file
        entries = {
            name: safetensors.TensorSpec(
                dtype="bfloat16", shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes
            )
            for name, x in held.items()
        }
        safetensors.serialize_file(entries, str(folder / file), {"format": "pt"})
    total = sum(2 * math.prod(shape) for shape in todo.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(layers)))
    letters = [chr(code) for code in range(97, 123)]
    texts = [a * 2 + b for a in letters for b in letters] * 3
    make_tokenizer(texts, folder, TEMPLATES["llama3"], 320)
    return hashes


def config(layers: int) -> dict[str, Any]:
    """config.json of the folder."""
    text = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": MLP,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": V_WIDTH, "intermediate_size": V_MLP,
        "num_hidden_layers": V_LAYERS, "num_attention_heads": 16, "image_size": 336,
        "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 768,
    }  # fmt: skip
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 319,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": vision,
    }


def read_hashes(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, hash) of every tensor, one in memory at a time, by the safetensors format itself."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                assert entry["dtype"] == "BF16", (name, entry)
                opened.seek(8 + length + begin)
                yield name, hashlib.sha256(opened.read(end - begin)).hexdigest()


def timed(words: list[str], read: Path, written: Path) -> tuple[float, float]:
    """(seconds until all is on the disk, peak memory in GiB) of a command in its own process."""
    for file in _files(read):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)}: ended with {process.returncode}")
    for file in _files(written):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in _files(folder)) / 1e9


def run(out: Path, layers: int) -> dict[str, Any]:
    """Everything in order; `out` is empty afterwards."""
    source, copy, ours, again = (out / name for name in ("hf", "copy", "model", "hf-again"))
    # in a process of its own: a command would inherit this one's peak memory
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        hashes = pool.submit(make, source, layers).result()
    size = _gigabytes(source)
    convert = [sys.executable, "-m", "mllm_jax", "convert"]
    before = copied(source, copy)
    to_ours = timed([*convert, "from-hf", str(source), str(ours)], source, ours)
    between = copied(source, copy)
    stored = _gigabytes(ours)
    shutil.rmtree(source)
    to_hf = timed([*convert, "to-hf", str(ours), str(again)], ours, again)
    same = _known(dict(read_hashes(again))) == _known(hashes)
    shutil.rmtree(again)
    after = copied(ours, copy)
    shutil.rmtree(ours)
    return {
        "layers": layers,
        "gigabytes": round(size, 2),
        "stored_gigabytes": round(stored, 2),
        "cp_seconds": [round(x, 1) for x in (before, between, after)],
        "from_hf_seconds": round(to_ours[0], 1),
        "to_hf_seconds": round(to_hf[0], 1),
        "from_hf_of_cp_speed": round((before + between) / 2 / to_ours[0], 2),
        "to_hf_of_cp_speed": round((between + after) / 2 / to_hf[0], 2),
        "from_hf_peak_gib": round(to_ours[1], 2),
        "to_hf_peak_gib": round(to_hf[1], 2),
        "bit_identical": same,
        "tensors": len(hashes),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),  # of the last 15 minutes, ours included
        "versions": versions(*LIBRARIES),
    }


def copied(source: Path, out: Path) -> float:
    """Seconds of `cp -r`; the copy is removed."""
    seconds, _ = timed(["cp", "-r", str(source), str(out)], source, out)
    shutil.rmtree(out)
    return seconds


def _known(hashes: dict[str, str]) -> dict[str, str]:
    """By the names of today's transformers, which the export writes."""
    return {name.replace(".vision_model.", "."): value for name, value in hashes.items()}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--layers", type=int, default=32)
    options = p.parse_args()
    print(json.dumps(run(options.out, options.layers)))


if __name__ == "__main__":
    main()
