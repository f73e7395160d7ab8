"""Several real processes on this machine, and on two hosts: the same losses, and every end named.

All runs have four devices, so they sum in one order: whatever was lost, stopped or spread over
other processes in between, metrics.jsonl equals that of an undisturbed run to the bit.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from mllm_jax.checkpoints.frozen import frozen_leaves
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.common.errors import LOST, PREEMPTED
from mllm_jax.config import loading
from mllm_jax.conversion import conversions
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.distributed import sharding
from mllm_jax.training.heldout import open_heldout
from mllm_jax.training.loop import train
from tests.support import disks, tiny, weights
from tests.support.local import LOST_AFTER, ROOT, Local, environment

pytestmark = pytest.mark.slow

STEPS = 10


@pytest.fixture(scope="module")
def stage(data, tmp_path_factory) -> Path:
    """The stage's file; its data is indexed, as several processes want it."""
    folder = tmp_path_factory.mktemp("stage")
    records = json.loads((data / "eu.json").read_text())[:6]
    heldout = json.dumps([record | {"id": f"heldout {record['id']}"} for record in records])
    (folder / "heldout.json").write_text(heldout, encoding="utf-8")
    evaluate = {"data": str(folder / "heldout.json"), "images": str(data / "images"), "every": 3}
    config = tiny.config(
        data,
        folder / "run",
        mesh={"data": -1},
        train={"steps": STEPS, "save_every": 5, "log_every": 1, "evaluate": evaluate},
    )
    tokenizer = load_tokenizer(config.init.tokenizer or "")
    loader = Loader(config.data, config.model, tokenizer, config.seed)
    open_heldout(config, tokenizer, loader.streams, loader.shares(STEPS))
    loading.dump(config, folder / "stage.yaml")
    return folder / "stage.yaml"


def run(stage: Path, out: Path, processes: int, *words: str) -> str:
    local = Local(stage, out, processes, *words)
    assert local.end() == 0, local.said()
    return local.said()


@pytest.fixture(scope="module")
def straight(stage, tmp_path_factory) -> list[dict]:
    """One process of four devices, undisturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(stage, out, 1)
    assert [line["step"] for line in tiny.numbers(out)] == list(range(STEPS))
    measured = [line["step"] + 1 for line in tiny.numbers(out) if "heldout/loss" in line]
    assert measured == [3, 6, 9, STEPS]
    return tiny.numbers(out)


def test_saved_on_four_resumed_on_two_and_one(stage, straight, tmp_path):
    four = tmp_path / "four"
    said = run(stage, four, 4, "--train.stop_at", "5")
    assert tiny.numbers(four) == straight[:5]
    printed = [line for line in said.splitlines() if "step 3/10" in line]
    assert len(printed) == 1 and printed[0].startswith("[0] ")  # process 0 alone
    for processes in (2, 1):
        out = tmp_path / f"on{processes}"
        shutil.copytree(four, out)
        run(stage, out, processes, "--resume", "--train.stop_at", str(STEPS))
        assert tiny.numbers(out) == straight
    # on one device sums are taken in another order; the data is the same
    config = loading.load(tiny.Config, stage, ["--out", str(four)])
    train(config, resume=True, devices=jax.devices()[:1])
    assert [x["records_crc32"] for x in tiny.numbers(four)] == [
        x["records_crc32"] for x in straight
    ]
    losses = [[line["loss"] for line in each] for each in (tiny.numbers(four), straight)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_frozen_parameters_of_several_processes(data, tmp_path):
    """Process 0 writes them, all read their parts; resumed by one process to the bit."""
    source = weights.model_folder(data, tmp_path / "source")
    config = tiny.config(
        data,
        tmp_path / "run",
        init={"weights": str(source), "tokenizer": None},
        compute={"compute": "bfloat16"},
        optimizer={
            "parts": {
                "trained": {"match": "(connector|language)/.*"},
                "frozen": {"match": "vision/.*", "train": False},
            }
        },
        mesh={"data": 2, "fsdp": 2},
        train={"steps": 4, "save_every": 2},
    )
    Loader(config.data, config.model, load_tokenizer(str(source)), config.seed)
    loading.dump(config, tmp_path / "stage.yaml")
    one, two = tmp_path / "one", tmp_path / "two"
    run(tmp_path / "stage.yaml", one, 1)
    run(tmp_path / "stage.yaml", two, 2, "--train.stop_at", "2")
    run(tmp_path / "stage.yaml", two, 1, "--resume", "--train.stop_at", "4")
    assert tiny.numbers(one) == tiny.numbers(two)
    file = Path("frozen") / "model.safetensors"
    assert (one / file).read_bytes() == (two / file).read_bytes()
    for path, leaf in frozen_leaves(two).items():
        assert leaf.read().tobytes() == weights.arrays(data)[path].tobytes(), path


@pytest.mark.parametrize(
    ("mesh", "processes", "resumed"),
    [
        ({"data": 1, "context": 4}, 2, 1),
        ({"data": 2, "context": 2}, 4, 2),
        ({"data": 1, "tensor": 2, "context": 2}, 2, 4),
    ],
    ids=str,
)
def test_processes_that_divide_the_length_of_rows(stage, tmp_path, mesh, processes, resumed):
    """As one process of four devices to the bit, resumed too; as one device but for rounding."""
    axes = [mesh.get(axis, 1) for axis in sharding.AXES]
    rows = sharding.make_mesh(axes, jax.devices()[:4]).devices.reshape(-1, axes[-1])
    here = [{device.id // (4 // processes) for device in row} for row in rows]
    assert all(len(numbers) > 1 for numbers in here)  # each row is of several processes
    words = [word for axis, size in mesh.items() for word in (f"--mesh.{axis}", str(size))]
    one, several, again = (tmp_path / name for name in ("one", "several", "again"))
    run(stage, one, 1, *words)
    run(stage, several, processes, *words)
    run(stage, again, processes, *words, "--train.stop_at", "5")
    run(stage, again, resumed, *words, "--resume", "--train.stop_at", str(STEPS))
    for out in (several, again):
        assert tiny.numbers(out) == tiny.numbers(one)
        assert_same_parameters(out, one)
    config = loading.load(tiny.Config, stage, ["--out", str(tmp_path / "single")])
    single = train(config, devices=jax.devices()[:1])
    for name in ("loss", "grad_norm", "heldout/loss"):
        values = [[x[name] for x in tiny.numbers(out) if name in x] for out in (several, single)]
        np.testing.assert_allclose(*values, rtol=1e-4, err_msg=name)
    assert_same_parameters(several, single, atol=1e-4)


def assert_same_parameters(run: Path, other: Path, atol: float = 0) -> None:
    """Those of the last checkpoints."""
    config = loading.load(tiny.Config, run / "config.yaml", [])
    opened = (open_model(folder) for folder in (run, other))
    leaves, others = (model.leaves(conversions.abstract(config.model)) for model in opened)
    for path, leaf in leaves.items():
        want = others[path].read()
        np.testing.assert_allclose(leaf.read(), want, rtol=0, atol=atol, err_msg=path)


SLOW = """
import os, sys, time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep({seconds})
if "MLLM_JAX_GUARD" in os.environ:
    sys.slow = Slow()  # deleted when the interpreter ends, at which no thread sends heartbeats
