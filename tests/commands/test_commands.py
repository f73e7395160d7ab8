"""The command line: verbs and flags as others script them, exit codes, and a quick --help."""

import argparse
import errno
import importlib
import inspect
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import mllm_jax
from mllm_jax.__main__ import main
from mllm_jax.commands.bench.request import Request
from mllm_jax.commands.flags import names as comma_names
from mllm_jax.commands.main import VERBS, make_parser
from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, RunError
from mllm_jax.generation.devices import ALL, Devices
from mllm_jax.generation.samples import sampler

WORK = {  # what a verb calls -> the module that does the work
    "quickstart": "commands.quickstart.stages",
    "recipe": "commands.recipe.stages",
    "report": "commands.report.pages",
    "convert": "conversion.conversions",
    "prepare": "commands.prepare.tables",
    "inspect": "commands.inspect.pages",
    "bench": "commands.bench.turns",
    "bench --baseline": "commands.bench.baseline",
    "bench --data": "commands.bench.loader",
    "train": "training.loop",
    "preflight": "preflight.report",
    "generate": "generation.answer",
    "evaluate": "evaluation.request",
    "score": "evaluation.scoring",
    "compare": "evaluation.comparison_table",
    "arena": "evaluation.preferences",
    "gap": "evaluation.gap",
    "corpus": "corpus.decontamination_files",
}


class Answer(NamedTuple):
    """What `generate` gets from its module."""

    text: str


class Fake(types.ModuleType):
    """Replaces the module that does a verb's work: remembers how it was called."""

    def __init__(self, name: str, function: str, error: BaseException | None = None):
        super().__init__(f"mllm_jax.{WORK[name]}")
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def call(*args: Any, **kwargs: Any) -> Answer:
            self.calls.append((args, kwargs))
            if error is not None:
                raise error
            return Answer("hi")

        setattr(self, function, call)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    def make(name: str, function: str, error: BaseException | None = None) -> Fake:
        module = Fake(name, function, error)
        package, _, name = module.__name__.rpartition(".")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(importlib.import_module(package), name, module, raising=False)
        return module

    return make


