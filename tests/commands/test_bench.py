"""The benchmark's numbers: the PyTorch baseline's work and field names, figures, refusals."""

import contextlib
import dataclasses
import io
import json
import math

import jax
import numpy as np
import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.bench import work as bench
from mllm_jax.distributed.sharding import make_mesh
from mllm_jax.models.kernels.select import BACKENDS
from mllm_jax.training.flops import matmul_parameters
from mllm_jax.training.setup import make_setup
from tests.support import tiny

WORDS = "bench --size tiny --length 64 --batch 8 --steps 3".split()  # a row for each device
BASELINE_ONLY = {"baseline", "torch"}  # fields of the PyTorch baseline that name its versions


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[str, str]:
    """What `mllm-jax bench --json FILE` prints and writes, of one short run."""
    file = tmp_path_factory.mktemp("bench") / "tiny.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*WORDS, "--json", str(file)]) == 0
    return printed.getvalue(), file.read_text()


@pytest.fixture(scope="module")
def result(texts) -> dict:
    return json.loads(texts[1])


def test_the_figures_belong_together(result):
    assert (result["size"], result["stage"], result["dtype"]) == ("tiny", "instruct", "float32")
    assert (result["batch"], result["length"], result["devices"]) == (8, 64, 8)
    assert result["attention"] == "auto"
    assert result["attention_backends"].keys() == {"vision", "language"}
    assert set(result["attention_backends"].values()) <= BACKENDS.keys()
    seconds = result["median_step_seconds"]
    assert result["tokens_per_second"] == pytest.approx(8 * 64 / seconds, rel=0.05)
    rate = result["flops_per_step"] / seconds / 1e12
    assert result["teraflops_per_second"] == pytest.approx(rate, rel=0.05, abs=1e-4)
    assert result["compile_seconds"] > 0
    assert result["mfu"] is None, "a CPU has no published bfloat16 rate"
    assert result["loss"] == pytest.approx(math.log(1024), abs=0.7), "random weights, random text"


def test_what_is_printed_is_what_is_written(texts):
    printed, written = texts
    assert printed == written


@pytest.fixture(scope="module")
def baseline() -> dict:
    """What the PyTorch baseline prints, of one step of the same work."""
    torch = pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    from tests.benchmarks import pytorch_baseline

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            pytorch_baseline.main("--size tiny --length 64 --batch 8 --steps 1 --warmup 1".split())
    finally:
        torch.set_num_threads(threads)
    return json.loads(printed.getvalue())


def test_the_baseline_does_the_same_work(result, baseline):
    """The two results can be divided: same model, same part trained, same field names."""
    assert len(baseline) >= 10
    assert baseline.keys() - BASELINE_ONLY <= result.keys()
    work = ("size", "stage", "dtype", "batch", "length", "parameters", "trainable")
    assert {name: baseline[name] for name in work} == {name: result[name] for name in work}
    assert baseline["loss"] == pytest.approx(math.log(1024), abs=0.7)
    assert baseline["tokens_per_second"] == pytest.approx(
        8 * 64 / baseline["median_step_seconds"], rel=0.05
    )


@pytest.mark.parametrize("stage", bench.TRAINED)
def test_the_baseline_trains_the_same_part(stage):
    """Parameters counted by top-level module, ours beside transformers'."""
    pytest.importorskip("torch", reason="the PyTorch baseline needs torch")
    from tests.benchmarks import pytorch_baseline

    trained = pytorch_baseline.trained_parameters(pytorch_baseline.build("tiny"), stage)
    work = bench.from_size("tiny", stage, 64, 8, "float32", "none")
    planned = make_setup(
        work.model, work.compute, work.optimizer, make_mesh(work.mesh.axes), steps=10
    )
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(planned.abstract.trainable))
    assert sum(p.numel() for p in trained) == ours


@pytest.mark.parametrize("stage", bench.TRAINED)
def test_every_stage_claims_every_parameter(stage):
    work = bench.from_size("8b", stage, 2048, 8, "bfloat16", "full")
    planned = make_setup(
        work.model, work.compute, work.optimizer, make_mesh(work.mesh.axes), steps=10
    )
    frozen = {"align": {"vision", "language"}, "instruct": {"vision"}, "full": set()}[stage]
    assert {path.split("/")[0] for path in planned.abstract.frozen} == frozen
    trained = {path.split("/")[0] for path in planned.abstract.trainable}
    assert trained == {"vision", "connector", "language"} - frozen


def test_rows_are_an_image_and_trained_text():
    """Everything after the image is a target."""
    model = bench.from_size("tiny", "full", 64, 2, "float32", "none").model
    batch = bench.synthetic(model, 2, 64)
    patches = model.patches
    assert (batch.tokens[:, 1 : 1 + patches] == model.image_token).all()
    assert (batch.tokens == model.image_token).sum() == 2 * patches
    np.testing.assert_array_equal(batch.image_index[0, 1 : 1 + patches], np.arange(patches))
    assert batch.weights.sum() == 2 * (64 - patches - 1)
    assert (batch.targets[:, patches:-1] == batch.tokens[:, patches + 1 :]).all()


