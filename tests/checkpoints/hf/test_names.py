"""The table of names: hand-written turns, and every layout of the same tensor."""

import numpy as np
import pytest

from mllm_jax.checkpoints.hf import names as hf_names
from mllm_jax.common.errors import ConfigError


def test_rows_are_unique() -> None:
    assert len(hf_names.BY_PATH) == len(hf_names.BY_NAME) == len(hf_names.ROWS)


def test_heads_come_out_of_the_rows_of_a_projection() -> None:
    # q_proj.weight [N*H, D] with N=2 heads of H=3 over D=4: row n*3+h, column d  ->  ours[d, n, h]
    tensor = np.arange(24).reshape(6, 4)
    ours = hf_names.to_ours("language/layers/attention/q/kernel", tensor, (4, 2, 3))
    assert ours[1, 0, 2] == tensor[2, 1]
    assert ours[3, 1, 0] == tensor[3, 3]


def test_output_projection_and_patches() -> None:
    tensor = np.arange(24).reshape(4, 6)  # o_proj.weight [D, N*H]
    assert (
        hf_names.to_ours("language/layers/attention/out/kernel", tensor, (2, 3, 4))[1, 2, 3]
        == tensor[3, 5]
    )
    conv = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)  # [D, C, height, width]
    assert (
        hf_names.to_ours("vision/patch_embedding/kernel", conv, (4, 4, 3, 2))[1, 2, 0, 1]
        == conv[1, 0, 1, 2]
    )


SHAPES = {"D": 4, "C": 3, "p": 2, "q": 2, "P": 5, "N": 2, "H": 3, "K": 1, "F": 6, "V": 7}
SHAPES |= {"E": 8, "I": 1}


@pytest.mark.parametrize("row", hf_names.ROWS, ids=lambda row: row.path)
def test_every_turn_is_undone(row: hf_names.Row) -> None:
    shape = tuple(SHAPES[letter] for letter in row.turn.split("->")[1])
    array = np.random.default_rng(0).standard_normal(shape)
    tensor = hf_names.to_hf(row.path, array)
    stacked = (9, *shape) if hf_names.is_stacked(row.path) else shape
    assert tensor.shape == hf_names.hf_shape(row.path, stacked)
    assert np.array_equal(hf_names.to_ours(row.path, tensor, shape), array)


FC1 = "vision_tower.vision_model.encoder.layers.11.mlp.fc1.weight"
UP = "language_model.model.layers.3.mlp.up_proj.weight"
LAYOUTS = {
    "vision_tower.encoder.layers.11.mlp.fc1.weight": FC1,
    "vision_tower.vision_model.encoder.layers.11.mlp.fc1.weight": FC1,
    "model.vision_tower.encoder.layers.11.mlp.fc1.weight": FC1,
    "model.vision_tower.vision_model.encoder.layers.11.mlp.fc1.weight": FC1,
    "model.vision_tower.vision_tower.vision_model.encoder.layers.11.mlp.fc1.weight": FC1,
    "vision_model.encoder.layers.11.mlp.fc1.weight": FC1,
    "encoder.layers.11.mlp.fc1.weight": FC1,
    "language_model.model.layers.3.mlp.up_proj.weight": UP,
    "model.language_model.layers.3.mlp.up_proj.weight": UP,
    "model.layers.3.mlp.up_proj.weight": UP,
    "lm_head.weight": "language_model.lm_head.weight",
    "model.mm_projector.weight": "multi_modal_projector.linear_1.weight",
    "model.mm_projector.0.bias": "multi_modal_projector.linear_1.bias",
    "model.mm_projector.2.weight": "multi_modal_projector.linear_2.weight",
    "mm_projector.0.bias": "multi_modal_projector.linear_1.bias",
    "mm_projector.2.bias": "multi_modal_projector.linear_2.bias",
    "mm_projector.bias": "multi_modal_projector.linear_1.bias",
    "model.multi_modal_projector.linear_2.bias": "multi_modal_projector.linear_2.bias",
    "model.norm.weight": "language_model.model.norm.weight",
    "text_model.encoder.layers.0.mlp.fc1.weight": None,
    "model.image_newline": "image_newline",
    "image_newline": "image_newline",
    "image_newline.weight": None,
    "model.layers.3.image_newline": None,
    "model.layers.3.mlp.up_proj.lora_A.weight": None,
}


def test_part_of_a_folded_axis() -> None:
    """The docstring's example: heads are cut on the disk, their width after reading."""
    part = (slice(0, 3), slice(1, 2), slice(0, 4))
    theirs, read, left = hf_names.hf_index("language/layers/attention/q/kernel", (6, 4, 8), part)
    assert theirs == (slice(8, 16), slice(0, 3))
    assert read == (3, 1, 8)
    assert left == (slice(None), slice(None), slice(0, 4))


# as they stand in llava-hf/llava-1.5-7b-hf, openai/clip-vit-large-patch14 and Llama-3.1-8B
HUB = [
    ("vision", "vision_tower.vision_model.pre_layrnorm.weight", "vision_model.pre_layrnorm.weight"),
    ("language", "language_model.model.norm.weight", "model.norm.weight"),
    ("language", "language_model.lm_head.weight", "lm_head.weight"),
]


@pytest.mark.parametrize(("part", "llava", "alone"), HUB)
def test_exported_names_are_the_hubs(part: str, llava: str, alone: str) -> None:
    """transformers 4 knows no other names; 5 opens these as well."""
    assert llava in hf_names.BY_NAME
    every = frozenset({"vision", "connector", "language"})
    assert hf_names.export_name(llava, every) == llava
    assert hf_names.export_name(llava, frozenset({part})) == alone


@pytest.mark.parametrize(("name", "expected"), LAYOUTS.items())
def test_every_layout_finds_the_same_row(name: str, expected: str | None) -> None:
    assert hf_names.canonical(name) == expected


def test_two_names_for_one_parameter_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lm_head.weight.*the same parameter"):
        hf_names.canonical_names(
            "here", {"lm_head.weight": 0, "language_model.lm_head.weight": 0}, tower=False
        )


def test_buffers_are_left_out_by_name() -> None:
    names = {
        "vision_model.embeddings.position_ids": 0,
        "logit_scale": 0,
        "model.layers.0.self_attn.rotary_emb.inv_freq": 0,
    }
    found, left_out = hf_names.canonical_names("here", names, tower=True)
    assert found == {}
    assert left_out == list(names)
    found, _ = hf_names.canonical_names("here", {"logit_scale": 0}, tower=False)
    assert found == {"logit_scale": "logit_scale"}, "only a CLIP folder may have it"
