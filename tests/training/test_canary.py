"""A task that cannot be learnt is not learnt; were the targets not shifted, it would be at once.

Answers of random letters: a model that sees the letter it has to say (8.8 -> 0 nats within a few
steps in a trainer that forgot the shift, KempnerForge PR 155) sings.
"""

import json

import jax
import numpy as np
import pytest

from mllm_jax.data.loader import Loader
from mllm_jax.training.loop import train
from tests.support import tiny

STEPS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Conversations whose answers are noise."""
    folder = tmp_path_factory.mktemp("noise")
    tiny.make_data(folder)
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    records = [
        {
            "id": str(n),
            "language": "eu",
            "conversations": [
                {"from": "human", "value": "Zer?"},
                {"from": "gpt", "value": " ".join(rng.choice(letters, 30))},
            ],
        }
        for n in range(300)
    ]
    (folder / "noise.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def losses(data, out) -> list[float]:
    streams = {"noise": {"path": str(data / "noise.json"), "format": "llama3"}}
    config = tiny.config(
        data,
        out,
        data={"streams": streams, "image_slots": 0},
        model={"vision": None, "connector": None, "image_token": None},
        train={"steps": STEPS, "save_every": STEPS},
        optimizer={"learning_rate": 1e-2},
    )
    run = train(config, devices=jax.devices()[:1])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_noise_is_not_learnt(data, tmp_path):
    found = losses(data, tmp_path / "run")
    # half of the tokens of an answer are letters at log(26) = 3.26 nats, with or without a space
    assert min(found[-5:]) > 1.2, found


def test_without_the_shift_it_would_be(data, tmp_path, monkeypatch):
    """The canary can sing: each position is asked for the token that stands there."""
    shifted = Loader.batch

    def unshifted(self, step):
        host = shifted(self, step)
        return host._replace(batch=host.batch._replace(targets=host.batch.tokens))

    monkeypatch.setattr(Loader, "batch", unshifted)
    found = losses(data, tmp_path / "run")
    assert max(found[-5:]) < 0.6, found
