"""Preflight on this machine's pretended devices, and for TPUs where their compiler is installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.__main__ import main
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.models import layers
from mllm_jax.preflight import hardware, table, work
from mllm_jax.preflight import plans as planning
from mllm_jax.preflight import report as preflight
from mllm_jax.preflight.plans import Plans, Program
from mllm_jax.training import compiler
from mllm_jax.training.flops import flops_per_step
from tests.support import valid_config

ROWS = ("--data.rows", "16", "--data.image_slots", "2")
# long and deep enough that activations fill the temporary memory, and not odds and ends. float32:
# XLA widens bfloat16 on CPUs, so that it counts what a GPU or a TPU does not have
WIDE = (*ROWS, "--data.length", "512", "--model.language.layers", "8")
WIDE += ("--compute.loss_chunk", "64", "--compute.compute", "float32")
ADAPTERS = ("--adapter.match", "language/layers/.*/kernel", "--optimizer.parts")
ADAPTERS += (
    '{"connector": {"match": "connector/.*"}, "rest": {"match": "[vl].*", "train": false}}',
)
FSDP = ("--mesh.data", "1", "--mesh.fsdp", "8")


def load(folder: Path, *words: str) -> Config:
    return loading.load(Config, valid_config.write(folder), list(words))


def plans(folder: Path, word: str, *words: str) -> Plans:
    wanted = hardware.parse(word)
    return Plans(load(folder, *words), wanted, hardware.find_devices(wanted))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """Its step is compiled once for all tests here."""
    return plans(tmp_path_factory.mktemp("wide"), "cpu:8", *WIDE, *FSDP)


# ---------------------------------------------------------------------------- formula and compiler


def test_what_is_held_is_exact(wide: Plans):
    """Parameters, moments and batch to the byte; the step's number is the four bytes beside."""
    assert (
        wide.compiled(wide.configured).memory["arguments"] == wide.memory(wide.configured).held + 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (8, 1, 1), (1, 4, 2)])
def test_what_is_held_is_exact_on_every_mesh(tmp_path: Path, mesh: tuple[int, int, int]):
    words = zip(("--mesh.data", "--mesh.fsdp", "--mesh.tensor"), map(str, mesh), strict=True)
    here = plans(tmp_path, "cpu:8", *ROWS, *(word for pair in words for word in pair))
    assert (
        here.compiled(here.configured).memory["arguments"] == here.memory(here.configured).held + 4
    )


@pytest.mark.parametrize("attention", ["cudnn", "tokamax", "triton"])
def test_attention_of_gpus_by_formula_without_their_compiler(tmp_path: Path, attention: str):
    """The pretended devices are CPUs; attention is that of the hardware, and has no scores."""
    words = (*ROWS, *FSDP, "--model.vision.heads", "3", "--data.length", "512")
    memory = {}
    for name in ("dense", attention):
        there = plans(tmp_path, "h100:8", *words, "--compute.attention", name)
        assert not there.compiles
        memory[name] = there.memory(there.configured)
    assert memory[attention].held == memory["dense"].held
    assert memory[attention].layer < memory["dense"].layer


def test_packed_attention_by_cudnn_needs_hopper(tmp_path: Path, capsys):
    words = ("--config", str(valid_config.write(tmp_path)), "--hardware", "a100:8")
    assert main(["preflight", *words, *ROWS, *FSDP, "--compute.attention", "cudnn"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "mllm-jax: error: compute.attention=cudnn: packed rows need compute capability 9.0 or "
        "newer, this GPU's is 8.0; choose triton\n"
    )


def test_held_by_hand(tmp_path: Path):
    """One device: float32 parameters that learn, their two moments, bfloat16 ones that do not."""
    here = plans(tmp_path, "cpu:1", *ROWS)
    memory = here.memory(here.configured)
    params = here.setup("full").params
    learn = sum(leaf.size for path, leaf in params.items() if not path.startswith("vision/"))
    still = sum(leaf.size for path, leaf in params.items() if path.startswith("vision/"))
    assert (memory.trainable, memory.frozen) == (4 * learn, 2 * still)
    assert memory.moments == 8 * learn + 4  # Adam counts its steps itself
    assert (memory.batch, memory.images) == (8 * 16 * 128 * 4, 16 * 2 * 28 * 28 * 3)
    assert memory.gradients == 4 * learn


def near_the_compiler(here: Plans) -> None:
    """Within a third: the compiler shares buffers, fuses, and keeps copies as it likes."""
    said = here.compiled(here.configured).memory["temporary"]
    assert here.memory(here.configured).temporary == pytest.approx(said, rel=1 / 3)


def test_temporary_memory_is_near_what_the_compiler_says(wide: Plans):
    near_the_compiler(wide)


@pytest.mark.slow
def test_temporary_memory_without_remat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "UNROLLED", 0)  # a loop over layers, as on GPUs and TPUs
    near_the_compiler(plans(tmp_path, "cpu:8", *WIDE, *FSDP, "--compute.remat", "none"))


