"""Stores answers as they come, so that an interrupted evaluation continues where it stopped.

OUT/answers.partial.jsonl       appended and flushed after every batch; the last line may be cut
OUT/answers.partial-1.jsonl     those of process 1, where several share a task
OUT/answers.jsonl               all of them in the order of the questions, at the end
OUT/answers.without-images.jsonl    those to questions that were asked without their images, too
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mllm_jax.common.json_file import parse_json
from mllm_jax.evaluation.answers import Line, check_line, write_line

PARTIAL = "answers.partial"
WITHOUT = "without_images"  # a line's key: the question's images were left out
Key = tuple[str, str, str, bool]  # task, language, id, whether it was asked without its images


def key_of(line: Line) -> Key:
    """What tells a line from all others."""
    return line["task"], line["language"], line["id"], line.get(WITHOUT, False)


class Progress:
    """The answers of a folder that is not finished.

    Attributes:
        lines: answers so far, of all processes.
    """

    def __init__(self, folder: Path, process: int = 0):
        """Reads what is there; a last line without its end is removed from the process's own file.

        Raises:
            ConfigError: a line that is not one of answers (named).
        """
        self.lines: dict[Key, Line] = {}
        name = f"{PARTIAL}.jsonl" if process == 0 else f"{PARTIAL}-{process}.jsonl"
        self._path = folder / name
        _remove_cut_line(self._path)
        for file in files(folder):
            self.lines |= {key_of(line): line for line in _read(file)}
        self._file = self._path.open("ab")

    def add(self, lines: Iterable[Line]) -> None:
        """Appends the lines of a batch; they are the operating system's when it returns."""
        lines = list(lines)
        self._file.write("".join(map(write_line, lines)).encode("utf-8"))
        self._file.flush()
        self.lines |= {key_of(line): line for line in lines}

    def has(self, keys: Sequence[Key]) -> bool:
        """Whether all of these are answered: a batch that was cut is asked again, as a whole."""
        return all(key in self.lines for key in keys)

    def close(self) -> None:
        """Closes the process's file."""
        self._file.close()


def files(folder: Path) -> list[Path]:
    """The files of answers so far; none once the folder is finished."""
    return sorted(folder.glob(f"{PARTIAL}*.jsonl"))


def _remove_cut_line(path: Path) -> None:
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)


def _read(path: Path) -> Iterable[dict[str, Any]]:
    """The whole lines; the last one of another process may be on its way."""
    data = path.read_bytes()
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        line = parse_json(text, path, number)
        check_line(line, f"{path}:{number}")
        yield line