# (verb, function, words, positional arguments, keyword arguments)
EVALUATE = {
    **dict.fromkeys(("data", "images", "limit", "folder", "cache")),
    "languages": [],
    "rows": 32,
    "resume": False,
    "again": False,
    "devices": ALL,
    "fidelity": [],
    "identifier": None,
    "chrf": False,
}
SCORE = {
    **{name: EVALUATE[name] for name in ("fidelity", "identifier", "chrf")},
    **dict.fromkeys(("language", "without_images", "json_file")),
}
CALLS = [
    ("quickstart", "run", "quickstart", (Path("runs/quickstart"),), {"share": 1.0}),
    ("quickstart", "run", "quickstart --out o --share 0.1", (Path("o"),), {"share": 0.1}),
    (
        "recipe",
        "run",
        "recipe r.yaml",
        (Path("r.yaml"),),
        {"out": None, "overrides": [], "only": ()},
    ),
    (
        "recipe",
        "run",
        "recipe r.yaml --train.steps 3 --out o --a.seed=2 --only a b",
        (Path("r.yaml"),),
        {"out": Path("o"), "overrides": ["--train.steps", "3", "--a.seed=2"], "only": ["a", "b"]},
    ),
    ("report", "run", "report runs/x", (Path("runs/x"),), {"out": None}),
    ("report", "run", "report runs/x --out o.html", (Path("runs/x"),), {"out": Path("o.html")}),
    ("convert", "from_hf", "convert from-hf src out", (Path("src"), Path("out")), {}),
    (
        "convert",
        "join",
        "convert join out --vision clip --language llama",
        (Path("out"),),
        {
            "vision": Path("clip"),
            "language": Path("llama"),
            "connector": "linear",
            "chat_format": None,
            "new_rows": "transformers",
            "connector_weights": None,
            "pool": "none",
        },
    ),
    (
        "convert",
        "join",
        "convert join --vision clip out --language llama --connector mlp --chat-format plain",
        (Path("out"),),
        {
            "vision": Path("clip"),
            "language": Path("llama"),
            "connector": "mlp",
            "chat_format": "plain",
            "new_rows": "transformers",
            "connector_weights": None,
            "pool": "none",
        },
    ),
    (
        "convert",
        "to_hf",
        "convert to-hf m out",
        (Path("m"), Path("out")),
        {"dtype": None, "connector_form": None},
    ),
    (
        "convert",
        "to_hf",
        "convert to-hf m out --dtype bfloat16 --connector-form gelu",
        (Path("m"), Path("out")),
        {"dtype": "bfloat16", "connector_form": "gelu"},
    ),
    (
        "generate",
        "generate",
        "generate m --prompt Zer?",
        (Path("m"), "Zer?", [], 128, 0.0, 0),
        {"devices": Devices(1)},
    ),
    (
        "generate",
        "generate",
        "generate m --prompt p --image a.png b.png --image c.png --max-new-tokens 7 "
        "--temperature 0.5 --seed -3 --json --fsdp 2 --tensor 4",
        (Path("m"), "p", [Path("a.png"), Path("b.png"), Path("c.png")], 7, 0.5, -3),
        {"devices": Devices(8, 2, 4)},
    ),
    (
        "evaluate",
        "run_tasks",
        "evaluate m --data d.json",
        (Path("m"), [], None),
        EVALUATE | {"data": Path("d.json")},
    ),
    (
        "evaluate",
        "run_tasks",
        "evaluate m --task pope a.yaml --task gqa --language eu --limit 3 --out o --resume "
        "--rows 8 --folder f --cache c --again --devices 4 --tensor 2 "
        "--fidelity eu en --chrf",
        (Path("m"), ["pope", "a.yaml", "gqa"], Path("o")),
        {
            **EVALUATE,
            "languages": ["eu"],
            "limit": 3,
            "folder": Path("f"),
            "rows": 8,
            "resume": True,
            "cache": Path("c"),
            "again": True,
            "devices": Devices(4, tensor=2),
            "fidelity": ["eu", "en"],
            "chrf": True,
        },
    ),
    (
        "score",
        "score_file",
        "score pope --answers a.jsonl",
        ("pope", Path("a.jsonl"), []),
        SCORE,
    ),
    (
        "score",
        "score_file",
        "score t.yaml --answers a --truth b c --truth d --language eu --json o.json "
        "--fidelity eu en --identifier lid.bin --chrf --without-images w",
        ("t.yaml", Path("a"), [Path("b"), Path("c"), Path("d")]),
        {
            **SCORE,
            "language": "eu",
            "fidelity": ["eu", "en"],
            "identifier": Path("lid.bin"),
            "chrf": True,
            "without_images": Path("w"),
            "json_file": Path("o.json"),
        },
    ),
    (
        "compare",
        "compare_files",
        "compare a b",
        ([Path("a"), Path("b")], None),
        {"common": False, "json_file": None},
    ),
    (
        "compare",
        "compare_files",
        "compare a b c --test bootstrap --common --json o.json",
        ([Path("a"), Path("b"), Path("c")], "bootstrap"),
        {"common": True, "json_file": Path("o.json")},
    ),
    (
        "corpus",
        "run",
        "corpus decontaminate d.jsonl --against a b --against c --images i --against-images j "
        "--out o --clean c.jsonl --cache h --words 8 --workers 2",
        (Path("d.jsonl"), [Path("a"), Path("b"), Path("c")]),
        {
            "images": Path("i"),
            "task_images": Path("j"),
            "out": Path("o"),
            "clean": Path("c.jsonl"),
            "cache": Path("h"),
            "words": 8,
            "workers": 2,
        },
    ),
    ("gap", "measure", "gap m --data d.json", (Path("m"), Path("d.json"), None, None, None), {}),
    (
        "gap",
        "measure",
        "gap m --data d.json --out o --images i --json j.json",
        (Path("m"), Path("d.json"), Path("o"), Path("i"), Path("j.json")),
        {},
    ),
    ("arena", "rate_files", "arena a.jsonl", ([Path("a.jsonl")], None, None), {}),
    (
        "arena",
        "rate_files",
        "arena a.csv b.json --benchmarks s.json --json o.json",
        ([Path("a.csv"), Path("b.json")], Path("s.json"), Path("o.json")),
        {},
    ),
    ("bench", "main", "bench --size tiny", (Request(size="tiny"),), {}),
    (
        "bench",
        "main",
        "bench --config c.yaml --optimizer.moments int8",
        (Request(config="c.yaml", overrides=("--optimizer.moments", "int8")),),
        {},
    ),
    (
        "bench --data",
        "main",
        "bench --data --config c.yaml --steps 7 --json o.json --data.workers 2",
        ("c.yaml",),
        {"steps": 7, "json_file": "o.json", "overrides": ["--data.workers", "2"]},
    ),
    (
        "bench",
        "main",
        "bench --size 1b --stage instruct --lora 8 --length 64 --batch 2,4 --microbatches 1,2 "
        "--attention dense,blocks --remat dots,dots --steps 3 --dtype float32 --text-only --sweep "
        "--json o.json",
        (
            Request(
                size="1b",
                stage="instruct",
                lora=8,
                length=64,
                batch=(2, 4),
                microbatches=(1, 2),
                attention=("dense", "blocks"),
                remat=("dots",),
                steps=3,
                dtype="float32",
                text_only=True,
                sweep=True,
                json_file="o.json",
            ),
        ),
        {},
    ),
]


