"""`mllm-jax compare`: numbers of known answers, and files that cannot be compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.__main__ import main
from mllm_jax.evaluation import significance
from mllm_jax.evaluation.answers import write_line

BOTH, FIRST, SECOND, NEITHER = (1, 1), (1, 0), (0, 1), (0, 0)


def line(number: int, correct: float, **changes: Any) -> dict[str, Any]:
    """A judged answer to question `number`."""
    return {
        "task": "pope",
        "language": "eu",
        "id": f"q{number}",
        "group": "",
        "category": "",
        "images": [f"{number}.jpg"],
        "question": f"Ba al dago {number}?",
        "prompt": "",
        "truth": "yes",
        "options": [],
        "answer": "bai" if correct else "ez",
        "log_likelihoods": [],
        "tokens": [],
        "finished": True,
        "parsed": "yes" if correct else "no",
        "correct": correct,
        "numbers": {},
    } | changes


def folder(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.mkdir()
    (path / "answers.jsonl").write_text("".join(map(write_line, lines)), encoding="utf-8")
    return path


def results(
    tmp_path: Path, pairs: Sequence[tuple[float, float]], groups: Sequence[str] = (), **changes: Any
) -> tuple[Path, Path]:
    """Two results folders with these scores."""
    folders = []
    for side, name in enumerate(("first", "second")):
        lines = [line(n, pair[side], **changes) for n, pair in enumerate(pairs)]
        for made, group in zip(lines, groups, strict=False):
            made["group"] = group
        folders.append(folder(tmp_path / name, lines))
    return folders[0], folders[1]


def compared(capsys: Any, tmp_path: Path, *words: Any) -> tuple[list[dict[str, Any]], str]:
    """(pairs of the JSON file, what was printed)."""
    file = tmp_path / "pairs.json"
    assert main(["compare", *map(str, words), "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8"))["pairs"], capsys.readouterr().out


def refused(capsys: Any, *words: Any) -> str:
    assert main(["compare", *map(str, words)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_two_models_on_right_or_wrong_answers(tmp_path: Path, capsys: Any):
    first, second = results(tmp_path, [BOTH] * 50 + [FIRST] * 5 + [SECOND] * 15 + [NEITHER] * 30)
    (pair,), printed = compared(capsys, tmp_path, first, second / "answers.jsonl")
    assert (pair["a"], pair["b"]) == (str(first), str(second / "answers.jsonl"))
    assert (pair["task"], pair["language"], pair["count"]) == ("pope", "eu", 100)
    assert (pair["score_a"], pair["score_b"], pair["difference"]) == (55, 65, -10)
    assert (pair["a_only"], pair["b_only"], pair["test"]) == (5, 15, "mcnemar")
    assert pair["p"] == pair["p_holm"] == pytest.approx(0.041389, abs=5e-7)
    assert pair["p_chi_square"] == pytest.approx(0.044171, abs=5e-7)
    # standard error of the differences: ((20 - 10^2 / 100) / 99)^.5 / 10
    assert pair["smallest_difference"] == pytest.approx(2.801585 * 4.380858, rel=1e-5)
    assert (pair["low"], pair["high"]) == pytest.approx((-18.58632, -1.413676), rel=1e-5)
    assert f"A = {first}\n" in printed
    cells = [cell.strip() for cell in printed.splitlines()[5].split("|")[1:-1]]
    assert cells == [
        *("A, B", "pope", "eu", "100", "55.00", "65.00", "-10.00 [-18.59, -1.41]", "5", "15"),
        *("mcnemar", "0.0414", "0.0414 *", "12.27"),
    ]


def test_models_that_never_differ(tmp_path: Path, capsys: Any):
    first, second = results(tmp_path, [BOTH, NEITHER])
    (pair,), printed = compared(capsys, tmp_path, first, second)
    assert (pair["p"], pair["p_holm"], pair["difference"]) == (1, 1, 0)
    assert pair["smallest_difference"] is None
    assert printed.splitlines()[5].endswith("| 1.0000 |   1.0000 |          - |")


def test_holm_is_over_all_pairs_tasks_and_languages(tmp_path: Path, capsys: Any):
    def lines(rights: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
        return [
            line(n, int(n < right), task=task, language=language)
            for (task, language), right in rights.items()
            for n in range(40)
        ]

    cells = [("pope", "eu"), ("pope", "it"), ("gqa", "eu")]
    models = {"a": (10, 20, 30), "b": (16, 20, 29), "c": (20, 31, 5)}
    folders = [
        folder(tmp_path / name, lines(dict(zip(cells, rights, strict=True))))
        for name, rights in models.items()
    ]
    pairs, printed = compared(capsys, tmp_path, *folders)
    assert [Path(p["a"]).name + Path(p["b"]).name for p in pairs[::3]] == ["ab", "ac", "bc"]
    assert [(p["task"], p["language"]) for p in pairs] == cells * 3
    p = [significance.mcnemar(row["a_only"], row["b_only"]) for row in pairs]
    assert [row["p"] for row in pairs] == p
    assert [row["p_holm"] for row in pairs] == significance.holm(p)
    assert "over 9 comparison(s)" in printed


def test_fractions_are_compared_by_bootstrap_and_refuse_mcnemar(tmp_path: Path, capsys: Any):
    pairs = [(0.6, 0.3), (1, 0.9), (0, 0.3), (1, 1), (0.9, 0.3)] * 8
    first, second = results(tmp_path, pairs, task="okvqa")
    (pair,), printed = compared(capsys, tmp_path, first, second)
    assert (pair["test"], pair["p_chi_square"]) == ("bootstrap", None)
    assert (pair["a_only"], pair["b_only"]) == (24, 8)
    assert pair["difference"] == pytest.approx(14)
    assert pair["low"] < 14 < pair["high"]
    assert "bootstrap: 10,000 resamples" in printed
    text = refused(capsys, first, second, "--test", "mcnemar")
    assert "--test mcnemar: okvqa scores answers in fractions, as 0.9" in text
    assert "give --test bootstrap" in text


@pytest.mark.parametrize("test", ["mcnemar", "bootstrap"])
def test_one_question_shows_nothing(tmp_path: Path, capsys: Any, test: str):
    first, second = results(tmp_path, [FIRST])
    (pair,), printed = compared(capsys, tmp_path, first, second, "--test", test)
    assert (pair["difference"], pair["p"], pair["p_holm"]) == (100, 1, 1)
    assert (pair["low"], pair["high"], pair["smallest_difference"]) == (None, None, None)
    assert "+100.00 [-]" in printed
    assert "| -: |" in printed, "a column of one character is aligned too"


def test_equal_differences_have_no_interval(tmp_path: Path, capsys: Any):
    first, second = results(tmp_path, [(0.4, 0.1), (0.7, 0.4), (1, 0.7)], task="okvqa")
    (pair,), _ = compared(capsys, tmp_path, first, second)
    assert (pair["low"], pair["smallest_difference"], pair["p"]) == (None, None, 0.25)


def test_questions_about_one_image_widen_the_interval(tmp_path: Path, capsys: Any):
    pairs = [FIRST] * 10 + [SECOND] * 10 + [BOTH] * 20 + [FIRST] * 10
    images = [f"{n // 10}.jpg" for n in range(50)]
    first, second = results(tmp_path, pairs, groups=images)
    (single,), _ = compared(capsys, tmp_path, *results_without_groups(tmp_path, pairs))
    (pair,), printed = compared(capsys, tmp_path, first, second)
    assert (pair["groups"], single["groups"]) == (5, 50)
    assert pair["p"] == single["p"] == significance.mcnemar(20, 10)
    assert pair["high"] - pair["low"] > 2 * (single["high"] - single["low"])
    assert "pope, eu: 50 questions about 5 images or passages" in printed
    (drawn,), _ = compared(capsys, tmp_path, first, second, "--test", "bootstrap")
    assert drawn["p"] > 4 * pair["p"]


def results_without_groups(tmp_path: Path, pairs: Sequence[tuple[float, float]]):
    (tmp_path / "single").mkdir()
    return results(tmp_path / "single", pairs)


def test_other_questions_are_refused_counted_and_may_be_left_out(tmp_path: Path, capsys: Any):
    first = folder(tmp_path / "a", [line(n, 1) for n in range(6)])
    second = folder(tmp_path / "b", [line(n, n % 2) for n in range(2, 9)])
    text = refused(capsys, first, second)
    assert f"2 questions are only in '{first}', 3 only in '{second}', as 'q0' of pope" in text
    assert "compare the 4 that all share with --common" in text
    (pair,), printed = compared(capsys, tmp_path, first, second, "--common")
    assert (pair["count"], pair["a_only"]) == (4, 2)
    assert f"{first}: 2 questions left out" in printed
    assert f"{second}: 3 questions left out" in printed


def test_wording_is_told_and_another_truth_refused(tmp_path: Path, capsys: Any):
    first = folder(tmp_path / "a", [line(1, 1), line(2, 1)])
    second = folder(tmp_path / "b", [line(1, 1, question="?"), line(2, 0)])
    _, printed = compared(capsys, tmp_path, first, second)
    assert "1 questions were asked in other words, as 'q1'" in printed
    third = folder(tmp_path / "c", [line(1, 1), line(2, 0, truth="no")])
    assert "are of different data: the truth of 'q2' (pope, eu) is 'yes' and 'no'" in refused(
        capsys, first, third
    )


def test_folders_of_different_data_are_refused(tmp_path: Path, capsys: Any):
    first, second = results(tmp_path, [BOTH, FIRST])
    for path, digest in ((first, "ab" * 32), (second, "ab" * 32)):
        settings = {"tasks": {"pope": {"languages": {"eu": {"data_sha256": digest}}}}}
        (path / "settings.json").write_text(json.dumps(settings))
    compared(capsys, tmp_path, first, second)
    text = (second / "settings.json").read_text().replace("ab" * 32, "cd" * 32)
    (second / "settings.json").write_text(text)
    message = refused(capsys, first, second)
    assert "of different data: the digest of pope in eu is abababababab and cdcdcdcdcdcd" in message
    compared(capsys, tmp_path, first, second, "--common")
    compared(capsys, tmp_path, first, second / "answers.jsonl")


def test_bad_input_is_one_line(tmp_path: Path, capsys: Any):
    first = folder(tmp_path / "a", [line(1, 1)])
    other = folder(tmp_path / "b", [line(1, 1, task="gqa")])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "one model; give two results folders or more" in refused(capsys, first)
    assert "is there twice" in refused(capsys, first, tmp_path / "." / "a")
    assert "no answers.jsonl in this folder" in refused(capsys, first, empty)
    assert "no such file" in refused(capsys, first, tmp_path / "missing")
    assert "no question in common" in refused(capsys, first, other, "--common")
    file = tmp_path / "out.json"
    assert "is a folder" in refused(capsys, first, other, "--json", empty)
    refused(capsys, first, other, "--json", file)
    assert not file.exists()
