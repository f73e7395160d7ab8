"""Compiled programs on disk: a second process compiles nothing; off, elsewhere, not writable."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm_jax.common import compilation_cache

PROGRAM = """
import jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(1)  # whether the cache is used was settled here, but for `enable`
from mllm_jax.common import compilation_cache
compilation_cache.LEAST_SECONDS = 0.0
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation_cache.enable()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print("/jax/compilation_cache/cache_hits" in events)
"""


def run(**variables: str) -> str:
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=240, check=True, env=environment,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    assert run(XDG_CACHE_HOME=str(tmp_path)) == "False"
    (folder,) = (tmp_path / "mllm_jax" / "programs").iterdir()
    assert any(folder.iterdir())
    assert run(XDG_CACHE_HOME=str(tmp_path)) == "True"


@pytest.fixture
def settings(monkeypatch) -> dict[str, object]:
    """What is set of JAX's options, where no folder is."""
    chosen: dict[str, object] = {}
    config = SimpleNamespace(
        jax_compilation_cache_dir=None, update=lambda name, value: chosen.update({name: value})
    )
    monkeypatch.setattr(compilation_cache, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(compilation_cache.compilation_cache, "reset_cache", lambda: None)
    return chosen


def test_where_it_is(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(compilation_cache.VARIABLE, compilation_cache.OFF)
    assert compilation_cache.enable() is None and not settings
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "here"))
    assert compilation_cache.enable() == tmp_path / "here"
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "here")
    monkeypatch.setenv(compilation_cache.VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation_cache.enable()
    assert folder is not None and folder.parent == tmp_path / "mllm_jax" / "programs"
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_made_is_said_once(settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "file"))
    assert compilation_cache.enable() is None and compilation_cache.enable() is None
    assert capsys.readouterr().err.count("\n") == 1 and not settings


def test_instruction_sets_tell_processors_apart(monkeypatch):
    names = set()
    for text in ("flags\t\t: fpu avx2\n", "flags\t\t: fpu avx2 avx512f\n", "Features : asimd\n"):
        monkeypatch.setattr(Path, "read_text", lambda _, encoding, text=text: text)
        names.add(compilation_cache._processor())
    assert len(names) == 3
