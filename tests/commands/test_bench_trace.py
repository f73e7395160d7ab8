"""`bench --profile`: the folder that tools open, and the costliest operations by name."""

import gzip
import json

import pytest

from mllm_jax.__main__ import main
from mllm_jax.commands.bench import trace

pytestmark = pytest.mark.usefixtures("one_device")


def test_the_costliest_operations_have_names(bench_stage, tmp_path, capsys):
    folder = tmp_path / "profile"
    words = ("--batch", "8", "--length", "32", "--text-only", "--steps", "1")
    assert main(["bench", "--config", bench_stage, *words, "--profile", str(folder)]) == 0
    printed = capsys.readouterr()
    costs = json.loads(printed.out)["costliest"]
    assert len(costs) == trace.COUNT
    assert [cost["seconds"] for cost in costs] == sorted(
        (c["seconds"] for c in costs), reverse=True
    )
    assert 0 < sum(cost["share"] for cost in costs) <= 1
    assert not {cost["opcode"] for cost in costs} & set(trace.CONTAINERS)
    named = [cost for cost in costs if cost["source"]]
    assert len(named) >= 5, "instructions that XLA made itself have no place in the code"
    assert all(cost["operation"] in printed.err for cost in costs)
    assert list(folder.rglob("*.xplane.pb")), "XProf reads this"
    (perfetto,) = folder.rglob("perfetto_trace.json.gz")
    events = [e for e in json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"] if e]
    assert {event["ph"] for event in events} == {"M", "X"}, "names, and events with a duration"
    timed = [event for event in events if event["ph"] == "X"]
    assert all({"name", "pid", "tid", "ts", "dur"} <= event.keys() for event in timed)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in timed} <= named
    # without these XProf knows no step time, and says so on its first page
    steps = [event for event in timed if event["name"].startswith(trace.STEP)]
    assert [step["args"]["step_num"] for step in steps] == ["0", "1", "2"]


def test_a_folder_that_holds_something_is_refused(bench_stage, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["bench", "--config", bench_stage, "--profile", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("jit(train_step)/jvp()/while/body/mlp/dot_general", "jvp()/mlp/dot_general"),
        ("jit(f)/transpose(jvp())/while/body/closed_call/checkpoint/mul", "transpose(jvp())/mul"),
        ("", ""),
    ],
)
def test_places_without_loops(name, where):
    assert trace.place(name) == where