"""


def test_processes_that_take_long_to_end_have_finished(stage, straight, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW.format(seconds=LOST_AFTER + 5))
    local = Local(
        stage, tmp_path / "run", 2, variables={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    )
    local.reach(STEPS)
    start = time.monotonic()
    assert local.end() == 0, local.said()
    assert time.monotonic() - start > LOST_AFTER + 5 and "error" not in local.said()
    assert tiny.numbers(local.out) == straight


def test_sigterm_to_one_process_stops_all_at_one_step(stage, straight, tmp_path):
    local = Local(stage, tmp_path / "run", 2)
    local.reach(2)
    os.kill(local.pid(1, guard=True), signal.SIGTERM)
    assert local.end() == PREEMPTED, local.said()
    before = tiny.numbers(local.out)
    assert 2 <= len(before) < STEPS and before == straight[: len(before)]
    assert (local.out / "checkpoints" / str(len(before)) / "params").is_dir()
    assert local.said().count(f"error: SIGTERM: step {len(before)} is saved in ") == 1
    run(stage, local.out, 1, "--resume", "auto")
    assert tiny.numbers(local.out) == straight


def test_a_killed_process_is_named_and_the_run_starts_again(stage, straight, tmp_path):
    """Killed after the save at step 5, or before it was whole: both must come back."""
    local = Local(stage, tmp_path / "run", 2, restarts=1)
    local.reach(6)
    os.kill(local.pid(1, guard=False), signal.SIGKILL)
    assert local.end() == 0, local.said()
    said = local.said()
    for number in (0, 1):
        assert f"[{number}] mllm-jax: error: process 1 of 2 (host " in said, said
    assert "was killed by SIGKILL; all processes end" in said
    assert f"ended with code {LOST}; restart 1 of 1" in said
    assert tiny.numbers(local.out) == straight


def test_a_stopped_process_is_named_in_time(stage, straight, tmp_path):
    local = Local(stage, tmp_path / "run", 2)
    local.reach(3)
    os.kill(local.pid(1, guard=False), signal.SIGSTOP)
    start = time.monotonic()
    assert local.end() == LOST
    assert time.monotonic() - start < 2 * LOST_AFTER + 5
    assert "process 1 of 2 (host " in local.said() and "has stalled" in local.said()
    assert tiny.numbers(local.out) == straight[: len(tiny.numbers(local.out))]


def test_a_process_whose_data_does_not_come_is_named(stage, straight, tmp_path):
    """Its worker hangs as on a dead file system: all processes are alive, and wait."""
    words = ("--data.workers", "1", "--stuck-after", "5")
    local = Local(stage, tmp_path / "run", 2, *words)
    local.reach(3)
    trainer = local.pid(1, guard=False)
    children = Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()
    workers = [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    os.kill(workers[0], signal.SIGSTOP)
    code = local.end()
    local.kill()  # a worker that is stopped does not see that its trainer is gone
    assert code == LOST, local.said()
    said = local.said()
    step = len(tiny.numbers(local.out))
    assert re.search(r"process 1 \(host \S+\) for the data of step \d+; process 0 ", said), said
    assert re.search(r"for the (start|end) of step|for the others at the next step", said), said
    assert "in _receive" in said and said.count("Traceback") == 0  # where it stood, nothing else
    assert tiny.numbers(local.out) == straight[:step]


def test_two_hosts_and_one_cut_off(stage, straight, tmp_path):
    """Addresses and names of their own; then the cable is pulled in the middle of the steps."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, for network namespaces")
    out = tmp_path / "run"
    words = f"train --config {stage} --out {out} --lost-after {LOST_AFTER} --train.steps {STEPS}"
    flags = '--coordinator "$COORDINATOR" --processes "$HOST_COUNT" --process "$HOST_INDEX"'
    hosts = subprocess.Popen(
        [
            "bash",
            ROOT / "tests" / "support" / "two_hosts.sh",
            "bash",
            "-c",
            f"exec mllm-jax {words} {flags}",
        ],
        env=environment(2),
        cwd=tmp_path,
    )
    path, end = out / "metrics.jsonl", time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < 3:
        logs = [f.read_text() for f in tmp_path.glob("host*.log")]
        assert hosts.poll() is None and time.monotonic() < end, logs
        time.sleep(0.01)
    subprocess.run(["ip", "-n", "mllm1", "link", "set", "eth", "down"], check=True)
    start = time.monotonic()
    hosts.wait(timeout=120)
    assert time.monotonic() - start < 2 * LOST_AFTER + 5
    first, other = ((tmp_path / f"host{i}.log").read_text() for i in (0, 1))
    assert "process 1 of 2 (host mllm1) was not heard of for 10 s" in first, first
    assert "process 0 of 2 (host 10.77.0.1) was not heard of for 10 s" in other, other
    assert tiny.numbers(out) == straight[: len(tiny.numbers(out))]


