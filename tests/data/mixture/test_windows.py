"""Rows by number: found from anywhere, by threads, from a table on disk that is counted once."""

import errno
import fcntl
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from mllm_jax.data.mixture import row_table
from mllm_jax.data.mixture import windows as rows_module
from mllm_jax.data.mixture.packing import best_fit
from mllm_jax.data.mixture.row_table import HEAD, RowTable
from mllm_jax.data.mixture.windows import NEAR, Rows

WINDOW = 16
SIZES = np.random.default_rng(0).integers(1, 9, 40_000)


class Pack:
    """Packs SIZES and notes the windows that it was asked for."""

    def __init__(self):
        self.asked: list[int] = []

    def __call__(self, positions: range):
        self.asked.append(positions.start)
        return best_fit(SIZES[positions].tolist(), [0] * len(positions), 10, 0)


def cut(start: int) -> int:
    """Windows end at multiples of 100, too."""
    return min(start + WINDOW, (start // 100 + 1) * 100)


def rows_of(path: Path | None = None) -> tuple[Rows, Pack]:
    pack = Pack()
    return Rows(pack, cut, WINDOW, RowTable(path) if path else None), pack


def test_rows_are_found_from_anywhere():
    straight, pack = rows_of()
    rows = [straight[r] for r in range(2000)]
    assert sorted(set(pack.asked)) == pack.asked, "each window is packed once"
    end = straight.whole_windows(max(max(row) for row in rows))[1]
    flat = sorted(p for row in rows for p in row)
    assert [p for p in flat if p < end] == list(range(end)), "nothing is left out or comes twice"
    for row in rows:
        assert {cut(p // 100 * 100 + p % 100 // WINDOW * WINDOW) for p in row} == {
            cut(row[0] // 100 * 100 + row[0] % 100 // WINDOW * WINDOW)
        }, "of one window"
    for start in (1999, 3, 77):
        assert rows_of()[0][start] == rows[start]


def test_rows_before_a_position():
    """All rows of the windows that end there or before."""
    straight, _ = rows_of()
    rows = [straight[r] for r in range(300)]
    for position in (0, 1, 15, 16, 17, 96, 99, 100, 101, 250):
        counted, end = rows_of()[0].whole_windows(position)
        assert end <= position < cut(end) and (end % 100) % WINDOW == 0
        assert counted == sum(max(row) < end for row in rows)


def test_rows_serve_threads():
    rows = Rows(lambda positions: [[i] for i in range(len(positions))], lambda s: s + 4, 4)
    served: dict[int, list[int]] = {}

    def read(numbers):
        for n in numbers:
            served[n] = rows[n]

    threads = [threading.Thread(target=read, args=(range(t, 2000, 8),)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == {n: [n] for n in range(2000)}


def test_the_table_is_read_by_the_next(tmp_path):
    path = tmp_path / "plans" / "a.rows"
    first, _ = rows_of(path)
    first.count(500)
    expected = first[499]
    again, pack = rows_of(path)
    assert again[499] == expected
    assert len(pack.asked) == 1, "the window of the row, nothing else"
    copy = pickle.loads(pickle.dumps(again))
    assert copy[499] == expected


def test_a_far_row_is_kept_without_being_asked_to(tmp_path):
    path, far = tmp_path / "a.rows", 5 * NEAR * WINDOW
    expected = rows_of(path)[0][far]
    again, pack = rows_of(path)
    assert again[far] == expected and len(pack.asked) == 1


def test_long_counting_is_said_where_no_terminal_shows_it(monkeypatch, capsys):
    monkeypatch.setattr(rows_module, "LONG", 1000)
    rows_of()[0][1000]
    assert capsys.readouterr().err == ""
    rows_of()[0][2000]
    assert "counting rows as far as 2,001, once" in capsys.readouterr().err


def test_rows_are_kept_while_a_run_goes_through_them(tmp_path):
    """Killed at any moment it has kept half of the windows at least, or all but some seconds'."""
    path = tmp_path / "a.rows"
    running, pack = rows_of(path)
    for row in range(1000):
        running[row]
    counted = len(set(pack.asked))
    assert len(RowTable(path).load()[0]) > counted // 2
    then, pack = rows_of(path)
    assert then[999] == running[999]
    assert len(pack.asked) <= counted // 2 + 1


def test_some_seconds_later_everything_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(row_table, "SECONDS", 0.0)
    running, _ = rows_of(tmp_path / "a.rows")
    for row in range(300):
        running[row]
    again, pack = rows_of(tmp_path / "a.rows")
    assert again[299] == running[299] and len(pack.asked) == 1


@pytest.mark.parametrize("at", [0, 5, HEAD - 1, HEAD, HEAD + 9, -1])
def test_a_damaged_table_is_counted_again(tmp_path, at, capsys):
    path = tmp_path / "a.rows"
    whole, _ = rows_of(path)
    whole.count(500)
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    again, _ = rows_of(path)
    assert [again[r] for r in range(500)] == [whole[r] for r in range(500)]
    again.count(500)
    assert "a.rows: damaged; its rows are counted again" in capsys.readouterr().err
    assert rows_of(path)[0][3] == whole[3]
    assert capsys.readouterr().err == "", "it is whole again"


@pytest.mark.parametrize("size", [0, 7, HEAD, HEAD + 8, -1])
def test_a_cut_table_is_counted_again(tmp_path, size):
    path = tmp_path / "a.rows"
    whole, _ = rows_of(path)
    whole.count(500)
    path.write_bytes(path.read_bytes()[:size])
    assert rows_of(path)[0][499] == whole[499]


def test_a_shorter_table_never_replaces_a_longer_one(tmp_path):
    path = tmp_path / "a.rows"
    early, _ = rows_of(path)
    rows_of(path)[0].count(2000)
    length = path.stat().st_size
    early.count(10)
    assert path.stat().st_size == length


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capsys, code):
    def refuse(*_, **__):
        raise OSError(code, "no way")

    monkeypatch.setattr(Path, "mkdir", refuse)
    rows, _ = rows_of(tmp_path / "plans" / "a.rows")
    expected = rows_of()[0][3000]
    assert rows[3000] == expected
    rows.count(4000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{tmp_path}/plans/a.rows: no way; the counts of rows are not kept"]


def test_a_save_that_fails_leaves_the_old_table(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.rows"
    rows_of(path)[0].count(300)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    rows, _ = rows_of(path)
    rows.count(600)
    assert path.read_bytes() == before
    assert "No space left on device; the counts of rows are not kept" in capsys.readouterr().err


def test_while_another_process_holds_the_table_near_rows_do_not_wait(tmp_path):
    path = tmp_path / "a.rows"
    with (tmp_path / ".a.rows.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows, _ = rows_of(path)
        assert [rows[n] for n in range(200)] == [rows_of()[0][n] for n in range(200)]
    assert not path.exists()


def _far_row(path: Path, ready, results) -> None:
    rows, pack = rows_of(path)
    ready.wait()
    results.put((rows[9000], len(pack.asked)))


def test_of_several_processes_one_counts(tmp_path):
    """They begin at the same time; the others wait and read."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "plans" / "a.rows", ready, results)
    processes = [context.Process(target=_far_row, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    rows, asked = zip(*(results.get(timeout=120) for _ in processes), strict=True)
    for process in processes:
        process.join()
    assert list(rows) == [rows_of()[0][9000]] * 3
    assert sorted(asked)[:2] == [1, 1] and max(asked) > 1000