@pytest.mark.slow
def test_a_base_in_int8(tmp_path: Path):
    """What is held to the byte, and half of what bfloat16 holds; the rest near the compiler's."""
    # one head after another: of `blocks` XLA keeps more scores on CPUs than the formula has
    words = ("--adapter.base", "int8", "--compute.attention", "loop")
    here = plans(tmp_path, "cpu:8", *WIDE, "--mesh.data", "8", *ADAPTERS, *words)
    program, formula = here.compiled(here.configured), here.memory(here.configured)
    assert program.memory["arguments"] == formula.held + 4
    assert formula.temporary == pytest.approx(program.memory["temporary"], rel=1 / 3)
    frozen = here.setup("full").frozen
    of_layers = {path: x for path, x in frozen.items() if path.startswith("language/layers/")}
    numbers = sum(x.size for path, x in of_layers.items() if path.endswith("/kernel"))
    norms = sum(x.size for path, x in of_layers.items() if path.endswith("norm/scale"))
    held = sum(x.size * x.dtype.itemsize for x in of_layers.values())
    assert held == numbers * (1 + 2 / 64) + 4 * norms
    assert here.weight_bytes(of_layers) == numbers * (1 + 2 / 64)
    result = preflight._describe(here, here.configured, program)
    assert "float32, frozen language layers int8, remat full" in table.render(result)


def test_activations_follow_remat_rows_and_tensor(tmp_path: Path):
    """Bytes kept: with remat a layer's input, 4 x 512 x 64 each; without, what is split too."""
    mesh = ("--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2")
    here = plans(tmp_path, "cpu:8", *WIDE, *mesh)
    given, inputs = here.configured, 4 * 8 * 512 * 64 * 4  # rows, layers, length, width, float32
    full = here.memory(given).activations
    assert inputs < full < 1.5 * inputs
    assert here.memory(given._replace(microbatches=2)).activations == full // 2
    none = here.memory(given._replace(remat="none")).activations
    whole = here.memory(given._replace(remat="none", split=planning.Split(1, 8, 1))).activations
    # per row: half of the heads and units, not half of the norms and layer inputs
    assert 5 * full < none
    assert 0.5 * 2 * whole < none < 0.9 * 2 * whole


def test_collectives_of_a_compiled_step(wide: Plans):
    """Every layer's weights are gathered for both passes, whatever else the compiler sends."""
    sent, formula = wide.compiled(wide.configured).sent, work.sent(wide, wide.configured)
    assert sent["all-gather"]["bytes"] >= 0.9 * formula["all-gather"]["bytes"]
    total = sum(kind["bytes"] for kind in sent.values())
    assert total < 5 * sum(kind["bytes"] for kind in formula.values())


# ------------------------------------------------------------------------------------------ results


def test_result_and_table(wide: Plans, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight, "Plans", lambda *_: wide)
    result = preflight.estimate(wide.config, "cpu:8")
    assert json.loads(json.dumps(result)) == result
    assert result["basis"] == "compiled for this machine's cpu devices"
    assert (result["compiler_flags"], result["unknown_compiler_flags"]) == ({}, [])
    assert result["setting"]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    memory = result["memory"]
    assert memory["peak"] is None
    assert memory["total"] == sum(memory["compiler"].values())
    assert memory["margin"] == memory["limit"] - memory["total"]
    assert memory["fits"] is True
    assert result["bound"] is None  # nobody publishes rates of pretended devices
    assert result["nearest"] is None
    assert result["quicker"] is None  # there is one microbatch, and no rates for less remat
    paths = wide.setup("full").abstract.trainable
    useful = flops_per_step(wide.config.model, paths, 16, 512, 32)
    assert result["work"]["useful"] == useful
    assert useful < result["work"]["done"] < 4 / 3 * useful
    page = table.render(result)
    for words in ("by compiler", "all-gather", "FITS", "useful FLOPs", "remat full", "no rates"):
        assert words in page


