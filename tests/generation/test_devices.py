"""Which devices answer, and that their number changes no answer."""

import itertools

import jax
import numpy as np
import pytest

from mllm_jax import __main__ as command_line
from mllm_jax.common.errors import ConfigError
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.devices import ALL, Devices
from mllm_jax.generation.engine import Answerer
from tests.support import unstacked


def test_the_devices_of_this_process():
    mesh = ALL.mesh()
    assert mesh is not None and tuple(mesh.shape.values()) == (8, 1, 1, 1)
    mesh = Devices(6, tensor=2).mesh()
    assert mesh is not None and tuple(mesh.shape.values()) == (3, 1, 2, 1)
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    assert Devices(1).mesh() is None


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (Devices(9), "devices=9: this process has 8; give a number up to that"),
        (Devices(8, tensor=3), "8 devices do not divide by 3"),
        (Devices(1, fsdp=2), "1 devices do not divide by 2"),
    ],
)
def test_devices_that_are_refused(devices, message):
    with pytest.raises(ConfigError, match=message):
        devices.mesh()


@pytest.mark.parametrize(
    "devices", [Devices(3), pytest.param(Devices(6, tensor=2), marks=pytest.mark.slow)]
)
def test_any_number_of_pictures_on_any_number_of_devices(run, opened, wide, data, devices):
    """A picture alone, and four questions with none, one and two: on three devices."""
    mesh = devices.mesh()
    assert mesh is not None
    shared = Answerer(run, mesh=mesh)
    places = unstacked.shardings(shared.model, mesh)
    shared.__dict__["params"] = jax.device_put(wide, places)
    files = sorted((data / "images").iterdir())
    asked = [(user_turn("a", 0), []), (user_turn("Zein kolore?", 1), files[:1])]
    asked += [(user_turn("red or blue? ", 2), files[1:3]), (user_turn("gorria?", 1), files[3:4])]
    for chosen in (asked[1:2], asked):
        prompts = [opened.prompt([turn], 8) for turn, _ in chosen]
        pictures = [opened.pictures(of) for _, of in chosen]
        expected = opened.answer(prompts, pictures, 8, ends=())
        assert shared.answer(prompts, pictures, 8, ends=()) == expected
        contexts, continuations = [[turn] for turn, _ in chosen], ["bai"] * len(chosen)
        ours, theirs = (
            one.log_likelihoods(contexts, continuations, [of for _, of in chosen])
            for one in (shared, opened)
        )
        np.testing.assert_allclose([x.sum for x in ours], [x.sum for x in theirs], atol=1e-4)


def test_the_command_divides_the_parameters(run, data, capsys):
    """`generate` on as many devices as share them."""
    words = ["generate", str(run), "--prompt", "Zer?", "--max-new-tokens", "4", "--json"]
    words += ["--image", str(data / "images" / "0.png")]
    printed = []
    for more in ([], ["--fsdp", "2", "--tensor", "2"]):
        assert command_line.main([*words, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert all(a == b for a, b in itertools.pairwise(printed))
    assert command_line.main([*words, "--tensor", "16"]) == 2
    assert "devices=16: this process has 8" in capsys.readouterr().err
