"""Fetching a data set once, into its folder or not at all; the network is played."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    XetDownloadError,
)

from mllm_jax.common.errors import ConfigError, RunError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.sources import hub


@pytest.fixture
def network(monkeypatch):
    """Data sets asked for; `network.error` is what the next one ends with."""

    class Network:
        def __init__(self):
            self.asked: list[tuple] = []
            self.error: Exception | None = None

        def __call__(self, name, repo_type, revision, local_dir, allow_patterns):
            self.asked.append((name, repo_type, revision))
            (Path(local_dir) / "data.parquet").write_text("rows")
            if self.error is not None:
                raise self.error

    made = Network()
    monkeypatch.setattr(hub, "snapshot_download", made)
    return made


def stream(tmp_path, revision: str = "abc") -> StreamConfig:
    return StreamConfig(str(tmp_path / "set"), kind="parquet", hub="org/set", revision=revision)


def test_a_set_is_fetched_once_and_its_revision_noted(network, tmp_path):
    for _ in range(2):
        hub.fetch("s", stream(tmp_path))
    assert network.asked == [("org/set", "dataset", "abc")]
    assert json.loads((tmp_path / "set" / "hub.json").read_text()) == {
        "hub": "org/set",
        "revision": "abc",
    }
    assert (tmp_path / "set" / "data.parquet").is_file()


def test_another_revision_is_not_laid_over_it(network, tmp_path):
    hub.fetch("s", stream(tmp_path))
    with pytest.raises(ConfigError, match=r"data.streams.s.path=.*: holds .*'abc'.*, not .*'def'"):
        hub.fetch("s", stream(tmp_path, "def"))
    assert len(network.asked) == 1


def test_a_folder_of_other_things_is_left_alone(network, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds None, not"):
        hub.fetch("s", stream(tmp_path))


def test_what_cannot_be_fetched_leaves_nothing(network, tmp_path):
    network.error = OSError("no\nnetwork")
    with pytest.raises(
        RunError, match=r"data.streams.s.hub=org/set: cannot be fetched: no network"
    ):
        hub.fetch("s", stream(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [HTTPError("too slow"), XetDownloadError("cut off")])
def test_whatever_the_network_does_is_one_line(network, tmp_path, error):
    network.error = error
    with pytest.raises(RunError, match=r"hub=org/set: cannot be fetched: (too slow|cut off)$"):
        hub.fetch("s", stream(tmp_path))


def test_a_name_that_cannot_be_is_bad_input(tmp_path):
    bad = StreamConfig(str(tmp_path / "set"), kind="parquet", hub="org/a--b", revision="c")
    with pytest.raises(ConfigError, match=r"data\.streams\.s\.hub=org/a--b: "):
        hub.fetch("s", bad)
    assert list(tmp_path.iterdir()) == []


def test_streams_of_ones_own_are_not_fetched(network, tmp_path):
    hub.fetch("s", StreamConfig(str(tmp_path / "a.json")))
    assert network.asked == []


def test_a_revision_is_pinned():
    with pytest.raises(ConfigError, match="hub='org/set' and revision=None belong together; set"):
        StreamConfig("a", hub="org/set")
