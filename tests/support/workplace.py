"""A folder with one small good input of every kind, and bad inputs as changes of it.

data/       pictures, LLaVA JSON, text, a tokenizer (support.tiny); the same as Parquet and tar
stage.yaml  trains on data/; align.yaml and instruct.yaml begin with run/
recipe.yaml the last two, with questions.json held out
run/        a run of stage.yaml after one step
model/ hf/ clip/ llama/     a model folder, and Hugging Face folders
"""

import dataclasses
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from mllm_jax.checkpoints.hf.writer import write_hf
from mllm_jax.checkpoints.open_model import open_model
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.conversion import conversions
from mllm_jax.training.loop import train
from tests.support import tiny
from tests.support.restored import scan

Change = Callable[[Path], Any]

# left behind by design: indexes are caches that finished parts stay in, locks are empty files
CACHES = (".index", ".lock")


class Case(NamedTuple):
    """A command that has to be refused."""

    name: str
    words: list[str]
    change: Change  # of the copied folder, before the command
    names: str  # part of what standard error says
    code: int = 2


def make(folder: Path) -> None:
    """Makes the folder (seconds: it trains for a step)."""
    folder.mkdir()
    tiny.make_data(folder / "data")
    _tables(folder / "data")
    raw = tiny.tree(Path("data"), Path("out"))
    raw["data"] |= {"streams": {"eu": raw["data"]["streams"]["eu"]}, "rows": 4, "window": 8}
    raw["train"] = {"steps": 1, "save_every": 1}
    write_yaml(folder / "stage.yaml", raw)
    whole = loading.build(Config, absolute(raw, folder))
    train(dataclasses.replace(whole, out=str(folder / "run")), devices=jax.devices()[:1])
    conversions.to_hf(folder / "run", folder / "hf")
    conversions.from_hf(folder / "hf", folder / "model")
    _parts(folder)
    later = raw | {"init": {"weights": "run"}, "train": {"steps": 2, "save_every": 2}}
    for name in ("align", "instruct"):
        write_yaml(folder / f"{name}.yaml", later)
    questions = json.loads((folder / "data" / "eu.json").read_text())[:2]
    (folder / "questions.json").write_text(json.dumps(questions))
    held_out = {"data": "questions.json", "images": "data/images", "max_new_tokens": 2}
    recipe = {"stages": ["align.yaml", "instruct.yaml"], "evaluate": held_out, "out": "out"}
    write_yaml(folder / "recipe.yaml", recipe)


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder with its size: what a refusal must leave as it was."""

    return {
        name: state[2] if len(state) > 1 else 0
        for name, state in scan(folder).items()
        if not any(part.endswith(CACHES) for part in name.split("/"))
    }


# ------------------------------------------------------------------------------- changes of files


def nothing(place: Path) -> None:
    """The folder stays as it is: the words are what is bad."""


def write(name: str, content: str | bytes) -> Change:
    """Puts a file in the place of another."""
    data = content.encode() if isinstance(content, str) else content

    def change(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)

    return change


def remove(name: str) -> Change:
    """Removes a file."""
    return lambda place: (place / name).unlink()


def append(name: str, data: bytes) -> Change:
    """Puts bytes behind the end of a file."""
    return lambda place: (place / name).write_bytes((place / name).read_bytes() + data)


def cut_file(name: str, keep: int) -> Change:
    """Keeps the first `keep` bytes of a file; of a negative number, all but the last."""

    def change(place: Path) -> None:
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[:keep])

    return change


def stage(**changes: Any) -> Change:
    """Sets keys of stage.yaml: stage(data__rows=0)."""

    def change(place: Path) -> None:
        tree = yaml.safe_load((place / "stage.yaml").read_text())
        for key, value in changes.items():
            put(tree, key.split("__"), value)
        write_yaml(place / "stage.yaml", tree)

    return change


def in_json(name: str, key: str, value: Any) -> Change:
    """Sets a key of a JSON file, inside of objects by dots: "text_config.vocab_size"."""

    def change(place: Path) -> None:
        tree = json.loads((place / name).read_text())
        put(tree, key.split("."), value)
        (place / name).write_text(json.dumps(tree))

    return change


def put(tree: Any, keys: list[str], value: Any) -> None:
    """Sets a value inside of nested dicts and lists."""
    for key in keys[:-1]:
        tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
    if isinstance(tree, list):
        tree[int(keys[-1])] = value
    else:
        tree[keys[-1]] = value


def write_yaml(path: Path, tree: dict[str, Any]) -> None:
    """As a person would write it."""
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The stage with the paths of another working directory."""
    text = json.dumps(raw).replace('"data/', f'"{folder}/data/').replace('"run"', f'"{folder}/run"')
    return json.loads(text)


# ------------------------------------------------------------------------------------ good inputs


def _tables(data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"id": f"{i}", "image": f"{i}.png", "caption": "gorria"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(records), data / "captions.parquet")
    with tarfile.open(data / "captions.tar", "w") as tar:
        for i in range(3):
            (data / f"{i}.txt").write_text("gorria")
            tar.add(data / "images" / f"{i}.png", f"{i}.png")
            tar.add(data / f"{i}.txt", f"{i}.txt")
            (data / f"{i}.txt").unlink()


def _parts(folder: Path) -> None:
    source = open_model(folder / "run")
    leaves = source.leaves(conversions.abstract(source.config.model))
    for part, name in (("vision", "clip"), ("language", "llama")):
        others = {"vision", "connector", "language"} - {part}
        model = dataclasses.replace(
            source.config.model, **dict.fromkeys(others, None), image_token=None
        )
        config = dataclasses.replace(source.config, model=model)
        mine = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{part}/")}
        (folder / name).mkdir()
        write_hf(folder / name, config, mine, source.files, source.ids, "crop", None, 2**30, _seen)


def _seen(name: str) -> None:
    pass
