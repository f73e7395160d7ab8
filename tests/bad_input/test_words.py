"""Bad command lines: verbs, flags and their values."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.workplace import Case, nothing

LONG = "o" * 300  # longer than a file name may be
STAGE = "--config stage.yaml"

# name -> (command line, part of the message)
LINES = {
    "no verb": ("", "VERB"),
    "a verb that is not there": ("trian --config stage.yaml", "trian"),
    "a verb of control characters": ("tr\x1b[2Jain", r"tr\x1b[2Jain"),
    "a verb of 10,000 letters": ("t" * 10_000, "tttt"),
    "train without a file": ("train", "--config"),
    "train with a word too many": (f"train {STAGE} more", "more"),
    "train without a value": (f"train {STAGE} --seed", "seed"),
    "train with an unknown key": (f"train {STAGE} --data.rowz 3", "rowz"),
    "train with a key of a section": (f"train {STAGE} --data 3", "data"),
    "train with a key below a value": (f"train {STAGE} --seed.more 3", "seed"),
    "train with an empty key": (f"train {STAGE} --= 3", "--"),
    "train with a broken value": (f"train {STAGE} --seed [1", "seed"),
    "train with a date": (f"train {STAGE} --seed 2024-99-99", "seed"),
    "train with a tag": (f"train {STAGE} --seed !!python/none", "seed"),
    "train with an alias": (f"train {STAGE} --seed *a", "seed"),
    "train with a huge number": (f"train {STAGE} --seed {'9' * 5000}", "seed"),
    "train with a deep list": (f"train {STAGE} --seed {'[' * 5000}", "seed"),
    "train without the file": ("train --config none.yaml", "none.yaml"),
    "train on a folder": ("train --config data", "data"),
    "train on a file with a long name": (f"train --config {LONG}", "ooo"),
    "train on a file below a file": ("train --config stage.yaml/x", "stage.yaml/x"),
    "train on an empty name": ("train --config=", "folder"),
    "resume by an odd word": (f"train {STAGE} --resume=often", "often"),
    "resume without a run": (f"train {STAGE} --resume", "out"),
    "process without processes": (f"train {STAGE} --process 0", "process"),
    "process beyond processes": (f"train {STAGE} --processes 2 --process 2", "process"),
    "no processes": (f"train {STAGE} --processes 0 --process 0", "processes"),
    "negative process": (f"train {STAGE} --processes 2 --process -1", "process"),
    "coordinator without a port": (
        f"train {STAGE} --processes 2 --process 0 --coordinator here",
        "coordinator",
    ),
    "coordinator with a port too high": (
        f"train {STAGE} --processes 2 --process 0 --coordinator here:99999",
        "coordinator",
    ),
    "patience of nothing": (f"train {STAGE} --lost-after 0", "lost-after"),
    "patience that is not a number": (f"train {STAGE} --stuck-after soon", "stuck-after"),
    "patience without end": (f"train {STAGE} --join-within inf", "join-within"),
    "recipe without a file": ("recipe", "FILE"),
    "recipe that is not there": ("recipe none.yaml", "none.yaml"),
    "recipe that is a stage": ("recipe stage.yaml", "stage.yaml: a stage file"),
    "recipe with a misspelt override": ("recipe recipe.yaml --trian.steps 3", "--trian.steps"),
    "recipe with an override of nothing": ("recipe recipe.yaml --train.steps", "--train.steps"),
    "recipe into a file": ("recipe recipe.yaml --out stage.yaml", "stage.yaml"),
    "recipe into a long name": (f"recipe recipe.yaml --out {LONG}", "ooo"),
    "prepare without workers": (f"prepare {STAGE} --workers 0", "workers"),
    "prepare with half a worker": (f"prepare {STAGE} --workers 0.5", "workers"),
    "prepare with a million workers": (f"prepare {STAGE} --workers 1000000", "workers"),
    "prepare with JSON into a folder": (f"prepare {STAGE} --json data", "data"),
    "prepare with JSON nowhere": (f"prepare {STAGE} --json none/there/a.json", "none/there"),
    "inspect without out": (f"inspect {STAGE}", "--out"),
    "inspect a negative step": (f"inspect {STAGE} --out look --step -1", "step"),
    "inspect a huge step": (f"inspect {STAGE} --out look --step {10**18}", "step"),
    "inspect no rows": (f"inspect {STAGE} --out look --rows 0", "rows"),
    "inspect into a full folder": (f"inspect {STAGE} --out data", "data"),
    "inspect into a file": (f"inspect {STAGE} --out stage.yaml", "stage.yaml"),
    "inspect into a long name": (f"inspect {STAGE} --out {LONG}", "ooo"),
    "preflight without hardware": (f"preflight {STAGE}", "--hardware"),
    "preflight on unknown hardware": (f"preflight {STAGE} --hardware abacus:8", "abacus"),
    "preflight on no chips": (f"preflight {STAGE} --hardware h200:0", "h200"),
    "preflight on minus one chip": (f"preflight {STAGE} --hardware h200:-1", "h200"),
    "preflight on a billion chips": (f"preflight {STAGE} --hardware cpu:1000000000", "cpu"),
    "preflight on a shape that is not one": (f"preflight {STAGE} --hardware v5e:4xx4", "v5e"),
    "preflight on an empty word": (f"preflight {STAGE} --hardware=", "hardware"),
    "convert without a way": ("convert", "WAY"),
    "convert another way": ("convert sideways a b", "sideways"),
    "convert without out": ("convert from-hf hf", "OUT"),
    "convert from nothing": ("convert from-hf none out", "none"),
    "convert from a file": ("convert from-hf stage.yaml out", "stage.yaml"),
    "convert from a model folder": ("convert from-hf model out", "model"),
    "convert into a full folder": ("convert from-hf hf data", "data"),
    "convert into a file": ("convert from-hf hf stage.yaml", "stage.yaml"),
    "convert into its own source": ("convert from-hf hf hf", "hf"),
    "convert into a long name": (f"convert from-hf hf {LONG}", "ooo"),
    "convert below a file": ("convert from-hf hf stage.yaml/out", "stage.yaml"),
    "convert where nothing can be made": ("convert from-hf hf /proc/none/out", "/proc/none"),
    "convert to-hf with another dtype": ("convert to-hf model out --dtype int8", "int8"),
    "convert to-hf from data": ("convert to-hf data out", "data"),
    "join without a tower": ("convert join out --language llama", "--vision"),
    "join the wrong way round": ("convert join out --vision llama --language clip", "llama"),
    "join with another connector": (
        "convert join out --vision clip --language llama --connector q",
        "q",
    ),
    "generate without a prompt": ("generate model", "--prompt"),
    "generate from nothing": ("generate none --prompt a", "none"),
    "generate from data": ("generate data --prompt a", "data"),
    "generate no tokens": ("generate model --prompt a --max-new-tokens 0", "max-new-tokens"),
    "generate too many tokens": (
        "generate model --prompt a --max-new-tokens 1000000000",
        "max-new-tokens",
    ),
    "generate at a negative temperature": (
        "generate model --prompt a --temperature -1",
        "temperature",
    ),
    "generate at no temperature": ("generate model --prompt a --temperature nan", "temperature"),
    "generate with a huge seed": (f"generate model --prompt a --seed {10**30}", "seed"),
    "generate about no image": ("generate model --prompt a --image none.png", "none.png"),
    "generate about text": ("generate model --prompt a --image stage.yaml", "stage.yaml"),
    "generate about a folder": ("generate model --prompt a --image data", "data"),
    "generate about images of a text model": (
        "generate llama --prompt a --image data/images/0.png",
        "image",
    ),
    "generate from a tower": ("generate clip --prompt a", "clip"),
    "evaluate without data": ("evaluate model", "--data"),
    "evaluate on nothing": ("evaluate model --data none.json --out scores", "none.json"),
    "evaluate on a folder": ("evaluate model --data data --out scores", "data"),
    "evaluate nothing": ("evaluate none --data questions.json --out scores", "none"),
    "evaluate a model folder without out": ("evaluate model --data questions.json", "--out"),
    "evaluate into a file": (
        "evaluate model --data questions.json --images data/images --out stage.yaml",
        "stage.yaml",
    ),
    "evaluate into a long name": (
        f"evaluate model --data questions.json --images data/images --out {LONG}",
        "ooo",
    ),
    "evaluate with images nowhere": (
        "evaluate model --data questions.json --images none --out scores",
        "none",
    ),
    "evaluate a tower": ("evaluate clip --data questions.json --out scores", "clip"),
    "bench nothing": ("bench", "--config"),
    "bench two things": (f"bench {STAGE} --size tiny", "--size"),
    "bench another size": ("bench --size huge", "huge"),
    "bench no steps": ("bench --size tiny --steps 0", "steps"),
    "bench no rows": ("bench --size tiny --batch 0", "batch"),
    "bench endless rows": ("bench --size tiny --batch 8 --length 1000000000000", "length"),
    "bench other attention": ("bench --size tiny --attention dense,flash", "attention"),
    "bench other remat": ("bench --size tiny --remat none,half", "remat"),
    "bench no name": ("bench --size tiny --remat none,", "remat"),
    "bench odd microbatches": ("bench --size tiny --batch 2,3 --microbatches 2", "microbatches"),
    "bench lora of all": ("bench --size tiny --stage full --lora 8", "--lora"),
    "bench text for align": ("bench --size tiny --stage align --text-only", "trained"),
    "bench profiles": ("bench --size tiny --profile out --remat none,full", "--profile"),
    "bench profile over": (f"bench --size tiny --profile {STAGE.split()[-1]}", "stage.yaml"),
    "bench baseline of a stage": (f"bench {STAGE} --baseline", "--baseline"),
    "bench baseline swept": ("bench --size tiny --baseline --sweep", "--sweep"),
    "bench rounds alone": ("bench --size tiny --rounds 3", "--baseline"),
    "bench data with a size": ("bench --data --size tiny", "--size"),
    "bench data with a stage": (f"bench --data {STAGE} --stage align", "--stage"),
    "quickstart of nothing": ("quickstart --out out --share 0", "share"),
    "quickstart of too much": ("quickstart --out out --share 1.5", "share"),
    "quickstart into a file": ("quickstart --out stage.yaml", "stage.yaml"),
}
CASES = [Case(name, line.split(), nothing, names) for name, (line, names) in LINES.items()]
CASES += [
    Case("a name that is not UTF-8", ["train", "--config", "a\udcf1o.yaml"], nothing, "a"),
    Case("a prompt not in UTF-8", ["generate", "model", "--prompt", "\udcf1"], nothing, "prompt"),
    Case("a prompt with NUL", ["generate", "model", "--prompt", "a\0"], nothing, "NUL"),
    Case(
        "a prompt of megabytes",
        ["generate", "model", "--prompt", "a " * 10**6],
        nothing,
        "max_length",
    ),
    Case("an empty out", ["convert", "from-hf", "hf", ""], nothing, "folder"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refused(case: Case, refuse: Callable[[Case], None]):
    refuse(case)


def test_there_are_enough_kinds(place: Path):
    assert len({case.name for case in CASES}) == len(CASES) > 90
