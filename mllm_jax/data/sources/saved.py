"""Lists the shards of what `datasets` saved: Dataset.save_to_disk and DatasetDict.save_to_disk.

d/dataset_dict.json     {"splits": ["train", "test"]}
d/train/state.json      {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], ...}
d/train/data-00000-of-00001.arrow
"""

from pathlib import Path

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.common.fields import REQUIRED, Fields, is_text
from mllm_jax.common.json_file import read_json
from mllm_jax.data.sources.folder import first_names, walk
from mllm_jax.data.sources.shards import Listing, Options, list_shards

SPLITS, STATE = "dataset_dict.json", "state.json"


def list_arrow(path: str | Path, options: Options) -> Listing:
    """The Arrow files of a path, in the order of their rows.

    Raises:
        ConfigError: see `list_shards`; or what `datasets` saved there holds several splits and none
            is chosen, or its files are not as it lists them.
    """
    path = Path(path)
    if not path.is_dir():
        return list_shards(path, (".arrow",), options)
    if (path / SPLITS).is_file():
        return _split(path, options)
    if (path / STATE).is_file():
        split = options.split
        require(split is None, f"{path}: holds one split; leave out data.streams.*.split={split!r}")
        return _saved(path, options)
    for name in walk(path, options.links).names:
        require(
            not name.endswith((f"/{SPLITS}", f"/{STATE}")),
            f"{path}: holds {name}, of a data set that `datasets` saved; give its folder as the "
            f"path: {(path / name).parent}",
        )
    return list_shards(path, (".arrow",), options)


def _split(path: Path, options: Options) -> Listing:
    """One of the splits of a DatasetDict."""
    names = Fields(str(path / SPLITS), read_json(path / SPLITS)).items("splits", REQUIRED)
    names = [_plain_name(path / SPLITS, "splits", name) for name in names]
    require(
        options.split in names,
        f"{path}: holds {' and '.join(names)}, and a stream reads one split; choose by "
        "data.streams.*.split",
    )
    files, notes = _saved(path / str(options.split), options)
    others = [name for name in names if name != options.split]
    if others:
        notes = [*notes, f"{path}: not read: the splits {', '.join(others)}"]
    return Listing(files, notes)


def _saved(path: Path, options: Options) -> Listing:
    """The files that a state.json lists."""
    file = path / STATE
    state = Fields(str(file), read_json(file))
    require(
        not state.items("_indices_data_files", []),
        f"{path}: its rows are chosen by a table of indices; flatten it: "
        "dataset.flatten_indices().save_to_disk(...)",
    )
    entries = state.items("_data_files", [])
    require(len(entries) > 0, f"{file}: lists no files under _data_files")
    names = [
        _plain_name(file, "filename", Fields(f"{file} _data_files", entry).tree.get("filename"))
        for entry in entries
    ]
    require(len(set(names)) == len(names), f"{file}: lists a file twice under _data_files")
    there, odd, notes = walk(path, options.links)
    for name in names:
        is_file = name in there and name not in odd
        require(is_file, f"{path / name}: no such file, but state.json lists it")
    more = [name for name in there if name.lower().endswith(".arrow") and name not in names]
    if more:
        notes.append(f"{path}: not in its state.json, not read: {first_names(more)}")
    return Listing([path / name for name in names], notes)


def _plain_name(file: Path, field: str, name: object) -> str:
    """A name in the folder of `file`; no path that leads elsewhere."""
    if not is_text(name) or name in ("", ".", "..") or "/" in str(name):
        raise ConfigError(f"{file}: {field}={quoted(name)}; expected the name of a file beside it")
    return str(name)