def test_a_gpu_that_is_not_here_is_estimated_and_says_so(tmp_path: Path, capsys):
    path = valid_config.write(tmp_path)
    words = ["preflight", "--config", str(path), "--hardware", "h200:8", "--json", *ROWS, *FSDP]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    basis = "estimated by formula: no H200 is here to compile for, and not installed: "
    assert result["basis"].startswith(basis)
    assert "(pip install 'mllm-jax[gpu-preflight]')" in result["basis"]
    assert result["memory"]["compiler"] is None
    assert result["memory"]["total"] == result["memory"]["formula"]["total"]
    assert result["bound"]["seconds"] > 0
    assert 0 < result["bound"]["mfu"] < 1
    assert main(words[:5] + words[6:]) == 0
    assert "estimated by formula" in capsys.readouterr().out


def test_what_does_not_fit_gets_the_nearest_that_do(tmp_path: Path, monkeypatch):
    """Estimates only: half of what the step needs is there; remat, turns or mesh bring it down."""
    words = (*WIDE, *FSDP, "--data.rows", "64", "--compute.remat", "none")
    needed = preflight.estimate(load(tmp_path, *words), "h200:8")["memory"]["total"]
    small = hardware.CHIPS["h200"]._replace(memory=needed // 2)
    monkeypatch.setitem(hardware.CHIPS, "h200", small)
    result = preflight.estimate(load(tmp_path, *words), "h200:8")
    assert result["memory"]["fits"] is False
    found = result["nearest"]
    assert len(found) == 3
    assert all(one["total"] <= needed // 2 and not one["compiled"] for one in found)
    for one in found:  # the flags do what they say
        again = preflight.estimate(load(tmp_path, *words, *one["flags"].split()), "h200:8")
        assert again["memory"]["total"] == one["total"]
        assert again["memory"]["fits"] is True
    page = table.render(result)
    assert "DOES NOT FIT" in page
    assert found[0]["flags"] in page


def test_nearest_settings_are_compiled_where_that_is_possible(tmp_path: Path, monkeypatch):
    """One that the compiler refuses is left out; one it takes is shown with its own figure."""
    here = plans(tmp_path, "cpu:8", *WIDE, *FSDP, "--compute.remat", "none")
    limit = here.memory(here.configured).total // 2
    monkeypatch.setattr(Plans, "limit", property(lambda self: limit))
    asked: list[Any] = []

    def compiled(self: Plans, setting: Any) -> Program:
        asked.append(setting)
        if len(asked) == 1:
            return Program(1.0, {}, [], "RESOURCE_EXHAUSTED: out of memory")
        return Program(1.0, {"temporary": 7}, [], None)

    monkeypatch.setattr(Plans, "compiled", compiled)
    result = preflight.estimate(here.config, "cpu:8")
    assert result["memory"]["refused"] == "RESOURCE_EXHAUSTED: out of memory"
    assert result["memory"]["fits"] is False
    assert [one["total"] for one in result["nearest"]] == [7] * len(asked[1:])
    assert all(one["compiled"] for one in result["nearest"])
    assert "the compiler refused: RESOURCE_EXHAUSTED" in table.render(result)


def test_nothing_fits(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(hardware.CHIPS, "h200", hardware.CHIPS["h200"]._replace(memory=1000))
    result = preflight.estimate(load(tmp_path, *ROWS, *FSDP), "h200:8")
    assert result["nearest"] == []
    assert "no setting of remat, rows, microbatches and mesh" in table.render(result)


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("word", "flags", "message"),
    [
        ("v9:2", "", "--hardware v9:2: no chip 'v9' is known"),
        (
            "h200:8",
            "--mesh.fsdp 3 --mesh.data 2",
            "mesh: data x fsdp x tensor x context = 6, but there are 8",
        ),
        ("h200:8", "--mesh.fsdp 3", "mesh: 8 devices do not divide by 3"),
        (
            "h200:8",
            "--mesh.tensor 4",
            "language/layers/attention/k/kernel has kv_heads=2, which does not divide over 4",
        ),
        ("h200:3", "--mesh.fsdp 3 --mesh.data 1", "which does not divide over 3 devices"),
        (
            "h200:8",
            "--data.rows 12 --train.microbatches 2",
            "data.rows=12 must be a multiple of train.microbatches=2 x 8 (devices on mesh axes "
            "data and fsdp); for example --data.rows 16\n",
        ),
        ("h200:8", "--data.row 12", "data.row"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, capsys, word: str, flags: str, message: str):
    path = valid_config.write(tmp_path)
    assert main(["preflight", "--config", str(path), "--hardware", word, *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_no_data_no_weights_no_tokenizer(tmp_path: Path):
    """The stage file names folders that are not here, and they are not missed."""
    config = load(tmp_path, *ROWS)
    assert config.init.weights is not None
    assert not Path(config.init.weights).exists()
    assert preflight.estimate(config, "h200:8")["memory"]["total"] > 0


def test_pretended_devices_in_a_process_of_its_own(tmp_path: Path):
    """More devices than JAX would have by itself, asked for before it begins."""
    code = (
        "from mllm_jax.preflight import hardware; import jax; "
        "found = hardware.find_devices(hardware.parse('cpu:3')); print(len(found.devices))"
    )
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    made = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert made.stdout == "3\n", made.stderr


# -------------------------------------------------------------------------------------------- TPUs


def preflight_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mllm_jax", "preflight", *words],
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("word", "mesh"), [("v5e:2x2", ("1", "4")), ("v5p:2x2x1", ("2", "2")), ("v6e:2x2", ("2", "2"))]
)
def test_a_step_compiled_for_tpus_that_are_not_here(
    tmp_path: Path, word: str, mesh: tuple[str, str]
):
    path = valid_config.write(tmp_path)
    flags = (*ROWS, "--mesh.data", mesh[0], "--mesh.fsdp", mesh[1], "--train.microbatches", "2")
    made = preflight_process("--config", str(path), "--hardware", word, "--json", *flags)
    assert made.returncode == 0, made.stderr
    lines = made.stderr.splitlines()
    assert all(line.startswith("preflight: ") for line in lines), lines  # libtpu is kept quiet
    result = json.loads(made.stdout)
    assert result["basis"].startswith("compiled by libtpu")
    # the compiler knows every option of the chip's preset
    assert result["compiler_flags"] == compiler.PRESETS.get(word[:3], {})
    assert result["unknown_compiler_flags"] == []
    memory = result["memory"]
    held = sum(memory["formula"][name] for name in table.HELD)
    # arrays of a TPU are padded to tiles of 8 x 128, which these small ones do not fill
    assert held <= memory["compiler"]["arguments"] <= 4 * held
    # libtpu decides by what is held at the same time
    assert memory["total"] == memory["peak"] < sum(memory["compiler"].values())
    assert memory["peak"] > memory["compiler"]["arguments"]
    page = table.render(result)
    assert re.search(rf"at the same time, at most +{re.escape(table.size(memory['peak']))}\n", page)
    assert f"FITS: {table.size(memory['peak'])} of" in page
    # 3 layers, 2 turns: gathered forward and backward
    assert result["collectives"]["all-gather"]["operations"] >= 2 * 2 * 3
    assert 0 < result["bound"]["mfu"] < 1


@pytest.mark.usefixtures("libtpu")
def test_a_slice_that_tpus_do_not_come_in(tmp_path: Path):
    path = valid_config.write(tmp_path)
    made = preflight_process("--config", str(path), "--hardware", "v5e:3x3")
    assert made.returncode == 2
    assert made.stderr.startswith("mllm-jax: error: --hardware v5e:3x3: libtpu refuses it:")
    assert made.stderr.count("\n") == 1


def test_the_compilers_other_faults_are_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch):
    import jax

    def fails(*args: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setattr(planning.step, "compile_step", fails)
    here = plans(tmp_path, "cpu:8", *ROWS)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        here.compiled(here.configured)


def test_more_cpu_devices_than_this_process_has(tmp_path: Path):
    with pytest.raises(ConfigError, match="already has 8 CPU devices"):
        preflight.estimate(load(tmp_path, *ROWS), "cpu:16")
