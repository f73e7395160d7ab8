"""Hardware words, and the one line that says what is wrong with one."""

import importlib.util
from importlib import metadata
from types import SimpleNamespace

import jax
import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.common.hardware import peak_rate
from mllm_jax.preflight import hardware


@pytest.mark.parametrize(
    ("word", "name", "count"),
    [
        ("v5e:16x16", "v5e", 256),
        ("v5p:4x4x4", "v5p", 64),
        ("v6e:8x8", "v6e", 64),
        ("h200:8", "h200", 8),
        ("cpu:8", "cpu", 8),
    ],
)
def test_words(word: str, name: str, count: int):
    found = hardware.parse(word)
    assert (found.word, found.name, found.count) == (word, name, count)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("v7:4x4", r"--hardware v7:4x4: no chip 'v7' is known.*known are v5e, v5p, v6e, a100"),
        ("v5ee:4x4", r"did you mean v5e\?"),
        ("v5e", r"--hardware v5e: give v5e:AxB, positive numbers, for example v5e:16x16"),
        ("v5e:16", "give v5e:AxB"),
        ("v5e:16x16x2", "give v5e:AxB"),
        ("v5p:4x4", "give v5p:AxBxC"),
        ("v6e:0x8", "give v6e:AxB"),
        ("h200:2x4", "give h200:COUNT"),
        ("h200:", "give h200:COUNT"),
        ("cpu:-1", "give cpu:COUNT"),
        ("", "no chip '' is known"),
    ],
)
def test_what_is_no_hardware(word: str, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        hardware.parse(word)
    assert "\n" not in str(error.value)


def test_every_chip_but_the_cpu_has_all_rates_and_a_source():
    for name, chip in hardware.CHIPS.items():
        rates = (chip.memory, chip.bandwidth, chip.links, peak_rate(chip.kind))
        assert all(rates) or (name == "cpu" and not any(rates)), name
        assert chip.source


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "links"),
    [
        ("v5e", 15.75 * 2**30, 819, 400 / 2),
        ("v5p", 95.74 * 2**30, 2765, 1200 / 2),
        ("v6e", 31.25 * 2**30, 1600, 800 / 2),
        ("a100", 80e9, 2039, 600 / 2),
        ("h100", 80e9, 3350, 900 / 2),
        ("h200", 141e9, 4800, 900 / 2),
        ("b200", 180e9, 8000, 1800 / 2),
    ],
)
def test_published_rates(name: str, memory: float, bandwidth: float, links: float):
    """GB/s as the makers' pages have them; links there in both directions together."""
    chip = hardware.CHIPS[name]
    assert (chip.bandwidth, chip.links) == (bandwidth * 1e9, links * 1e9)
    assert chip.memory == int(memory)


@pytest.mark.parametrize(("here", "compiles"), [(7, False), (8, True)])
def test_gpus_of_this_machine_compile_when_they_are_enough(monkeypatch, here: int, compiles: bool):
    pretended, gpu = jax.devices("cpu"), SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "devices", lambda *kind: pretended if kind else [gpu] * here)
    found = hardware.find_devices(hardware.parse("h200:8"))
    assert found.compiles == compiles and len(found.devices) == 8


def test_pretended_devices_stand_in_for_gpus_that_are_not_here():
    found = hardware.find_devices(hardware.parse("h200:8"))
    assert len(found.devices) == 8
    assert not found.compiles


def test_this_machines_devices_compile():
    found = hardware.find_devices(hardware.parse("cpu:4"))
    assert len(found.devices) == 4
    assert found.compiles


def test_more_devices_than_a_process_can_still_get():
    with pytest.raises(ConfigError, match="--hardware cpu:9: this process already has 8 CPU"):
        hardware.find_devices(hardware.parse("cpu:9"))


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"v5e:2x2: .*needs libtpu.*pip install 'mllm-jax\[tpu\]'"
    ):
        hardware.find_devices(hardware.parse("v5e:2x2"))


def test_with_a_libtpu_of_another_jax(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.99")
    monkeypatch.setattr(metadata, "requires", lambda name: ['libtpu==0.0.42.*; extra == "tpu"'])
    with pytest.raises(ConfigError, match=r"libtpu 0\.0\.99 does not belong to JAX .*0\.0\.42"):
        hardware.find_devices(hardware.parse("v5e:2x2"))
