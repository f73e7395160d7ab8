"""YAML and flags -> config and back: what is read, what is refused, and the round trip."""

from typing import Any

import pytest
import yaml

from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.config.stage import ComputeConfig, Config, FolderConfig
from tests.support.valid_config import TREE, tree, write


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
    config = loading.load(Config, write(tmp_path), words)
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
        (
            ["--seed", "[1"],
            "--seed: '[1' is not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        (["--seed.x", "1"], "--seed.x: seed is not a section"),
        (["--sed", "1"], "sed: unknown key; did you mean 'seed'?"),
        (["--optimizer.lr", "1"], None),
    ],
)
def test_a_bad_override_is_refused_in_one_line(tmp_path, words: list[str], message: str | None):
    with pytest.raises(ConfigError) as error:
        loading.load(Config, write(tmp_path, ("seed", 0)), words)
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
        ("", ": the file is empty; expected sections (a mapping)"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text: str, message: str):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        loading.load(Config, path)
    assert str(error.value) == f"{path}{message}"


def test_what_is_no_text_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="not UTF-8"):
        loading.load(Config, path)


def test_a_key_written_twice_is_refused(tmp_path):
    # PyYAML keeps the last of two equal keys and says nothing
    path = tmp_path / "stage.yaml"
    path.write_text("seed: 1\nout: runs/x\nseed: 2\n")
    with pytest.raises(ConfigError) as error:
        loading.load(Config, path)
    assert str(error.value) == f"{path}:3: not valid YAML: key 'seed' is given twice"


@pytest.mark.parametrize("value", ["1:30", "010", "'2024-01-02'", "runs/2024-01-02"])
def test_text_in_a_flag_stays_text(tmp_path, value: str):
    # YAML 1.1 reads 1:30 as 90 and 010 as 8
    config = loading.load(Config, write(tmp_path), ["--out", value])
    assert config.out == value.strip("'")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2024-99-99", "'2024-99-99' reads as a date; if it is text, put it in quotes"),
        ("2024-01-02", "'2024-01-02' reads as a date; if it is text, put it in quotes"),
        ("!!x y", "tag 'tag:yaml.org,2002:x' is not allowed; write it as plain text or number"),
        ("9" * 5000, None),
        ("[" * 5000, "nested deeper than 50 levels"),
        ("a\0b", "character U+0000 is not allowed"),
    ],
)
def test_a_flag_that_yaml_cannot_read_is_named(tmp_path, value: str, reason: str | None):
    with pytest.raises(ConfigError) as error:
        loading.load(Config, write(tmp_path), ["--out", value])
    message = str(error.value)
    assert message.startswith("--out: ") and len(message) < 400 and "\n" not in message
    assert reason is None or message.endswith(f"is not valid YAML: {reason}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true: 1\n", "True: unknown key; allowed are model, init, data"),
        ("1.5: 1\n", "1.5: unknown key; allowed are model, init, data"),
        ("x" * 100_000 + ": 1\n", None),
        ("? [a, b]\n: 1\n", "stage.yaml:1: not valid YAML: a key must be text"),
        ("out: !!timestamp 2024-99-99\n", "stage.yaml:1: not valid YAML: .* reads as a date"),
    ],
)
def test_odd_keys_are_refused_in_one_short_line(tmp_path, text: str, message: str | None):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        loading.load(Config, path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("key", [True, None, 1.5])
def test_a_name_is_text_or_a_whole_number(key: Any):
    with pytest.raises(ConfigError, match=r"^data\.columns: key: expected text \(put it in quotes"):
        loading._read(dict[str, str], {key: "x"}, "data.columns")
    with pytest.raises(ConfigError, match="given twice, as text and as number"):
        loading._read(dict[str, str], {1: "x", "1": "y"}, "data.columns")


def test_overriding_one_use_of_an_alias_leaves_the_other(tmp_path):
    path = tmp_path / "stage.yaml"
    shared = tree(("data.streams", {"captions": "ALIAS"}))
    text = yaml.safe_dump(shared).replace("captions: ALIAS", "a: &a {path: x.json}\n    b: *a")
    path.write_text(text)
    config = loading.load(Config, path, ["--data.streams.a.weight", "3"])
    assert [s.weight for s in config.data.streams.values()] == [3.0, 1.0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        loading.load(Config, tmp_path / "none.yaml")
    assert str(error.value) == f"{tmp_path / 'none.yaml'}: no such file"


# ------------------------------------------------------------------------------------- round trips


def test_the_resolved_config_is_itself_valid_input(tmp_path):
    config = loading.load(Config, write(tmp_path), ["--optimizer.eps", "1e-10"])
    loading.dump(config, tmp_path / "config.yaml")
    again = loading.load(Config, tmp_path / "config.yaml")
    assert again == config
    loading.dump(again, tmp_path / "again.yaml")
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
    section = loading.build(cls, made)
    loading.dump(section, tmp_path / "x.yaml")
    assert loading.load(cls, tmp_path / "x.yaml") == section


def test_text_that_looks_like_something_else_stays_text(tmp_path):
    # "no" and "on" are language codes and words; YAML 1.1 reads them as false and true
    config = loading.build(
        Config,
        tree(("data.languages", ["eu", "en", "no"]), ("data.streams.words.language", "no")),
    )
    loading.dump(config, tmp_path / "config.yaml")
    again = loading.load(Config, tmp_path / "config.yaml")
    assert again.data.languages == ("eu", "en", "no")


def test_an_unquoted_no_is_refused_not_read_as_false(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(write(tmp_path).read_text().replace("- en\n", "- en\n  - no\n"))
    with pytest.raises(ConfigError, match=r"^data\.languages\[2\]: expected text, got False$"):
        loading.load(Config, path)


def test_null_removes_a_section_that_the_file_has(tmp_path):
    file = tmp_path / "stage.yaml"
    before = loading.build(Config, tree())
    loading.dump(before, file)
    name = next(iter(before.data.streams))
    more = ["--data.streams.more", f"{{path: {before.data.streams[name].path}, language: eu}}"]
    removed = ["--data.streams.more", "null", "--data.streams.more", "null"]
    assert loading.load(Config, file, [*more, *removed]) == before
    assert loading.load(Config, file, ["--compute", "null"]).compute == ComputeConfig()
    with pytest.raises(ConfigError, match=r"^data.streams.mor: null, and there is none of this"):
        loading.load(Config, file, [*more, "--data.streams.mor", "null"])
    with pytest.raises(ConfigError, match=r"^data: missing; it has no default$"):
        loading.load(Config, file, ["--data", "null"])
