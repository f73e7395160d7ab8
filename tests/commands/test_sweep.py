"""A small sweep, trained: what is shared, what continues, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.commands.recipe import results
from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.sweep import stages as sweep
from mllm_jax.commands.sweep import work
from mllm_jax.commands.sweep.work import Unit, share_work
from mllm_jax.common.errors import ConfigError, Preempted, RunError
from mllm_jax.common.locks import claiming
from tests.support.sweeps import Files, written


class Calls(list):
    """Stages that were trained and rows that were evaluated, by the names of their folders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        train, evaluate = recipe.loop.train, results.evaluate_model

        def training(config: Any, **options: Any) -> Path:
            self.append(Path(config.out).name)
            return train(config, **options)

        def evaluating(section: Any, model: Any, folder: Path) -> None:
            self.append(folder.name)
            evaluate(section, model, folder)

        monkeypatch.setattr(recipe.loop, "train", training)
        monkeypatch.setattr(results, "evaluate_model", evaluating)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A finished sweep of two runs, of one seed."""
    files = Files(tmp_path_factory.mktemp("sweep"), data)
    files.sweep["axes"]["seed"] = {"1": {"instruct.seed": 1}}
    with pytest.MonkeyPatch.context() as patch:
        files.calls = Calls(patch)  # type: ignore[attr-defined]
        files.run()
    return files


def copy(whole: Files, root: Path) -> Files:
    """The same sweep in another place."""
    files = Files(root, Path(whole.recipe["evaluate"]["images"]).parent)
    files.sweep = json.loads(json.dumps(whole.sweep))
    shutil.copytree(whole.out, files.out)
    return files


def stage_of(files: Files, run: str) -> Path:
    return files.out / json.loads((files.out / "runs" / f"{run}.json").read_text())["model"]


def test_what_runs_share_is_trained_once(whole: Files):
    trained = [name.rsplit("-", 1)[0] for name in whole.calls]  # type: ignore[attr-defined]
    assert trained == ["align", "instruct", "0", "instruct", "50"]
    tree = json.loads((whole.out / "results.json").read_text())
    assert [run["name"] for run in tree["runs"]] == ["0-1", "50-1"]
    assert [run["points"]["share"] for run in tree["runs"]] == ["0", "50"]
    for run in tree["runs"]:
        assert {name: of["count"] for name, of in run["languages"].items()} == {"eu": 4, "en": 4}
        assert run["languages"]["eu"]["loss"] > 0
    pairs = json.loads((whole.out / "pairs.json").read_text())["pairs"]
    assert [(p["a"], p["b"], p["language"]) for p in pairs] == [
        ("0-1", "50-1", "eu"), ("0-1", "50-1", "en"),
    ]  # fmt: skip
    assert str(whole.root) not in "".join(map(bytes.decode, written(whole.out).values()))
    assert not list((whole.out / "claims").iterdir())


def test_a_finished_sweep_does_nothing_again(whole: Files, calls: Calls):
    before = written(whole.out)
    whole.run()
    assert calls == [] and written(whole.out) == before


def test_a_sweep_continues_where_it_was_stopped(whole: Files, tmp_path: Path, calls: Calls):
    files = copy(whole, tmp_path)
    lost = stage_of(files, "50-1")
    shutil.rmtree(lost)
    lost.with_suffix(".json").unlink()
    shutil.rmtree(files.out / "evaluation" / "50-1")
    (files.out / "runs" / "50-1.json").unlink()
    (files.out / "results.json").unlink()
    files.run()
    assert calls == [lost.name, "50-1"]
    assert written(files.out) == written(whole.out)


@pytest.mark.slow
def test_a_run_is_added_and_a_model_that_exists(whole: Files, tmp_path: Path, calls: Calls):
    files = copy(whole, tmp_path)
    files.sweep["axes"]["seed"]["2"] = {"instruct.seed": 2}
    files.sweep["leave_out"] = ["50-2"]
    files.sweep["aliases"] = {"published": str(stage_of(whole, "50-1"))}
    files.run(only=["published"])
    assert calls == ["published"]
    files.run(only=["0-2", "published"])
    assert [name.rsplit("-", 1)[0] for name in calls] == ["published", "instruct", "0"]
    runs = json.loads((files.out / "results.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["0-1", "0-2", "50-1", "published"]
    assert runs[3]["languages"] == runs[2]["languages"] and runs[3]["points"] == {}


def other_data(files: Files) -> str:
    data = files.root / "eu.json"
    stream = files.stages["instruct"]["data"]["streams"]["eu"]
    records = json.loads(Path(stream["path"]).read_text())
    data.write_text(json.dumps(records[::-1]))
    files.stages["instruct"]["data"] = json.loads(json.dumps(files.stages["instruct"]["data"]))
    files.stages["instruct"]["data"]["streams"]["eu"]["path"] = str(data)
    return "run 50-1 was begun there with other settings, weights or data"


def other_settings(files: Files) -> str:
    files.sweep["overrides"] = {"align.seed": 4}
    return "run 0-1 was begun there with other settings, weights or data"


def other_runs(files: Files) -> str:
    files.sweep["name"] = "{seed}-{share}"
    return "holds another sweep, of runs 0-1, 50-1; give another folder"


def other_questions(files: Files) -> str:
    data = Path(files.recipe["evaluate"]["data"])
    data.write_text(data.read_text() + " ")
    return "was begun with evaluate.data="


def no_sweep(files: Files) -> str:
    (files.out / "sweep.json").unlink()
    return "exists and is not the folder of a sweep (sweep.json is missing)"


@pytest.mark.parametrize(
    "change", [other_data, other_settings, other_runs, other_questions, no_sweep]
)
def test_the_folder_of_another_sweep_is_refused(
    whole: Files, tmp_path: Path, calls: Calls, change: Callable[[Files], str]
):
    files = copy(whole, tmp_path)
    before = sorted(files.out.rglob("*"))
    words = change(files)
    with pytest.raises(ConfigError) as caught:
        files.run()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert calls == [] and set(files.out.rglob("*")) <= set(before)


def test_another_file_under_the_same_path_is_other_data(whole: Files, tmp_path: Path):
    files = copy(whole, tmp_path)
    path = tmp_path / "eu.json"
    shutil.copy(files.stages["align"]["data"]["streams"]["eu"]["path"], path)
    for stage in files.stages.values():
        stage["data"]["streams"]["eu"]["path"] = str(path)
    config = sweep.load_sweep(files.write())
    runs, plans = sweep.read_runs(config), []
    for records in (json.loads(path.read_text()), json.loads(path.read_text())[::-1]):
        path.write_text(json.dumps(records))
        loaded = sweep.load_runs(config, tmp_path / "recipe.yaml", runs)
        plans.append(sweep.make_plan(loaded, runs, tmp_path, sweep.Digests()))
    assert not set(plans[0].stages) & set(plans[1].stages)


def test_a_run_that_the_disk_cannot_hold_is_found_before_the_first(
    whole: Files, tmp_path: Path, calls: Calls
):
    files = copy(whole, tmp_path)
    files.out = tmp_path / "new"
    files.sweep["axes"]["share"]["100"] = {"instruct.data.streams.eu.path": "not-here.json"}
    with pytest.raises(
        ConfigError, match=r"^run 100-1: instruct: data\.streams\.eu.* no such file"
    ):
        files.run()
    files.sweep["axes"]["share"]["100"] = {"instruct.data.length": 4096}
    with pytest.raises(
        ConfigError, match=r"^run 100-1: instruct: data\.length=4096 is longer than"
    ):
        files.run()
    assert calls == [] and not files.out.exists()


# ----------------------------------------------------------------------------------------- sharing


class Made:
    """Units that note what is done; `done` may be changed by another process."""

    def __init__(self, **needs: tuple[str, ...]):
        self.calls: list[str] = []
        self.done: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.units = [self.unit(name, of) for name, of in needs.items()]

    def unit(self, name: str, needs: tuple[str, ...]) -> Unit:
        def do() -> None:
            self.calls.append(name)
            if name in self.errors:
                raise self.errors[name]
            self.done.add(name)

        return Unit(name, needs, lambda: name in self.done, do)


def test_what_another_process_works_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = Made(a=(), b=("a",), c=())
    looks: list[list[str]] = []

    def look(seconds: float) -> None:
        looks.append(list(made.calls))
        if len(looks) == 3:  # the other one finishes
            made.done.add("a")

    monkeypatch.setattr(work.time, "sleep", look)
    with claiming(tmp_path / "a") as mine:
        assert mine
        assert share_work(made.units, tmp_path) is None
    assert made.calls == ["c", "b"] and looks == [["c"]] * 3
    assert capsys.readouterr().out == "others work on a; waiting\n"


def test_a_claim_of_a_process_that_ended_is_taken_over(tmp_path: Path):
    (tmp_path / "lock").write_text("")  # a killed process leaves the file, not the lock
    with claiming(tmp_path / "lock") as mine, claiming(tmp_path / "lock") as other:
        assert mine and not other
    assert not (tmp_path / "lock").exists()


def test_what_does_not_need_a_failed_stage_is_done(tmp_path: Path):
    made = Made(a=(), b=("a",), c=(), d=("c",))
    made.errors["a"] = RunError("the loss is not finite")
    failure = share_work(made.units, tmp_path)
    assert made.calls == ["a", "c", "d"]
    assert str(failure) == (
        "2 stages or runs failed or lack one that did: a: the loss is not finite"
    )


def test_a_signal_ends_the_sweep(tmp_path: Path):
    made = Made(a=(), b=())
    made.errors["a"] = Preempted("SIGTERM: step 4 is saved")
    with pytest.raises(Preempted):
        share_work(made.units, tmp_path)
    assert made.calls == ["a"] and not list(tmp_path.iterdir())
