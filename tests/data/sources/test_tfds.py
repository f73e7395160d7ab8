"""A dataset that TFDS prepares here, without TensorFlow, and its examples by number."""

import importlib.util
import io
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.shards import Options
from mllm_jax.data.sources.tfds import TfdsSource

pytestmark = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("tensorflow_datasets", "importlib_resources")
    ),
    reason='needs TensorFlow Datasets: pip install "mllm-jax[tfds]"',
)

BUILDER = '''
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

features = tfds.features


def png(grey):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (grey, grey, grey)).save(file, "PNG")
    file.seek(0)
    return file


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Records of every kind of value."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        picture = lambda: features.Image(shape=(None, None, 3), encoding_format="png")
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({
            "image": picture(),
            "images": features.Sequence(picture()),
            "nested": {"image": picture(), "note": features.Text()},
            "caption": features.Text(),
            "words": features.Sequence(features.Text()),
            "turns": features.Sequence({"from": features.Text(), "value": features.Text()}),
            "label": features.ClassLabel(names=["katu", "txakur"]),
            "score": features.Scalar(np.float32),
            "box": features.Tensor(shape=(2,), dtype=np.float32),
        }), disable_shuffling=True)

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {
                "image": png(n),
                "images": [png(10 * n + k) for k in range(n)],
                "nested": {"image": png(100 + n), "note": "ñ"},
                "caption": b"\\xff" if count == 2 and n == 1 else f"Kaixo {n} ñ",
                "words": ["bat", "bi"][:n],
                "turns": [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "A"}][:n],
                "label": n % 2,
                "score": n / 2,
                "box": np.array([n, 1], np.float32),
            }
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the dataset's version. A builder must live in a module in a folder."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "tiny_tfds").mkdir()
    (folder / "tiny_tfds" / "tiny_builder.py").write_text(BUILDER)
    sys.path.insert(0, str(folder))
    try:
        from tiny_tfds.tiny_builder import Tiny  # pyright: ignore[reportMissingImports]

        builder = Tiny(data_dir=folder / "out", file_format="array_record")
        builder.download_and_prepare()
    finally:
        sys.path.remove(str(folder))
    yield Path(builder.data_dir)
    for name in [name for name in sys.modules if name.startswith("tiny_tfds")]:
        del sys.modules[name]


def grey(picture: Any) -> int:
    """The picture's grey value; it must have stayed an encoded one."""
    assert isinstance(picture, bytes)
    return int(np.asarray(Image.open(io.BytesIO(picture)))[0, 0, 0])


def test_examples_by_number(prepared: Path):
    source = TfdsSource(prepared, Options("train"))
    assert len(source) == 4
    for n in (3, 0, 2, 1):
        row = source[n]
        assert grey(row.pop("image")) == n
        assert [grey(image) for image in row.pop("images")] == [10 * n + k for k in range(n)]
        assert grey(row["nested"].pop("image")) == 100 + n
        assert row == {
            "nested": {"note": "ñ"},
            "caption": f"Kaixo {n} ñ",
            "words": ["bat", "bi"][:n],
            "turns": [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "A"}][:n],
            "label": n % 2,
            "score": n / 2,
            "box": [n, 1],
        }
    assert "tensorflow" not in sys.modules
    for number in (-1, 4):
        with pytest.raises(IndexError):
            source[number]


def test_splits_may_be_slices(prepared: Path):
    source = TfdsSource(prepared, Options("train[50%:]"))
    assert [source[n]["caption"] for n in range(len(source))] == ["Kaixo 2 ñ", "Kaixo 3 ñ"]
    file = prepared / "tiny-train.array_record-00000-of-00001"
    names = ("dataset_info.json", "features.json")
    assert source.files == [*(prepared / name for name in names), file]
    assert source.notes == [f"{prepared}: not read: the splits test (2 examples)"]
    assert source.location(1) == f"{file}[3]"
    assert len(TfdsSource(prepared, Options("test"))) == 2


def test_a_copy_in_another_process_reads_the_same(prepared: Path):
    source = TfdsSource(prepared, Options("train"))
    source[0]
    sent = pickle.dumps(source)
    assert b"tensorflow_datasets" not in sent
    copy = pickle.loads(sent)
    assert [copy[n] for n in range(4)] == [source[n] for n in range(4)]


def test_text_that_is_not_utf8_is_a_fault(prepared: Path):
    source = TfdsSource(prepared, Options("test"))
    assert source[0]["caption"] == "Kaixo 0 ñ"
    with pytest.raises(RecordError, match=r"not UTF-8 text \(invalid start byte\)") as fault:
        source[1]
    assert fault.value.code == "text"


def test_the_library_is_asked_for_when_it_is_missing(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "mllm-jax\[tfds\]"$'):
        TfdsSource(prepared, Options("train"))


def test_folders_that_are_no_prepared_dataset_are_refused(prepared: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: no dataset_info\.json in it, so no dataset"):
        TfdsSource(tmp_path / "nowhere", Options("train"))
    with pytest.raises(ConfigError, match=r"tiny: no dataset_info\.json in it.*give the folder of"):
        TfdsSource(prepared.parent, Options("train"))
    (tmp_path / "dataset_info.json").write_text("{}")  # as `datasets` writes one
    with pytest.raises(ConfigError, match=r": no features\.json in it"):
        TfdsSource(tmp_path, Options("train"))


def test_splits_that_are_not_there_are_refused(prepared: Path):
    for split in ("valid", "train[", "train[1:x]"):
        with pytest.raises(ConfigError, match=r"1\.0\.0: no split '.*'; there are train, test"):
            TfdsSource(prepared, Options(split))
    with pytest.raises(ConfigError) as error:
        TfdsSource(prepared)
    assert str(error.value) == (
        f"{prepared}: holds train and test, and a stream reads one split; choose by "
        "data.streams.*.split"
    )


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "1.0.0")


def test_missing_and_broken_files_are_refused(copied: Path):
    shard = copied / "tiny-test.array_record-00000-of-00001"
    shard.unlink()
    assert len(TfdsSource(copied, Options("train"))) == 4
    with pytest.raises(ConfigError, match=rf"{shard.name}: no such file"):
        TfdsSource(copied, Options("test"))
    shard.write_bytes(b"x" * 1000)
    with pytest.raises(ConfigError, match=rf"{shard.name}: not an ArrayRecord file that can be"):
        TfdsSource(copied, Options("test"))


def test_a_shard_of_another_length_than_stated_is_refused(copied: Path):
    path = copied / "dataset_info.json"
    text = path.read_text()
    for stated in ("1", "7"):
        path.write_text(
            text.replace('"shardLengths": [\n        "2"', f'"shardLengths": ["{stated}"')
        )
        assert path.read_text() != text
        with pytest.raises(ConfigError, match=f"holds 2 examples, and .* says {stated}"):
            TfdsSource(copied, Options("test"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"caption"', '"capshun"'),
        ('"words"', '"turns"'),
        ("float32", "x"),
    ],
)
def test_features_that_are_not_those_of_the_examples_are_refused(copied: Path, old, new):
    path = copied / "features.json"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    assert path.read_text() != text
    with pytest.raises(ConfigError, match=r"1\.0\.0"):
        TfdsSource(copied, Options("train"))[1]


def test_features_of_other_modules_are_not_imported(copied: Path):
    path = copied / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core", "antigravity.core", 1))
    with pytest.raises(ConfigError, match=r"'antigravity\.core.*; only features of"):
        TfdsSource(copied, Options("train"))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_descriptions_that_cannot_be_read_are_refused(copied: Path, name: str):
    for content in ("", "{", "[]", '{"nonsense": 1}'):
        (copied / name).write_text(content)
        with pytest.raises(
            ConfigError,
            match=r"1\.0\.0.*: (not a dataset that TFDS can read: |not JSON|expected an object)",
        ):
            TfdsSource(copied, Options("train"))


def test_formats_without_random_access_are_refused(copied: Path):
    path = copied / "dataset_info.json"
    for name in ("tfrecord", "parquet"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": name}))
        with pytest.raises(ConfigError, match=rf"prepared as {name}, which has no random access"):
            TfdsSource(copied, Options("train"))
