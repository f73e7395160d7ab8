"""Rotary positions of config.json: every dialect, and places that contradict each other."""

from typing import Any

import pytest

from mllm_jax.checkpoints.hf.rope import read_rope, write_rope
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.fields import Fields
from mllm_jax.config.model import RopeConfig

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPE = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
NEW = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
OLD = {"rope_type": "llama3", **LLAMA3}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RopeConfig(1e4)),
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, ROPE),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}, ROPE),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, ROPE),
        ({"rope_theta": 5e5, "rope_scaling": OLD, "rope_parameters": NEW}, ROPE),
        ({"rope_scaling": NEW, "rope_parameters": NEW}, ROPE),
        ({"rope_theta": 5e5, "rope_scaling": {}, "rope_parameters": None}, RopeConfig(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(5e5)),
    ],
)
def test_rotary_positions_in_every_dialect(fields: dict[str, Any], expected: RopeConfig) -> None:
    assert read_rope(Fields("here", fields)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'; expected"),
        ({"rope_scaling": {"type": "yarn", "beta_fast": 32}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "without low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "full_attention not supported",
        ),
        ({"rope_scaling": [1]}, r"rope_scaling=\[1\]; expected an object"),
        ({"rope_scaling": "llama3"}, "rope_scaling='llama3'; expected an object"),
        ({"rope_scaling": OLD | {"factor": "8.0"}}, "factor='8.0'; expected a number"),
        ({"rope_scaling": OLD | {"high_freq_factor": 1.0}}, "low_freq_factor=1.0 must be below"),
        ({"rope_scaling": OLD | {"original_max_position_embeddings": 64.0}}, "=64.0; expected"),
        ({"rope_scaling": OLD | {"type": "default"}}, "rope_type='llama3' and type='default'"),
        ({"rope_theta": "5e5"}, "rope_theta='5e5'; expected a number"),
        ({"rope_theta": 0}, "rope_theta=0; expected a number from 1"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^here.*{message}"):
        read_rope(Fields("here", fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": OLD, "rope_parameters": NEW},  # transformers 5: theta 10,000
        {"rope_scaling": OLD, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": NEW, "rope_parameters": NEW | {"factor": 4.0}},
        {"rope_theta": 1e4, "rope_parameters": NEW},  # transformers 4: theta 10,000
        {"rope_theta": 1e4, "rope_scaling": NEW},
        {"rope_theta": 1e6, "rope_parameters": NEW},
    ],
)
def test_contradictions(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="contradict each other"):
        read_rope(Fields("here", fields))


@pytest.mark.parametrize("rope", [ROPE, RopeConfig(1e4)])
def test_written_is_read(rope: RopeConfig) -> None:
    assert read_rope(Fields("here", write_rope(rope))) == rope
