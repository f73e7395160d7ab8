"""Finds answers that the same model gave to the same questions before, so that nothing is asked
twice.

CACHE/<key>.jsonl     a task in a language; the key is of model, task, settings and data
"""

from collections.abc import Sequence
from pathlib import Path

from mllm_jax.common.folders import write_whole
from mllm_jax.evaluation.answers import Line, read_answers, write_line
from mllm_jax.evaluation.results import settings
from mllm_jax.evaluation.results.tables import Result
from mllm_jax.evaluation.tasks.base import TableTask


class Measured:
    """A folder of answers.

    Attributes:
        folder: where they are.
        again: whether every question is asked again, and the answers replace those of before.
    """

    def __init__(self, folder: Path, again: bool = False):
        self.folder, self.again = folder, again

    def lines(
        self, tree: settings.Tree, task: TableTask, language: str, without_images: bool = False
    ) -> Sequence[Line]:
        """The answers to a task in a language, or none; says so where there are some.

        Raises:
            ConfigError: the file is damaged (named).
        """
        file = self._file(tree, task.name, language, without_images)
        if self.again or not file.is_file():
            return ()
        lines = read_answers(file)
        name = f"{task.name}, {language}{', without images' if without_images else ''}"
        print(
            f"{name}: {len(lines):,} answers of this model are measured already, {file}; --again "
            "asks again",
            flush=True,
        )
        return lines

    def keep(self, tree: settings.Tree, results: Sequence[Result]) -> None:
        """Stores the answers of a finished evaluation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for one in results:
            for lines in filter(None, (one.lines, one.without_images)):
                alone = lines is one.without_images
                file = self._file(tree, one.task.name, one.language, alone)
                if self.again or not file.is_file():
                    write_whole(file, "".join(map(write_line, lines)))

    def _file(self, tree: settings.Tree, task: str, language: str, without_images: bool) -> Path:
        return self.folder / f"{settings.key(tree, task, language, without_images)}.jsonl"
