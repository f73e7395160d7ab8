"""YAML and flags -> config and back: what is read, what is refused, and the round trip."""

from typing import Any

import pytest

from mllm_jax import config_file
from mllm_jax.config import Config, FolderConfig, RecipeConfig
from mllm_jax.errors import ConfigError
from tests.valid_config import TREE, tree, write


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path):
    words = [
        "--optimizer.learning_rate", "1e-4",
        "--data.streams.words.weight=0.5",
        "--train.steps", "null", "--train.epochs", "2",
        "--data.languages", "[eu, en, it]",
        "--compute.remat", "none",
        "--seed", "1", "--seed", "2",
        "--out", "runs/other",
    ]  # fmt: skip
    config = config_file.load(Config, write(tmp_path), words)
    assert config.optimizer.learning_rate == 1e-4  # YAML itself would read 1e-4 as text
    assert config.data.streams["words"].weight == 0.5
    assert (config.train.steps, config.train.epochs) == (None, 2.0)
    assert config.data.languages == ("eu", "en", "it")
    assert config.compute.remat == "none"
    assert (config.seed, config.out) == (2, "runs/other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed"], "--seed: value missing; write --seed VALUE"),
        (["seed", "1"], "unexpected argument 'seed'; overrides are written --section.key value"),
        (["--seed", "[1"], "--seed: '[1' is not a value YAML can read"),
        (["--seed.x", "1"], "--seed.x: seed is not a section"),
        (["--sed", "1"], "sed: unknown key; did you mean 'seed'?"),
        (["--optimizer.lr", "1"], None),
    ],
)
def test_a_bad_override_is_refused_in_one_line(tmp_path, words: list[str], message: str | None):
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, write(tmp_path, ("seed", 0)), words)
    if message is None:
        assert str(error.value).startswith("optimizer.lr: unknown key; ")
    else:
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nmodel: [1, 2\n",
            ":3: not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("a: 1\nb: x: y\n", ":2: not valid YAML: mapping values are not allowed here"),
        ("- 1\n", ": expected sections (a mapping), found list"),
        ("", ": expected sections (a mapping), found NoneType"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text: str, message: str):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, path)
    assert str(error.value) == f"{path}{message}"


def test_what_is_no_text_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config_file.load(Config, path)


def test_a_key_written_twice_is_refused(tmp_path):
    # PyYAML keeps the last of two equal keys and says nothing
    path = tmp_path / "stage.yaml"
    path.write_text("seed: 1\nout: runs/x\nseed: 2\n")
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, path)
    assert str(error.value) == f"{path}:3: not valid YAML: key 'seed' stands twice"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        config_file.load(Config, tmp_path / "none.yaml")
    assert str(error.value) == f"{tmp_path / 'none.yaml'}: no such file"


# ------------------------------------------------------------------------------------- round trips


def test_the_resolved_config_is_itself_valid_input(tmp_path):
    config = config_file.load(Config, write(tmp_path), ["--optimizer.eps", "1e-10"])
    config_file.dump(config, tmp_path / "config.yaml")
    again = config_file.load(Config, tmp_path / "config.yaml")
    assert again == config
    config_file.dump(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "config.yaml").read_bytes()


@pytest.mark.parametrize(
    ("cls", "made"),
    [
        (
            FolderConfig,
            {
                "model": TREE["model"],
                "dtype": "bfloat16",
                "languages": ["eu"],
                "shares": {"ikasketa": 0.8},
                "scores": {"exact match (eu)": 0.93},
            },
        ),
        (
            RecipeConfig,
            {
                "stages": ["align.yaml", "instruct.yaml"],
                "evaluate": {"data": "test.json"},
                "export": None,
            },
        ),
    ],
)
def test_other_files_survive_a_round_trip(tmp_path, cls: type, made: dict[str, Any]):
    section = config_file.build(cls, made)
    config_file.dump(section, tmp_path / "x.yaml")
    assert config_file.load(cls, tmp_path / "x.yaml") == section


def test_text_that_looks_like_something_else_stays_text(tmp_path):
    # "no" and "on" are language codes and words; YAML 1.1 reads them as false and true
    config = config_file.build(
        Config,
        tree(("data.languages", ["eu", "en", "no"]), ("data.streams.words.language", "no")),
    )
    config_file.dump(config, tmp_path / "config.yaml")
    again = config_file.load(Config, tmp_path / "config.yaml")
    assert again.data.languages == ("eu", "en", "no")


def test_an_unquoted_no_is_refused_not_read_as_false(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(write(tmp_path).read_text().replace("- en\n", "- en\n  - no\n"))
    with pytest.raises(ConfigError, match=r"^data\.languages\[2\]: expected text, got False$"):
        config_file.load(Config, path)
