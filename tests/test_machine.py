"""What a machine does to a command: kills it, interrupts it, fills its disk, at random moments.

A seed decides verb and moment. Killed ones run in a process-id namespace where every start has the
same id, as in containers. MLLM_JAX_FAULT_SEEDS says how many of each there are.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from mllm_jax.checkpoints.params import stored_leaves
from mllm_jax.common.errors import INTERRUPTED, PREEMPTED
from mllm_jax.config import loading
from tests.support import disks, tiny, xla

pytestmark = pytest.mark.slow

SEEDS = int(os.environ.get("MLLM_JAX_FAULT_SEEDS", "50"))
ROOT = Path(__file__).resolve().parent.parent
VERBS = ("from-hf", "to-hf", "join", "prepare", "evaluate", "recipe")
PATIENCE = 300  # seconds for what takes ten


class Site(NamedTuple):
    """What the verbs read: data, a trained run, the same run as a Hugging Face folder."""

    folder: Path
    environment: dict[str, str]

    def words(self, verb: str, out: Path) -> list[str]:
        run, hf, data = (self.folder / name for name in ("run", "hf", "data"))
        return {
            "from-hf": ["convert", "from-hf", hf, out / "made"],
            "to-hf": ["convert", "to-hf", run, out / "made"],
            "join": ["convert", "join", out / "made", "--vision", run, "--language", run],
            "prepare": [
                "prepare",
                "--config",
                self.folder / "stage.yaml",
                "--workers",
                "2",
                "--data.index",
                out / "made",
            ],
            "evaluate": ["evaluate", run, "--data", data / "eu.json", "--out", out / "made"],
            "recipe": ["recipe", self.folder / "recipe.yaml", "--out", out / "made"],
            "train": [
                "train",
                "--config",
                self.folder / "stage.yaml",
                "--out",
                out / "made",
                "--resume",
                "auto",
            ],
        }[verb]

    def start(
        self, verb: str, out: Path, *before: str, logs: Path | None = None
    ) -> subprocess.Popen[str]:
        logs = logs or out
        with (logs / "err").open("w") as err, (logs / "log").open("w") as log:
            return subprocess.Popen(
                [*before, sys.executable, "-m", "mllm_jax", *self.words(verb, out)],
                stdout=log,
                stderr=err,
                text=True,
                env=self.environment,
                start_new_session=True,
            )

    def run(self, verb: str, out: Path) -> None:
        process = self.start(verb, out)
        assert process.wait(PATIENCE) == 0, (out / "err").read_text()


def content(verb: str, out: Path) -> Mapping[str, object]:
    """What a verb has made, without times."""
    made = out / "made"
    if verb in ("from-hf", "join"):
        leaves = stored_leaves(made / "params")
        return {path: leaf.read().tobytes() for path, leaf in leaves.items()}
    if verb == "train":
        return {str(line["step"]): line for line in tiny.numbers(made)}
    files = {
        "to-hf": ("model.safetensors", "tokenizer.json", "config.json"),
        "evaluate": ("answers.jsonl", "scores.md"),
        "recipe": ("hf/model.safetensors", "evaluation/answers.jsonl"),
        "prepare": ("*/*/*.npy", "*/*/*.bin", "*/*/faults.jsonl"),
    }[verb]
    found = [path for pattern in files for path in made.glob(pattern)]
    assert len(found) >= len(files)
    return {str(path.relative_to(made)): path.read_bytes() for path in found}


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if ".partial" in p.name or p.name.endswith(".lock")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("machine")
    tiny.make_data(folder / "data")
    train = {"steps": 6, "save_every": 2, "log_every": 100}
    config = tiny.config(folder / "data", folder / "run", train=train)
    loading.dump(config, folder / "stage.yaml")
    evaluation = {"data": str(folder / "data" / "eu.json"), "max_new_tokens": 4, "rows": 8}
    recipe = {"stages": ["stage.yaml"], "evaluate": evaluation, "export": "float32"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla.flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    made = Site(folder, environment)
    for words in (
        ["train", "--config", folder / "stage.yaml"],
        ["convert", "to-hf", folder / "run", folder / "hf"],
    ):
        command = [sys.executable, "-m", "mllm_jax", *words]
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    return made


class Straight(NamedTuple):
    """An undisturbed run."""

    seconds: float
    content: Mapping[str, object]


@pytest.fixture(scope="module")
def straight(site: Site, tmp_path_factory):
    known: dict[str, Straight] = {}

    def of(verb: str) -> Straight:
        if verb not in known:
            out, start = tmp_path_factory.mktemp(verb), time.monotonic()
            site.run(verb, out)
            known[verb] = Straight(time.monotonic() - start, content(verb, out))
        return known[verb]

    return of


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_killed_command_starts_again_as_if_nothing_had_been(site, straight, tmp_path, seed):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a process-id namespace")
    chance, verb = random.Random(seed), VERBS[seed % len(VERBS)]
    seconds, expected = straight(verb)
    for _ in range(chance.randrange(1, 3)):
        process = site.start(verb, tmp_path, "unshare", "--pid", "--fork", "--kill-child")
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.wait()
        time.sleep(0.2)  # its child dies of it
    process = site.start(verb, tmp_path, "unshare", "--pid", "--fork", "--kill-child")
    code, err = process.wait(PATIENCE), (tmp_path / "err").read_text()
    # one that was killed when all was done is not made again
    assert code == 0 or (code == 2 and "made: exists and is not empty" in err), err
    assert content(verb, tmp_path) == expected
    assert [path for path in leftovers(tmp_path) if code == 0 or path.is_dir()] == []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_signal_ends_it_in_one_line_and_leaves_no_child(site, straight, tmp_path, seed):
    chance, verb = random.Random(seed), (*VERBS, "train")[seed % (len(VERBS) + 1)]
    seconds, expected = straight(verb)
    number = chance.choice([signal.SIGINT, signal.SIGTERM])
    process = site.start(verb, tmp_path)
    until_it_listens(process)
    time.sleep(chance.uniform(0, 1.0) * seconds)
    process.send_signal(number)
    start = time.monotonic()
    code = process.wait(60)
    assert time.monotonic() - start < 30
    err = (tmp_path / "err").read_text()
    lines = [line for line in err.splitlines() if not line.startswith("step ")]
    if code == 0:  # it was done
        assert lines == []
    else:
        assert (code, len(lines)) == ({2: INTERRUPTED, 15: PREEMPTED}[number], 1), err
        assert lines[0].startswith("mllm-jax: ")
    assert in_session(process.pid) == []
    if code != 0:
        site.run(verb, tmp_path)
    assert content(verb, tmp_path) == expected


def until_it_listens(process: subprocess.Popen[str]) -> None:
    """Before that the interpreter itself starts, which knows nothing of us."""
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) & 1 << signal.SIGTERM - 1:
                return
        time.sleep(0.005)


def in_session(session: int) -> list[str]:
    """Processes of a session that still run; a moment is given to the dying."""
    found: list[str] = []
    for _ in range(50):
        words = ["ps", "-o", "pid=,stat=,args=", "-s", str(session)]
        lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
        found = [line for line in lines if line.split()[1][0] != "Z"]
        if not found:
            break
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("seed", range(min(SEEDS, 20)))
def test_a_full_disk_ends_it_in_one_line_until_there_is_room(site, straight, tmp_path, seed):
    chance, verb = random.Random(seed), ("train", "prepare", "from-hf", "evaluate")[seed % 4]
    seconds, expected = straight(verb)
    with disks.small_disk(tmp_path, megabytes=64) as disk:
        process = site.start(verb, disk, logs=tmp_path)
        filled = threading.Timer(chance.uniform(0.2, 1.0) * seconds, fill_up, [disk])
        filled.start()
        code = process.wait(PATIENCE)
        filled.join()
        err = (tmp_path / "err").read_text()
        (disk / "filler").unlink()
        assert code in (0, 1), err
        if code == 1:
            lines = [line for line in err.splitlines() if not line.startswith("step ")]
            assert len(lines) == 1 and "the disk is full" in lines[0], err
        if verb == "train" or code == 1:
            site.run(verb, disk)
        assert content(verb, disk) == expected
        assert leftovers(disk) == []


def fill_up(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
