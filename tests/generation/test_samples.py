"""Sample answers of a run in training are those that its checkpoint gives."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import Config, MeshConfig
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.samples import sampler
from mllm_jax.training.loop import train
from tests.support import tiny


def config(data: Path, out: Path, samples: int = 3) -> Config:
    """Held-out records that differ from the trained ones by their ids."""
    heldout = out.parent / "heldout.json"
    records = [
        record | {"id": f"{language}-{record['id']}"}
        for language in ("eu", "en")
        for record in json.loads((data / f"{language}.json").read_text())[1:5]
    ]
    heldout.write_text(json.dumps(records), encoding="utf-8")
    evaluate = {"data": str(heldout), "images": str(data / "images"), "every": 100}
    evaluate |= {"samples": samples, "max_new_tokens": 8}
    return tiny.config(data, out, train={"steps": 12, "save_every": 12, "evaluate": evaluate})


@pytest.mark.parametrize(
    "mesh",
    [{"data": 1}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_samples_are_the_answers_of_the_checkpoint(data, tmp_path, mesh):
    """Also three rows on a mesh whose rows come in fours, with parameters in parts."""
    raw = config(data, tmp_path / "run")
    devices = jax.devices()[: math.prod(mesh.values())]
    run = train(dataclasses.replace(raw, mesh=MeshConfig(**mesh)), False, devices, sampler=sampler)
    (file,) = (run / "samples").iterdir()
    heading, *parts = file.read_text(encoding="utf-8").split("--- ")
    assert file.name == "step-000012.txt" and heading.startswith("step 12, held-out loss ")
    assert [part.splitlines()[0] for part in parts] == [
        "heldout/eu-1 (eu)",
        "heldout/en-1 (en)",
        "heldout/eu-2 (eu)",
    ]
    opened = Answerer(run)
    for part, number in zip(parts, (1, 1, 2), strict=True):
        language = part[len("heldout/") :][:2]
        turn = user_turn(tiny.QUESTION[language], 1)
        prompt = opened.prompt([turn], 8)
        pictures = opened.pictures([data / "images" / f"{number}.png"])
        (ids,) = opened.answer([prompt], [pictures], 8)
        assert part.rstrip().endswith(f"answer:   {opened.text(ids).strip()}".rstrip())
        assert "<image>" in part and tiny.QUESTION[language] in part
    expected = json.loads((tmp_path / "heldout.json").read_text())[0]["conversations"][1]["value"]
    assert f"expected: {expected}\n" in parts[0]


def test_samples_need_a_sampler_and_one_process(data, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"^train.evaluate.samples=3: pass sampler="):
        train(config(data, tmp_path / "run"))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"samples=3: sample answers .* of one process only"):
        train(config(data, tmp_path / "run"), sampler=sampler)
    assert not (tmp_path / "run" / "config.yaml").exists()
