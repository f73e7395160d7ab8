"""A new folder is there whole or not at all; nothing that exists is written over."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mllm_jax.common import locks
from mllm_jax.common.errors import ConfigError
from mllm_jax.common.folders import check_file, check_new, exclusive, in_use, new_folder, whole_file
from mllm_jax.common.json_file import write_json
from mllm_jax.common.locks import try_lock


def test_in_use(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert not in_use(tmp_path / "none")
    assert not in_use(tmp_path / "empty")
    assert in_use(tmp_path / "file")
    assert in_use(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_gets_its_name_at_the_end(tmp_path: Path, exists: bool):
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "a").write_text("x")
        assert not in_use(out)
    assert (out / "a").read_text() == "x"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_keeps_its_rights_when_nothing_is_made(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir(mode=0o700)
    with pytest.raises(RuntimeError), new_folder(out):
        raise RuntimeError
    assert out.stat().st_mode & 0o777 == 0o700


def test_a_lock_whose_file_is_gone_is_none(tmp_path: Path, monkeypatch):
    """Its holder removes the file while it still holds the lock; the next one opened it before."""
    flock, path = fcntl.flock, tmp_path / "lock"

    def removed_before(number: int, how: int) -> None:
        path.unlink()
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    assert try_lock(path) is None


def test_a_failure_leaves_nothing(tmp_path: Path):
    def work() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_in_use_is_refused_and_kept(tmp_path: Path, kind: str):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").touch()
    with pytest.raises(ConfigError, match=r"is a file; give|exists and is not empty"):
        new_folder(out).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert in_use(out)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    path = tmp_path / "config.yaml"
    with whole_file(path) as beside:
        beside.write_text("one")
        assert not path.exists() and beside.parent == tmp_path

    def work() -> None:
        with whole_file(path) as beside:
            beside.write_text("two")
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        work()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def write(path: Path, text: str) -> None:
    with whole_file(path) as beside:
        beside.write_text(text)


# ------------------------------------------------------------------------ what killed starts left


@pytest.mark.parametrize(
    "left",
    [".out.partial-1", f".out.partial-{os.getpid()}", ".out.partial"],
    ids=["another", "the same", "none"],
)
def test_what_a_killed_start_left_is_cleared_whatever_its_number(tmp_path: Path, left: str):
    (tmp_path / left / "deep").mkdir(parents=True)
    (tmp_path / ".out.lock").touch()
    others = [".other.partial-1", ".out.b.partial-1", "out.partial-1"]
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out"):
        assert not (tmp_path / left / "deep").exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "out"])


def test_a_file_clears_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path):
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.partial-0123").write_text("dead")
    (tmp_path / ".a.json.partial").write_text("dead, of an earlier version")
    with whole_file(path) as one:
        one.write_text("one")
        write(path, "two")
        assert one.read_text() == "one"
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_run_folder_with_only_what_a_killed_start_left_is_new(tmp_path: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.partial-12").touch()
    assert not in_use(tmp_path)
    with exclusive(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_made_for_the_lock_alone_goes_again(tmp_path: Path):
    with exclusive(tmp_path / "deep" / "run"):
        pass
    assert os.listdir(tmp_path) == []
    with exclusive(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert os.listdir(tmp_path / "run") == ["config.yaml"]


# ------------------------------------------------------------------------------ two starts at once


HOLD = """
import sys, time
from pathlib import Path
from mllm_jax.common import folders
with getattr(folders, sys.argv[1])(Path(sys.argv[2])) as folder:
    print("held", flush=True)
    sys.stdin.read()
    ((folder or Path(sys.argv[2])) / "mine").touch()
"""


@pytest.mark.parametrize("way", [new_folder, exclusive])
def test_the_second_of_two_starts_is_refused_and_the_first_unharmed(tmp_path, monkeypatch, way):
    monkeypatch.setattr(locks, "WAIT", 0.2)
    monkeypatch.setattr(locks.claimed.__wrapped__, "__defaults__", (0.2,))
    out = tmp_path / "out"
    words = [sys.executable, "-c", HOLD, way.__name__, str(out)]
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        message = (
            rf"^{out}: in use by another mllm-jax process; wait for it, or give another folder$"
        )
        with pytest.raises(ConfigError, match=message):
            way(out).__enter__()
        first.communicate("")
    assert first.returncode == 0
    assert os.listdir(out) == ["mine"] and os.listdir(tmp_path) == ["out"]
    with exclusive(out):  # free again
        pass


# ---------------------------------------------------------------------------- what is no plain file


def test_a_link_stays_a_link_and_its_target_gets_the_content(tmp_path: Path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("far/real.json")
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert (tmp_path / "far" / "real.json").read_text() == '{\n  "a": 1\n}\n'
    dangling = tmp_path / "new.json"
    dangling.symlink_to("far/new.json")
    write(dangling, "x")
    assert dangling.is_symlink() and (tmp_path / "far" / "new.json").read_text() == "x"


def test_a_pipe_is_written_into(tmp_path: Path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write(pipe, "text")
    reader.join(10)
    assert found == ["text"] and pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "link"])
def test_standard_output_gets_it_in_order_where_a_shell_sent_it(tmp_path: Path, name: str):
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from mllm_jax.common.json_file import write_json; "
    )
    code += "print('before'); write_json(Path(sys.argv[1]), {}); print('after')"
    with (tmp_path / "out.txt").open("w") as out:
        root = str(Path(__file__).resolve().parents[2])
        words = [sys.executable, "-c", code, name]
        environment = os.environ | {"PYTHONPATH": root, "PYTHONUNBUFFERED": ""}
        subprocess.run(words, stdout=out, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "out.txt").read_text() == "before\n{}\nafter\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_empty_or_missing_folder_is_written_through(tmp_path: Path, there: bool):
    out = tmp_path / "out"
    out.symlink_to("far")
    if there:
        (tmp_path / "far").mkdir()
    with new_folder(out) as folder:
        (folder / "a").touch()
    assert out.is_symlink() and os.listdir(tmp_path / "far") == ["a"]


# -------------------------------------------------------------------------------- before the work


UNWRITABLE = {
    "/proc/x/y": "No such file or directory",
    "file/x": "Not a directory",
    "file/x/y": "Not a directory",
    "o" * 300: "the name is too long",
}


@pytest.mark.parametrize(("name", "why"), UNWRITABLE.items())
@pytest.mark.parametrize("way", [new_folder, exclusive])
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch, way, name, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{name}: cannot be written: {why}$"):
        way(Path(name)).__enter__()
    with pytest.raises(ConfigError, match=f"{name}: cannot be written: {why}$"):
        check_file(name)
    assert os.listdir(tmp_path) == ["file"]


def test_checks_touch_nothing(tmp_path: Path):
    check_file(tmp_path / "a.json")
    check_new(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        check_file(tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_error_names_the_output_and_not_the_temporary_folder(tmp_path: Path):
    def work() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a" / "b").write_text("x")

    with pytest.raises(OSError, match="out/a/b") as error:
        work()
    assert error.value.filename == str(tmp_path / "out" / "a" / "b")


def test_a_copy_without_room_names_the_output_and_not_its_source(tmp_path: Path):
    def work() -> None:
        with new_folder(tmp_path / "out") as folder:  # as shutil.copyfile raises it
            raise OSError(errno.ENOSPC, "No space", "source", None, str(folder / "copy"))

    with pytest.raises(OSError, match="No space") as error:
        work()
    assert error.value.filename == str(tmp_path / "out" / "copy")