def test_rows_of_text_alone_are_trained_everywhere():
    model = bench.from_size("tiny", "full", 64, 2, "float32", "none").model
    batch = bench.synthetic(model, 2, 64, images=False)
    assert batch.pixels.size == 0 and (batch.tokens != model.image_token).all()
    assert batch.weights.sum() == 2 * 63, "nothing follows the last token"


def test_adapters_leave_the_language_model_frozen():
    work = bench.from_size("tiny", "instruct", 64, 8, "float32", "none", lora=4)
    planned = make_setup(
        *(work.model, work.compute, work.optimizer, make_mesh(work.mesh.axes)),
        steps=10,
        adapter=work.adapter,
    )
    trained = {path.rpartition("/")[2] for path in planned.abstract.trainable if "lang" in path}
    assert trained == {"lora_a", "lora_b"}
    assert any(path.startswith("connector/") for path in planned.abstract.trainable)


def test_settings_are_all_combinations():
    work = bench.from_size("tiny", "instruct", 64, 8, "float32", "none")
    assert bench.combinations(work, bench.Axes()) == [work]
    axes = bench.Axes((8, 16), (1, 2), ("dense",), ("none", "full"))
    works = bench.combinations(work, axes)
    assert len(works) == 8 and [w.rows for w in works] == [8] * 4 + [16] * 4
    assert {w.compute.attention for w in works} == {"dense"}
    assert {(w.microbatches, w.compute.remat) for w in works} == {
        (1, "none"), (1, "full"), (2, "none"), (2, "full"),
    }  # fmt: skip


def test_options_of_a_stage_change_a_size():
    words = "--optimizer.moments int8 --optimizer.rounding kahan --mesh.fsdp 8 --mesh.data 1"
    plain = bench.from_size("8b", "instruct", 2048, 8, "bfloat16", "full")
    work = bench.from_size("8b", "instruct", 2048, 8, "bfloat16", "full", overrides=words.split())
    assert (work.optimizer.moments, work.optimizer.rounding) == ("int8", "kahan")
    assert (work.mesh.fsdp, work.mesh.data) == (8, 1)
    assert work.optimizer.parts == plain.optimizer.parts and work.compute == plain.compute
    planned = make_setup(
        work.model, work.compute, work.optimizer, make_mesh(work.mesh.axes), steps=10
    )
    moments = {x.dtype.name for x in jax.tree.leaves(planned.abstract.opt_state) if x.ndim}
    assert {"int8", "uint8"} & moments and "bfloat16" in moments, "codes, Kahan's rests"


def test_kernels_are_tried_before_they_are_timed(monkeypatch, capsys):
    dense = BACKENDS["dense"]
    monkeypatch.setitem(BACKENDS, "loop", dense._replace(kernel=True))
    assert main([*WORDS, "--attention", "loop"]) == 0
    errors = json.loads(capsys.readouterr().out)["attention_errors"]
    assert errors == {"vision": 0.0, "language": 0.0}, "dense attention beside itself"
    blind = lambda q, k, v, segments, *, causal: dense.run(q, k, v, None, causal=causal)  # noqa: E731
    monkeypatch.setitem(BACKENDS, "loop", dense._replace(kernel=True, run=blind))
    assert main([*WORDS, "--attention", "loop"]) == 2
    assert "the kernel is wrong here; choose blocks" in capsys.readouterr().err


def test_options_are_named_in_the_result(capsys):
    assert main([*WORDS, "--optimizer.moments", "bfloat16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["overrides"] == "--optimizer.moments bfloat16"


def test_a_stage_file_is_timed_as_it_is(data, tmp_path):
    config = tiny.config(data, tmp_path / "run", train={"microbatches": 2})
    work = bench.from_config(config, None, None, None, None)
    assert work.rows == config.data.rows // 2
    assert (work.model, work.optimizer, work.length) == (
        config.model,
        config.optimizer,
        config.data.length,
    )
    assert work.compute == config.compute
    changed = bench.from_config(config, 48, 16, "bfloat16", "full")
    assert (changed.length, changed.rows) == (48, 16)
    formats = {"compute": "bfloat16", "parameters": "bfloat16", "remat": "full"}
    assert changed.compute == dataclasses.replace(config.compute, **formats)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench --size tiny --batch 3", "--batch 3 does not divide over 8 devices"),
        ("bench --size tiny --length 17 --batch 8", "--length 17: too short for an image of 16"),
        ("bench --config none.yaml --stage align", "--stage align has no effect with --config"),
        ("bench --size tiny --optimizer.moment int8", "did you mean 'moments'?"),
        ("bench --size tiny --optimizer.rounding kahan", "no effect on float32 parameters"),
        ("bench --size tiny --data.workers 2", "data: unknown key; allowed are compute, optimizer"),
        ("bench --size tiny --lenght 64", "--lenght: unknown option; mllm-jax bench --help"),
        (
            "bench --size tiny --batch 8 --data.rows 8",
            "--data.rows says what --batch does; give --batch alone",
        ),
        (
            "bench --size tiny --sweep --compute.remat full",
            "--compute.remat says what --remat does; give --remat alone",
        ),
    ],
)
def test_refusals(words, said, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("mllm-jax: error: ") and error.count("\n") == 1
    assert said in error


def test_matmul_parameters_leave_out_the_look_up(result):
    model = bench.from_size("tiny", "full", 64, 8, "float32", "none").model
    assert sum(matmul_parameters(model).values()) < result["parameters"]
