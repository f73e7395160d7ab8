"""Runs the `peft` library, in a process of its own: opens adapter folders, and makes random ones.

    python -m tests.support.peft_models JOBS.json

A job names a Hugging Face folder `base` with an `expected.npz` (see `reference_checkpoints`), and
`ours` or `theirs`: an adapter folder that is opened, or that is made by `lora` (LoraConfig's
arguments) with random numbers. The logits of expected.npz's inputs are written to `logits`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(job)


def run(job: dict[str, Any]) -> None:
    base = Path(job["base"])
    inputs = dict(np.load(base / "expected.npz"))
    images = "pixel_values" in inputs
    kind: Any = LlavaForConditionalGeneration if images else AutoModelForCausalLM
    model = kind.from_pretrained(base, dtype=torch.float32)
    if "ours" in job:
        model = PeftModel.from_pretrained(model, job["ours"])
    else:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(**job["lora"]))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
                assert "lora_" in name or "modules_to_save" in name, name
        model.save_pretrained(job["theirs"])
        model = PeftModel.from_pretrained(
            kind.from_pretrained(base, dtype=torch.float32), job["theirs"]
        )
    given = {"input_ids": torch.tensor(inputs["input_ids"])}
    if images:
        given["pixel_values"] = torch.tensor(inputs["pixel_values"])
    with torch.no_grad():
        logits = model.eval()(**given).logits
    np.save(job["logits"], logits.numpy())


if __name__ == "__main__":
    main()