@pytest.mark.parametrize(("name", "function", "words", "args", "kwargs"), CALLS)
def test_a_verb_calls_its_function(fake, name, function, words: str, args, kwargs):
    made = fake(name, function)
    assert main(words.split()) == 0
    assert made.calls == [(args, kwargs)]


@pytest.mark.parametrize(("name", "function", "words", "args", "kwargs"), CALLS)
def test_a_function_takes_what_its_verb_passes(name, function, words: str, args, kwargs):
    module = importlib.import_module(f"mllm_jax.{WORK[name]}")
    inspect.signature(getattr(module, function)).bind(*args, **kwargs)


STAGE = {
    "model": {"language": {"vocab": 64, "width": 8, "mlp": 16, "layers": 1, "heads": 1,
                           "kv_heads": 1, "head_dim": 8}},
    "init": {"tokenizer": "tok"},
    "data": {"streams": {"a": {"path": "a.json"}}, "languages": ["eu"], "image_slots": 0},
    "optimizer": {"parts": {"all": {"match": ".*"}}},
    "train": {"steps": 3},
}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> str:
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(STAGE))
    return str(path)


def test_train_takes_overrides_of_any_knob_beside_its_flags(fake, stage: str):
    made = fake("train", "train")
    words = ["--optimizer.learning_rate", "1e-4", "--out", "runs/x", "--seed=7", "--resume"]
    assert main(["train", "--mesh.data", "-1", "--config", stage, *words]) == 0
    ((config,), kwargs) = made.calls[0]
    assert kwargs == {"resume": True, "accept_changed_data": False, "sampler": sampler}
    assert (config.optimizer.learning_rate, config.out, config.seed) == (1e-4, "runs/x", 7)
    assert config.mesh.data == -1


