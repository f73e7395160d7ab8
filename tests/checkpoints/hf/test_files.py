"""Template and tokenizer files."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.common.errors import ConfigError


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def test_files_that_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    put(tmp_path, "elsewhere.json", {"secret": 1})
    (source / "generation_config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match=r"generation_config\.json: links to a file outside"):
        hf_files.copy_files(source, out)


def test_end_tokens_of_the_config_reach_the_generation_config(tmp_path: Path) -> None:
    """Whatever copies the files: Llama 3.1 without a generation config has three end tokens."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    put(source, "config.json", {"model_type": "llama", "eos_token_id": [3, 5, 4]})
    hf_files.copy_files(source, out)
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [3, 5, 4]}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (5, "chat_template=5; expected text"),
        ([{"name": "default"}], "chat_template: template is missing"),
        (["x"], "chat_template: expected an object, found text"),
    ],
)
def test_odd_templates(tmp_path: Path, template: Any, message: str) -> None:
    (tmp_path / "out").mkdir()
    put(tmp_path, "chat_template.json", {"chat_template": template})
    with pytest.raises(ConfigError, match=message):
        hf_files.copy_files(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template.json", {"chat_template": "T"}),
        ("tokenizer_config.json", {"chat_template": "T"}),
        (
            "tokenizer_config.json",
            {
                "chat_template": [
                    {"name": "tool", "template": "x"},
                    {"name": "default", "template": "T"},
                ]
            },
        ),
    ],
)
def test_template_of_older_folders(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "out").mkdir()
    put(tmp_path, name, value)
    hf_files.copy_files(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "T"