def test_a_full_disk_ends_both_and_is_said_once(stage, straight, tmp_path):
    out = tmp_path / "run"
    with disks.small_disk(tmp_path, megabytes=8) as disk:
        run(stage, out, 2, "--train.stop_at", "5")
        shutil.move(out / "checkpoints", disk / "checkpoints")
        (out / "checkpoints").symlink_to(disk / "checkpoints")
        filler = disks.fill(disk)
        again = ("--resume", "--train.stop_at", str(STEPS))
        local = Local(stage, out, 2, *again)
        assert local.end() == 1, local.said()
        errors = [line for line in local.said().splitlines() if "mllm-jax: error" in line]
        assert len(errors) == 1 and "the disk is full" in errors[0], local.said()
        assert "checkpoint 5 is intact" in errors[0]
        # process 1 may have been writing still; what it left is cleared away at the next start
        assert [x for x in os.listdir(disk / "checkpoints") if x.isdecimal()] == ["5"]
        filler.unlink()
        run(stage, out, 2, *again)
        assert tiny.numbers(out) == straight


def test_a_recipe_on_two_processes(stage, data, tmp_path):
    """Stages and evaluation on both, export on the first; weights and answers as on one."""
    mesh, train = {"data": -1}, {"steps": 4, "save_every": 2}
    for name in ("first", "second"):
        config = tiny.config(data, tmp_path / "none", mesh=mesh, train=train)
        loading.dump(config, tmp_path / f"{name}.yaml")
    evaluation = {"data": str(data / "eu.json"), "images": str(data / "images")}
    tree = {
        "stages": ["first.yaml", "second.yaml"],
        "evaluate": {**evaluation, "max_new_tokens": 4, "rows": 4, "devices": 1},
        "export": "float32",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    for processes in (1, 2):
        out = tmp_path / f"on{processes}"
        local = Local(tmp_path / "recipe.yaml", out, processes, verb=("recipe",))
        assert local.end() == 0, local.said()
        assert local.said().count("stage second -> ") == 1
        assert json.loads((out / "summary.json").read_text())["device"] == "4 x cpu"
    one, two = tmp_path / "on1", tmp_path / "on2"
    for name in ("first", "second"):
        assert tiny.numbers(one / name) == tiny.numbers(two / name)
    for file in ("hf/model.safetensors", "evaluation/answers.jsonl"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_bad_input_is_said_once(stage, tmp_path):
    local = Local(stage, tmp_path / "run", 2, "--seed", "many")
    assert local.end() == 2
    # JAX may say of its own that the other has ended
    errors = [line for line in local.said().splitlines() if "mllm-jax: error" in line]
    assert errors == ["[0] mllm-jax: error: seed: expected a whole number, got 'many'"]
    assert not local.out.exists()