def test_changed_data_are_accepted_on_resume_alone(fake, capsys, stage: str):
    made = fake("train", "train")
    assert main(["train", "--config", stage, "--resume", "auto", "--accept-changed-data"]) == 0
    assert made.calls[0][1] == {"resume": "auto", "accept_changed_data": True, "sampler": sampler}
    assert main(["train", "--config", stage, "--accept-changed-data"]) == 2
    error = "mllm-jax: error: --accept-changed-data: has no effect without --resume\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("words", "resume", "steps"),
    [
        (["--resume"], True, 3),
        (["--resume", "auto"], "auto", 3),
        (["--resume", "--train.steps", "5"], True, 5),
        (["--train.steps", "5"], False, 5),
    ],
)
def test_train_resumes_always_or_where_a_run_has_begun(fake, stage: str, words, resume, steps):
    made = fake("train", "train")
    assert main(["train", "--config", stage, *words]) == 0
    (((config,), kwargs),) = made.calls
    assert (kwargs["resume"], config.train.steps) == (resume, steps)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--processes 2", "--processes without --coordinator, --process: give all three, or none"),
        ("--coordinator a:1 --processes 2 --process 2", "process 2: must lie in 0 to 1"),
        ("--coordinator a --processes 2 --process 1", "coordinator 'a': expected HOST:PORT"),
    ],
)
@pytest.mark.parametrize("verb", ["train --config s.yaml", "recipe r.yaml"])
def test_a_place_among_processes_that_cannot_be(fake, capsys, verb, words, message):
    made = [fake("train", "train"), fake("recipe", "run")]
    assert main([*verb.split(), *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mllm-jax: error: {message}") and err.count("\n") == 1
    assert not any(it.calls for it in made)


def test_a_coordinator_that_does_not_answer_is_code_1(capsys):
    words = "recipe r.yaml --coordinator 127.0.0.1:9 --processes 2 --process 1 --join-within 0.2"
    assert main(words.split()) == 1
    err = capsys.readouterr().err
    assert "no answer from process 0 at 127.0.0.1:10 within 0.2 s" in err and err.count("\n") == 1


def test_sigterm_outside_of_the_steps_is_code_75(fake, capsys, monkeypatch, stage: str):
    made = fake("train", "train")

    def work(*_, **__) -> None:
        signal.raise_signal(signal.SIGTERM)
        interrupts.check()  # as every long loop does

    monkeypatch.setattr(made, "train", work, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", "--config", stage]) == 75
    assert capsys.readouterr().err.startswith("mllm-jax: error: SIGTERM: nothing is lost; ")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words", ["r.yaml --workers 3 --seed 7", "--workers 3 r.yaml --seed 7"])
def test_prepare_takes_a_recipe(fake, words: str):
    made = fake("prepare", "run_recipe")
    assert main(["prepare", *words.split()]) == 0
    settings = {"workers": 3, "json_file": None, "overrides": ["--seed", "7"], "only": ()}
    assert made.calls == [((Path("r.yaml"),), settings)]


@pytest.mark.parametrize("words", ["", "--train.steps 3 r.yaml"])
def test_prepare_takes_one_recipe_or_one_stage(fake, capsys, words: str):
    made = fake("prepare", "run_recipe")
    assert main(["prepare", *words.split()]) == 2
    assert capsys.readouterr().err == (
        "mllm-jax: error: prepare: give a recipe file, before all overrides, or --config FILE for "
        "one stage\n"
    )
    assert made.calls == []


def test_prepare_takes_overrides_too(fake, stage: str):
    made = fake("prepare", "run")
    words = ["--config", stage, "--workers", "3", "--json", "o.json", "--seed", "7"]
    assert main(["prepare", *words]) == 0
    ((config,), kwargs) = made.calls[0]
    assert kwargs == {"workers": 3, "json_file": "o.json"}
    assert config.seed == 7


@pytest.mark.parametrize("words", ["recipe", "recipe --train.steps 3 r.yaml"])
def test_a_recipe_needs_its_file(fake, capsys, words: str):
    made = fake("recipe", "run")
    assert main(words.split()) == 2
    message = "recipe: give FILE, the recipe file, before all overrides"
    assert capsys.readouterr().err == f"mllm-jax: error: {message}\n"
    assert made.calls == []


def test_preflight_takes_overrides_too(fake, stage: str):
    made = fake("preflight", "main")
    words = ["--config", stage, "--mesh.fsdp", "8", "--hardware", "v5e:2x4", "--json"]
    assert main(["preflight", *words]) == 0
    ((config, word), kwargs) = made.calls[0]
    assert (config.mesh.fsdp, word, kwargs) == (8, "v5e:2x4", {"as_json": True})


def test_bench_of_data_takes_no_sizes(fake, capsys):
    made = fake("bench --data", "main")
    assert main("bench --data --size tiny --batch 3".split()) == 2
    said = "bench --data: --size, --batch: no effect; give --config FILE"
    assert capsys.readouterr().err == f"mllm-jax: error: {said}\n"
    assert not made.calls


def test_bench_with_the_baseline_is_its_own_work(fake):
    made = fake("bench --baseline", "main")
    assert main("bench --size tiny --baseline --rounds 3 --attention dense,auto".split()) == 0
    request = Request(size="tiny", baseline=True, rounds=3, attention=("dense", "auto"))
    assert made.calls == [((request,), {})]


def test_inspect_takes_overrides_beside_its_flags(fake, stage: str):
    made = fake("inspect", "run")
    words = ["--step", "7", "--rows", "2", "--data.length", "64", "--out", "look"]
    assert main(["inspect", "--config", stage, *words]) == 0
    (((config, out), kwargs),) = made.calls
    assert (out, kwargs) == (Path("look"), {"step": 7, "rows": 2})
    assert (config.data.length, config.out) == (64, "runs/run")
    assert main(["inspect", "--config", stage, "--out", "look"]) == 0
    assert made.calls[1][1] == {"step": 0, "rows": 4}


def test_inspect_calls_a_function_that_exists():
    module = importlib.import_module("mllm_jax.commands.inspect.pages")
    inspect.signature(module.run).bind(None, Path("look"), step=7, rows=2)


def test_train_keeps_overrides_whose_value_looks_like_a_flag_or_holds_spaces(
    fake, capsys, stage: str
):
    made = fake("train", "train")
    words = ["--mesh.data", "-1", "--optimizer.eps", "1e-4", "--out", "a b"]
    assert main(["train", "--config", stage, *words]) == 0
    ((config,), kwargs) = made.calls[0]
    assert kwargs == {"resume": False, "accept_changed_data": False, "sampler": sampler}
    assert (config.mesh.data, config.optimizer.eps) == (-1, 1e-4)
    assert config.out == "a b"
    assert main(["train", "--config", stage, "--optimizer.eps", "-1e-4"]) == 2
    assert "optimizer.eps=-0.0001 must lie in (0, 1]\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.learning_rat", "1"], "unknown key; did you mean 'learning_rate'?"),
        (["--resum"], "--resum: value missing; write --resum VALUE"),
        (["--train.steps", "0"], "train.steps=0 must lie in [1, 1_000_000_000]"),
        (["extra"], "unexpected argument 'extra'; overrides are written --section.key value"),
    ],
)
def test_a_bad_override_ends_with_one_line_and_code_2(fake, capsys, stage: str, words, message):
    made = fake("train", "train")
    assert main(["train", "--config", stage, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mllm-jax: error: ")
    assert err.endswith(f"{message}\n")
    assert err.count("\n") == 1
    assert not made.calls


def test_a_missing_config_file_is_code_2(capsys, tmp_path: Path):
    path = tmp_path / "none.yaml"
    assert main(["train", "--config", str(path)]) == 2
    assert capsys.readouterr().err == f"mllm-jax: error: {path}: no such file\n"


def test_bad_input_found_by_a_door_is_code_2(fake, capsys):
    fake("convert", "from_hf", ConfigError("out: exists and is not empty"))
    assert main(["convert", "from-hf", "src", "out"]) == 2
    assert capsys.readouterr().err == "mllm-jax: error: out: exists and is not empty\n"


def test_a_run_that_has_to_end_is_code_1_in_one_line(fake, capsys):
    fake("recipe", "run", RunError("step 12: loss nan"))
    assert main(["recipe", "r.yaml"]) == 1
    assert capsys.readouterr().err == "mllm-jax: error: step 12: loss nan\n"


def test_an_interrupted_run_is_code_130(fake, capsys):
    fake("recipe", "run", KeyboardInterrupt())
    assert main(["recipe", "r.yaml"]) == 130
    assert capsys.readouterr().err == "mllm-jax: interrupted\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space", "runs/a/b"), "runs/a/b: the disk is full"),
        (OSError(errno.EDQUOT, "Quota"), "the disk quota is used up"),
        (OSError(errno.EIO, "Input/output error", b"d\xff\n"), "d\\udcff : Input/output error"),
        (MemoryError("Unable to allocate 7 GiB"), "out of memory (Unable to allocate 7 GiB)"),
        (MemoryError(), "out of memory"),
        (RecursionError("maximum"), "nested too deeply (maximum)"),
        (RunError("a\x1b[31m\r" + "long " * 1000 + "end"), "a\\x1b[31m long long "),
    ],
)
def test_what_the_machine_refuses_is_one_line(fake, capsys, error: Exception, line: str):
    fake("recipe", "run", error)
    assert main(["recipe", "r.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"mllm-jax: error: {line}") and err.count("\n") == 1
    assert len(err) <= 401 and err[:-1].isprintable()


def test_a_path_that_the_system_refuses_is_bad_input(fake, capsys):
    fake("recipe", "run", PermissionError(errno.EACCES, "Permission denied", "d"))
    assert main(["recipe", "r.yaml"]) == 2
    assert capsys.readouterr().err == "mllm-jax: error: d: Permission denied\n"


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_a_fault_of_ours_keeps_its_traceback(fake, error: Exception):
    fake("recipe", "run", error)
    with pytest.raises(type(error)):
        main(["recipe", "r.yaml"])


@pytest.mark.parametrize(
    "words",
    [
        "",
        "trian --config x",
        "train",
        "quickstart --share 0",
        "quickstart --share 1.5",
        "quickstart --sh 0.5",  # flags are never guessed from their beginnings
        "inspect --config c.yaml",
        "inspect --out look",
        "inspect --config c.yaml --out look --rows 0",
        "inspect --config c.yaml --out look --step one",
        "convert",
        "convert from-hf src",
        "convert join out --vision clip",
        "convert join out --vision clip --language llama --connector mpl",
        "convert to-hf m out --dtype float8",
        "generate m",
        "generate m --prompt p --max-new-tokens 0",
        "generate m --prompt p --temperature -1",
        "generate m --prompt p --temperature nan",
        "evaluate",
        "evaluate m --limit 0",
        "bench",
        "bench --size tiny --config c.yaml",
        "bench --size huge",
        "bench --size tiny --steps -1",
        "evaluate m --mesh.data 2",
    ],
)
def test_wrong_usage_is_code_2(words: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and ": error: " in err
    assert err.count("\n") == 1 and len(err) < 500


# (words, the last is the flag's value just inside; just outside, or no number)
NUMBERS = [
    ("quickstart --share", ["1", "1e-9"], ["0", "1.0000001", "-1", "nan", "inf", "x"]),
    ("train --config c --processes", ["1", "1000000"], ["0", "1000001", "1.5"]),
    ("train --config c --process", ["0", "999999"], ["-1", "1000000", ""]),
    ("train --config c --lost-after", ["0.1", "1e9"], ["0", "-1", "nan", "inf", "1e10"]),
    ("recipe --join-within", ["1"], ["0", "inf"]),
    ("recipe --stuck-after", ["1"], ["0", "inf"]),
    ("prepare --config c --workers", ["1", "10000"], ["0", "-1", "10001", "9" * 5000]),
    ("corpus decontaminate d --against t --words", ["5", "100"], ["4", "101", "x"]),
    ("corpus decontaminate d --against t --workers", ["1", "10000"], ["0", "10001"]),
    ("corpus tasks d --out o --ratio", ["0.4", "1e3"], ["0", "-1", "1001", "nan"]),
    ("inspect --config c --out o --step", ["0", "1000000000"], ["-1", "1000000001", "1e18"]),
    ("inspect --config c --out o --rows", ["1", "1000000"], ["0", "1000001"]),
    ("generate m --prompt p --max-new-tokens", ["1", "1048576"], ["0", "1048577", "x" * 10**5]),
    ("generate m --prompt p --temperature", ["0", "1e6"], ["-1e-9", "nan", "inf", "1e7"]),
    ("generate m --prompt p --seed", ["-4294967295", "4294967295"], ["4294967296", "1" * 5000]),
    ("evaluate m --rows", ["1", "65536"], ["0", "65537"]),
    ("evaluate m --limit", ["1", "1000000000"], ["0", "1000000001"]),
    ("evaluate m --devices", ["1", "65536"], ["0", "65537"]),
    ("evaluate m --fsdp", ["1", "65536"], ["0", "65537"]),
    ("generate m --prompt p --tensor", ["1", "65536"], ["0", "65537"]),
    ("bench --size tiny --length", ["2", "16777216"], ["1", "16777217"]),
    ("bench --size tiny --batch", ["1", "1000000"], ["0", "1000001", "2,0", "2,"]),
    ("bench --size tiny --microbatches", ["1", "1000000"], ["0", "1000001"]),
    ("bench --size tiny --lora", ["1", "65536"], ["0", "65537"]),
    ("bench --size tiny --rounds", ["1", "1000"], ["0", "1001"]),
    ("bench --size tiny --steps", ["1", "1000000"], ["0", "1000001"]),
]


@pytest.mark.parametrize(("words", "inside", "outside"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_numbers_on_the_command_line_have_ranges(capsys, words: str, inside, outside):
    flag = words.split()[-1]
    for value in inside:
        options = make_parser().parse_args([*words.split(), value])
        read = getattr(options, flag.strip("-").replace("-", "_"))
        assert read in (float(value), (float(value),))  # the second of a flag that takes several
    for value in outside:
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args([*words.split(), value])
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert f"error: argument {flag}: " in err, err
        assert err.count("\n") == 1 and len(err) < 500


def test_every_number_on_the_command_line_is_tested():
    """A flag that takes a number is in the table above."""
    tested = {row[0].split()[-1] for row in NUMBERS}

    def flags(parser: argparse.ArgumentParser) -> set[str]:
        names: set[str] = set()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                names |= {name for sub in action.choices.values() for name in flags(sub)}
            elif action.type not in (None, str, Path, comma_names):
                names.add(action.option_strings[0])
        return names

    assert flags(make_parser()) == tested


def test_every_verb_explains_itself(capsys):
    for words in (
        ["quickstart"], ["train"], ["prepare"], ["inspect"], ["recipe"], ["convert"],
        ["convert", "from-hf"],
        ["convert", "join"], ["convert", "to-hf"], ["generate"], ["evaluate"], ["bench"],
        ["completion"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args([*words, "--help"])
        assert ended.value.code == 0
        assert f"mllm-jax {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_quick_and_imports_nothing_heavy(verb: str):
    code = (
        "import sys\nfrom mllm_jax.__main__ import main\n"
        f"try:\n    main([*{verb.split()}, '--help'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    before = _seconds_of_children()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds = _seconds_of_children() - before
    assert ended.returncode == 0, ended.stderr
    assert f"mllm-jax {verb}".strip() in ended.stdout
    assert seconds < 0.5  # the promise; 0.1 s of work, however busy the machine is


def _seconds_of_children() -> float:
    """Processor time of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_with_overrides_lists_the_options_by_section(capsys, verb: str):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    listed = "\n--optimizer.KEY VALUE\n" in text and "\n  learning_rate (2e-5) " in text
    assert listed == VERBS[verb].USAGE.overrides


@pytest.mark.parametrize(("words", "hint"), [("trian", "train"), ("quick-start", "quickstart")])
def test_a_misspelt_verb_gets_a_hint(capsys, words: str, hint: str):
    with pytest.raises(SystemExit) as ended:
        main([words, "--config", "x.yaml"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"mllm-jax: error: '{words}' is not a verb; did you mean {hint}?; ")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mllm-jax {mllm_jax.__version__}\n"


def test_the_module_and_the_exit_code_reach_the_shell(tmp_path: Path):
    words = ["-m", "mllm_jax", "train", "--config", str(tmp_path / "none.yaml")]
    made = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert made.returncode == 2
    assert made.stderr == f"mllm-jax: error: {tmp_path / 'none.yaml'}: no such file\n"
