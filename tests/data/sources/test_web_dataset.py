"""WebDataset shards by number: names, groups and headers of every dialect; damage is refused."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.record_errors import RecordError
from mllm_jax.data.sources.web_dataset import Member, WebDatasetSource, scan

FORMATS: dict[str, Any] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
MEMBERS = {
    "0/17.jpg": b"\xff\xd8photo",
    "0/17.json": b'{"lang": "eu", "jpg": "no", "json": 1, "__key__": "no"}',
    "0/18.JPG": b"",
    "0/18.seg.png": b"mask",
    "0/18.txt": "Katu bat ñ".encode(),
    "1/18.caption": b"Another folder, another sample",
    "1/18.json": b"[1, 2]",
}
ROWS: list[dict[str, Any]] = [
    {
        "__key__": "0/17",
        "jpg": b"\xff\xd8photo",
        "json": {"lang": "eu", "jpg": "no", "json": 1, "__key__": "no"},
        "lang": "eu",
    },
    {"__key__": "0/18", "jpg": b"", "seg.png": b"mask", "txt": "Katu bat ñ"},
    {"__key__": "1/18", "caption": "Another folder, another sample", "json": [1, 2]},
]


def write_tar(
    path: Path, members: Any, kind: str = "gnu", more: list[tarfile.TarInfo] | None = None
) -> Path:
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for info in more or []:
            tar.addfile(info)
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def all_rows(source: WebDatasetSource) -> list[Any]:
    return [source[number] for number in range(len(source))]


@pytest.mark.parametrize("kind", FORMATS)
def test_members_with_a_key_are_a_row(tmp_path: Path, kind: str):
    path = write_tar(tmp_path / "a.tar", MEMBERS, kind)
    source = WebDatasetSource(path)
    assert all_rows(source) == ROWS
    assert [source[n] for n in (2, 0, 1, 1)] == [ROWS[n] for n in (2, 0, 1, 1)]
    assert source.location(1) == f"{path}:0/18"
    for number in (-1, 3):
        with pytest.raises(IndexError):
            source[number]


def test_samples_of_shards_stand_one_after_the_other(tmp_path: Path):
    write_tar(tmp_path / "0.tar", {"a.txt": b"0"})
    write_tar(tmp_path / "1.tar", {"README": b"no sample"})
    write_tar(tmp_path / "2.tar", {"a.cls": b"2", "b.txt": b"3"})  # the same key, another sample
    source = WebDatasetSource(tmp_path)
    assert source.files == [tmp_path / f"{n}.tar" for n in range(3)]
    assert all_rows(source) == [
        {"__key__": "a", "txt": "0"},
        {"__key__": "a", "cls": b"2"},
        {"__key__": "b", "txt": "3"},
    ]
    assert [source.location(n) for n in range(3)] == [
        f"{tmp_path / '0.tar'}:a",
        f"{tmp_path / '2.tar'}:a",
        f"{tmp_path / '2.tar'}:b",
    ]


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path):
    source = WebDatasetSource(write_tar(tmp_path / "a.tar", MEMBERS))
    source[0]
    assert all_rows(pickle.loads(pickle.dumps(source))) == ROWS


def test_what_is_no_part_of_a_sample(tmp_path: Path):
    names = (
        "./a.txt",
        "a",
        "d/.hidden.txt",
        "__meta__",
        "__index__/a.json",
        "./b.txt",
        "d/._b.txt",
    )
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    path = write_tar(tmp_path / "a.tar", dict.fromkeys(names, b"x"), more=[folder])
    keys = [row["__key__"] for row in all_rows(WebDatasetSource(path))]
    assert keys == ["./a", "./b"]


NAME = st.text("ab.ñ_/ ", min_size=1, max_size=300).filter(lambda name: name[-1] != "/")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(
    members=st.lists(st.tuples(NAME, st.integers(0, 1500)), max_size=6),
    kind=st.sampled_from(["gnu", "pax"]),  # ustar cannot hold every name
)
def test_headers_are_read_as_tarfile_reads_them(tmp_path: Path, members, kind: str):
    path = write_tar(
        tmp_path / "a.tar", [(name, name.encode()[:1] * size) for name, size in members], kind
    )
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert list(scan(path)) == expected


def test_long_names_in_two_parts(tmp_path: Path):
    name = f"{'d' * 90}/{'n' * 80}.txt"
    path = write_tar(tmp_path / "a.tar", {name: b"ustar"}, "ustar")
    assert WebDatasetSource(path)[0] == {"__key__": name.removesuffix(".txt"), "txt": "ustar"}


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_sizes_beyond_eight_gibibytes(tmp_path: Path, kind: str):
    size, path = 9 * 2**30, tmp_path / "a.tar"
    info = tarfile.TarInfo("a.bin")
    info.size = size
    with path.open("wb") as file:  # a sparse file on disk: it takes no space
        file.write(info.tobuf(FORMATS[kind]))
        start = file.tell()
        file.seek(start + size)
        other = tarfile.TarInfo("b.txt")
        file.write(other.tobuf() + bytes(1024))
    assert list(scan(path)) == [
        Member("a.bin", start, size),
        Member("b.txt", start + size + 512, 0),
    ]


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "content", "code", "reason"),
    [
        ("a.json", b'{"a": ]', "json", r"json: not JSON: Expecting value \(line 1\)"),
        ("a.json", b'"\xff"', "json", r"json: not UTF-8 text"),
        ("a.json", b"[" * 100_000, "json", "nested too deeply"),
        ("a.json", b"[" + b"7" * 5000 + b"]", "json", "json: not JSON we can read: an integer"),
        ("a.txt", b"\xff", "text", r"txt: not UTF-8 text \(invalid start byte\)"),
    ],
)
def test_a_member_that_cannot_be_read_is_a_fault(tmp_path, name, content, code, reason):
    source = WebDatasetSource(write_tar(tmp_path / "a.tar", {name: content, "b.txt": b"ondo"}))
    assert source[1]["txt"] == "ondo"
    with pytest.raises(RecordError, match=reason) as fault:
        source[0]
    assert fault.value.code == code


def test_paths_without_samples_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder$"):
        WebDatasetSource(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r": no \.tar file in this folder$"):
        WebDatasetSource(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.tar: no samples; members need names as"):
        WebDatasetSource(write_tar(tmp_path / "a.tar", {"README": b""}))


def test_compressed_shards_are_refused(tmp_path: Path):
    write_tar(tmp_path / "a.tar", MEMBERS)
    for name in ("b.tar.gz", "c.tar"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ConfigError, match=r"b\.tar\.gz: compressed; .* so unpack them$"):
        WebDatasetSource(tmp_path)
    with pytest.raises(ConfigError, match=r"c\.tar: not a tar file; it is compressed, unpack it"):
        WebDatasetSource(tmp_path / "c.tar")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda b: b"", "not a tar file"),
        (lambda b: b"no tar" * 100, "not a tar file"),
        (lambda b: b[:1000], r"cut off in member b'a\.txt'"),
        (lambda b: b[:1024], "cut off: the mark that ends a tar is missing"),
        (lambda b: b[:1300], "cut off: the mark that ends a tar is missing"),
        (lambda b: b[:1030] + b"?" + b[1031:], "damaged: no tar header at byte 1024"),
        (lambda b: b[:1148] + b"x" * 12 + b[1160:], "damaged: no tar header at byte 1024"),
        (lambda b: b * 2, "continues after the end-of-archive marker"),
    ],
)
def test_broken_shards_are_refused(tmp_path: Path, damage, reason: str):
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"x" * 500, "b.txt": b"x"})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"a\.tar: {reason}"):
        WebDatasetSource(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.LNKTYPE, "is a link, which has no content"),
        (tarfile.SYMTYPE, "is a link, which has no content"),
        (tarfile.FIFOTYPE, r"is no plain file \(type b'6'\)"),
        (tarfile.GNUTYPE_SPARSE, r"is no plain file \(type b'S'\)"),
    ],
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes, reason: str):
    info = tarfile.TarInfo("a.jpg")
    info.type, info.linkname = kind, "b.jpg"
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ConfigError, match=rf"a\.tar: member b'a\.jpg' {reason}"):
        WebDatasetSource(path)


def test_pax_headers_that_mislead_are_refused(tmp_path: Path):
    path = tmp_path / "a.tar"
    for kind, fields, reason in (
        (tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n", "holds a sparse file"),
        (tarfile.XHDTYPE, b"99 path=a\n", "a pax header cannot be read"),
        (tarfile.XHDTYPE, b"0 path=a\n", "a pax header cannot be read"),
        (tarfile.XHDTYPE, b"path\n", "a pax header cannot be read"),
        (tarfile.XGLTYPE, b"14 path=a.txt\n", "one pax header names all members"),
    ):
        info = tarfile.TarInfo("pax")
        info.type, info.size = kind, len(fields)
        path.write_bytes(info.tobuf() + fields.ljust(512, b"\0") + bytes(1024))
        with pytest.raises(ConfigError, match=reason):
            list(scan(path))


def test_names_that_are_not_utf8_are_refused(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(tarfile.TarInfo("ñ.txt").tobuf(tarfile.USTAR_FORMAT, "latin-1") + bytes(1024))
    with pytest.raises(ConfigError, match=r"a\.tar: the name of member b'\\xf1\.txt' is not UTF-8"):
        WebDatasetSource(path)


def test_an_extension_twice_in_a_sample_is_refused(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"a.jpg": b"1", "a.JPG": b"2"})
    with pytest.raises(ConfigError, match="two members of sample 'a' have the extension jpg"):
        WebDatasetSource(path)


def test_a_shard_that_shrinks_is_noticed(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"x" * 600})
    source = WebDatasetSource(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"a\.tar: has become shorter since it was opened"):
        source[0]
