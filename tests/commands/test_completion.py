"""Completion scripts, the one for bash as bash runs it."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.completion import RECIPES, SHELLS, script
from mllm_jax.commands.main import VERBS, make_parser
from mllm_jax.config.reference import sections
from mllm_jax.config.stage import Config


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "mllm-jax.bash"
    path.write_text(script(make_parser(), "bash"))
    return path


def complete(bash: Path, line: str, folder: Path) -> list[str]:
    """What TAB offers at the end of a command line."""
    words = [*line.split(), ""] if line.endswith(" ") else line.split()
    code = (
        f"source {shlex.quote(str(bash))}\nCOMP_WORDS=({shlex.join(words)})\n"
        f"COMP_CWORD={len(words) - 1}\n_shtab_mllm_jax\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    return [word.rstrip("/") for word in ended.stdout.split()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mllm-jax tr", ["train"]),
        ("mllm-jax --v", ["--version"]),
        ("mllm-jax train --conf", ["--config"]),
        ("mllm-jax train --config ", ["runs", "stage.yaml"]),
        ("mllm-jax train --config st", ["stage.yaml"]),
        ("mllm-jax train --config stage.yaml --res", ["--resume"]),
        ("mllm-jax train --config stage.yaml --optimizer.sch", ["--optimizer.schedule"]),
        ("mllm-jax train --config stage.yaml --optimizer.schedule ", ["cosine", "constant"]),
        ("mllm-jax inspect --data.pack ", ["true", "false"]),
        ("mllm-jax preflight --model.language.ti", ["--model.language.tied"]),
        ("mllm-jax train --init.weights ru", ["runs"]),
        ("mllm-jax recipe st", ["stage.yaml"]),
        ("mllm-jax prepare --data.rows 8 --wor", ["--workers"]),
        ("mllm-jax generate ", ["runs"]),
        ("mllm-jax convert ", ["from-hf", "from-peft", "join", "to-hf", "to-peft"]),
        ("mllm-jax convert join out --conn", ["--connector", "--connector-weights"]),
        ("mllm-jax convert to-hf runs out --dtype b", ["bfloat16"]),
        ("mllm-jax completion ", list(SHELLS)),
        ("mllm-jax evaluate runs --optimizer.", []),
    ],
)
def test_bash_completes(bash: Path, tmp_path: Path, line: str, offered: list[str]):
    (tmp_path / "stage.yaml").touch()
    (tmp_path / "runs").mkdir()
    assert sorted(complete(bash, line, tmp_path)) == sorted(offered)


def test_all_verbs_and_all_options_are_offered(bash: Path, tmp_path: Path):
    assert complete(bash, "mllm-jax ", tmp_path) == list(VERBS)
    offered = set(complete(bash, "mllm-jax train --", tmp_path))
    for section in sections(Config):
        keys = {
            f"--{section.path}.{option.name}".replace("--.", "--") for option in section.options
        }
        if "NAME" in section.path:
            assert not keys & offered
        else:
            assert keys <= offered


def test_verbs_that_read_their_file_themselves_have_no_positional():
    for name in RECIPES:
        more = ["--hardware", "h200:8"] if name == "preflight" else []
        options, rest = make_parser().parse_known_args([name, "recipe.yaml", *more])
        assert rest == ["recipe.yaml"] and options.verb == name


@pytest.mark.parametrize("shell", SHELLS)
def test_the_verb_prints_the_script_of_a_shell(capsys, tmp_path: Path, shell: str):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "train" in text and "optimizer.learning_rate" in text and "accept-changed-data" in text
    if shutil.which(shell) is not None:
        path = tmp_path / "script"
        path.write_text(text)
        checked = subprocess.run([shell, "-n", path], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path):
    path = tmp_path / "mllm-jax.fish"
    path.write_text(script(make_parser(), "fish"))
    code = f"source {path}; complete -C 'mllm-jax train --optimizer.sch'"
    ended = subprocess.run(["fish", "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("--optimizer.schedule\t"), ended.stderr
