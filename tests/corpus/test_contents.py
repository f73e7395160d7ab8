"""Pictures and texts are read out of rows of any layout."""

from pathlib import Path

import numpy as np
import pytest

from mllm_jax.corpus.contents import Contents, contents
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.records.fields import ImageFolder


def read(folder: Path, **row) -> Contents:
    return contents(row, 7, ImageFolder(folder))


def test_pictures_are_found_whatever_their_column(tmp_path: Path):
    for column in ("image", "images", "image_2", "img_path", "Photo", "file_name", "jpg"):
        assert read(tmp_path, **{column: "a/b.png"}).images == (f"{tmp_path}/a/b.png",), column
        assert read(tmp_path, **{column: ["a.png", "b.png"]}).texts == ()
    assert read(tmp_path, any={"bytes": b"x", "path": None}).images == (b"x",)
    assert read(tmp_path, png=b"x", cls=b"3").images == (b"x",)
    assert read(tmp_path, image=None, image_id="COCO_1", caption="a").images == ()


def test_texts_are_found_inside_lists_and_objects(tmp_path: Path):
    turns = [{"from": "human", "value": "Zer da?"}, {"from": "gpt", "value": "Katu bat."}]
    row = read(tmp_path, id="x", language="eu", conversations=turns, n=3, flag=True, none=None)
    assert row == Contents("x", "eu", (), ("Zer da?", "Katu bat."))
    stored = {"conversations": {"from": np.array(["human"]), "value": np.array(["Zer da?"])}}
    assert read(tmp_path, **stored).texts == ("Zer da?",)
    assert read(tmp_path, txt=b"katu", sound=b"\xff\xfe").texts == ("katu",)


def test_ids_and_languages_have_defaults(tmp_path: Path):
    assert read(tmp_path, text="a")[:2] == ("7", "und")
    assert read(tmp_path, question_id=12, text="a").id == "12"
    assert read(tmp_path, __key__="000/1", text="a").id == "000/1"


def test_paths_that_leave_the_folder_are_refused(tmp_path: Path):
    for path, code in (("../x.png", "image_path"), ("http://a/b.png", "image_missing")):
        with pytest.raises(RecordError) as error:
            read(tmp_path, image=path)
        assert error.value.code == code
