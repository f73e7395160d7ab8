"""Ratings of known preferences, scikit-learn and scipy as references, and files refused."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression

from mllm_jax.__main__ import main
from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.arena import Preference, rate, spearman, tally


def preferences(strengths: list[float], count: int, seed: int = 0) -> list[Preference]:
    """Random comparisons of models that win as their strengths (in logits) say; 20 % ties."""
    generator, rows = np.random.default_rng(seed), []
    for _ in range(count):
        a, b = generator.choice(len(strengths), 2, replace=False)
        wins = generator.random() < 1 / (1 + math.exp(strengths[b] - strengths[a]))
        winner = "tie" if generator.random() < 0.2 else "model_a" if wins else "model_b"
        rows.append(Preference(f"m{a}", f"m{b}", winner))
    return rows


def test_three_to_one_is_the_published_rating():
    rows = [Preference("x", "y", "model_a")] * 3 + [Preference("x", "y", "model_b")]
    ratings = rate(tally(rows * 200))
    assert ratings.ratings == pytest.approx([1095.42, 904.58], abs=0.005)
    # 800 comparisons: the logit's error is (800 * 3/4 * 1/4)^-1/2
    reach = 1.96 * 200 / math.log(10) / math.sqrt(800 * 3 / 16)
    assert ratings.high[0] - ratings.low[0] == pytest.approx(2 * reach, rel=0.1)


def test_a_tie_is_half_a_win_for_each():
    tie = [Preference("x", "y", "tie")] * 10
    assert rate(tally(tie)).ratings == pytest.approx([1000, 1000])
    mixed = tally(tie + [Preference("y", "x", "model_b")] * 10)  # 15 : 5
    assert rate(mixed).ratings == pytest.approx([1095.42, 904.58], abs=0.005)


def test_ratings_agree_with_scikit_learn():
    """Chatbot Arena's notebook: rows twice, ties once for each side, base 10."""
    rows = preferences([0.0, 0.3, 1.0, -0.5, 2.0, 0.1], 600)
    counts = tally(rows)
    number = {model: n for n, model in enumerate(counts.models)}
    signs, labels = [], []
    for copy, (a, b, winner) in itertools.product((0, 1), rows):
        sign = np.zeros(6)
        sign[number[a]], sign[number[b]] = math.log(10), -math.log(10)
        signs.append(sign)
        labels.append(winner == "model_a" or (winner == "tie" and copy == 0))
    model = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(np.array(signs), labels)
    assert rate(counts, draws=10).ratings == pytest.approx(400 * model.coef_[0] + 1000, abs=0.05)


def test_intervals_hold_the_truth_and_are_repeatable():
    strengths = [0.0, 0.5, 1.0, -0.8]
    truth = {f"m{n}": 1000 + 400 / math.log(10) * s for n, s in enumerate(strengths)}
    shift = np.mean(list(truth.values())) - 1000
    inside = []
    for seed in range(25):
        rows = [p for p in preferences(strengths, 400, seed) if p.winner != "tie"]
        counts = tally(rows)
        ratings = rate(counts, draws=200)
        expected = np.array([truth[model] - shift for model in counts.models])
        inside += list((ratings.low <= expected) & (expected <= ratings.high))
    assert 0.88 <= np.mean(inside) <= 1
    counts = tally(preferences(strengths, 50))
    assert np.array_equal(rate(counts).low, rate(counts).low)


def test_models_may_be_compared_through_others():
    """x and z never meet; each step of the chain is 3 : 1."""
    rows = [Preference(a, b, "model_a") for a, b in ("xy", "yz")] * 60
    rows += [Preference(a, b, "model_b") for a, b in ("xy", "yz")] * 20
    step = 400 * math.log10(3)
    assert rate(tally(rows)).ratings == pytest.approx([1000 + step, 1000, 1000 - step])


def test_lopsided_preferences_still_converge():
    rows = [Preference("x", "y", "model_a")] * 9998 + [Preference("x", "y", "model_b")] * 2
    rows += [Preference("y", "z", "model_a")] * 999 + [Preference("y", "z", "tie")] * 3
    ratings = rate(tally(rows))
    x, y, z = ratings.ratings
    assert x - y == pytest.approx(400 * math.log10(9998 / 2))
    assert y - z == pytest.approx(400 * math.log10(1000.5 / 1.5))
    # resamples without any win of y over x (e^-2 of them), or without a tie (e^-3)
    assert ratings.unbounded == pytest.approx(1000 * (1 - (1 - 0.135) * (1 - 0.05)), abs=40)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("x", "y"), ("y", "x"), ("v", "w"), ("w", "v")], "x is never compared"),
        (
            [("x", "y"), ("y", "z"), ("z", "y")],
            "no loss or tie of x:",
        ),
        (
            [("x", "y"), ("y", "x"), ("y", "z"), ("x", "z")],
            "no loss or tie of x, y:",
        ),
    ],
)
def test_ratings_that_are_not_finite_are_refused(pairs, message):
    rows = [Preference(a, b, "model_a") for a, b in pairs]
    with pytest.raises(ConfigError, match=message):
        rate(tally(rows))


def test_too_few_preferences_have_no_intervals():
    with pytest.raises(ConfigError, match=r"too few preferences: in .* of 1,000 resamples"):
        rate(tally([Preference(a, b, "model_a") for a, b in ("xy", "yz", "zx")]))


def test_spearman_agrees_with_scipy():
    generator = np.random.default_rng(0)
    for size in (3, 5, 8, 30):
        first = generator.integers(0, 6, size).astype(float)
        second = first + generator.normal(0, 3, size)
        ours = spearman(list(first), list(second))
        assert ours is not None
        rho, p = np.asarray(scipy.stats.spearmanr(first, second))
        assert ours.rho == pytest.approx(rho)
    assert ours.p == pytest.approx(p, abs=0.02)
    perfect = spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
    assert perfect == (pytest.approx(1), pytest.approx(2 / 24))
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


# ------------------------------------------------------------------------------------------ files

ROWS = [
    {"model_a": "latxa", "model_b": "llama", "winner": winner, "judge": "x"}
    for winner in ("model_a", "model_a", "model_b", "tie", "tie (bothbad)", "both_bad") * 8
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_layout_gives_the_same_ratings(tmp_path: Path, capsys: Any, suffix: str):
    one_hot = [
        {name: row[name] for name in ("model_a", "model_b")}
        | {
            "winner_model_a": int(row["winner"] == "model_a"),
            "winner_model_b": int(row["winner"] == "model_b"),
            "winner_tie": int(row["winner"] not in ("model_a", "model_b")),
        }
        for row in ROWS
    ]
    for rows in (ROWS, one_hot):
        out = tmp_path / "out.json"
        file = written(tmp_path / f"votes{suffix}", rows)
        assert main(["arena", str(file), "--json", str(out)]) == 0
        tree = json.loads(out.read_text())
        best, worst = tree["models"]
        assert (best["model"], best["count"], best["won"], best["tied"]) == ("latxa", 48, 16, 24)
        assert (worst["model"], worst["won"], worst["lost"]) == ("llama", 8, 16)
        assert best["rating"] - worst["rating"] == pytest.approx(400 * math.log10(28 / 20))
        assert best["low"] < best["rating"] < best["high"]
        assert "| latxa | 1029.2 |" in capsys.readouterr().out


def test_benchmarks_are_correlated_with_the_ratings(tmp_path: Path, capsys: Any):
    rows = [p._asdict() for p in preferences([0.0, 0.5, 1.0, 1.5], 400)]
    votes = [written(tmp_path / "a.jsonl", rows[:200]), written(tmp_path / "b.jsonl", rows[200:])]
    scores = tmp_path / "scores.json"
    reading = {"m0": 31, "m1": 40, "m2": 45.5, "m3": 60, "other": 3}
    trivia = {"m0": 3, "m1": 1, "m2": 2}
    scores.write_text(json.dumps({"reading": reading, "trivia": trivia}))
    out = tmp_path / "out.json"
    words = [*map(str, votes), "--benchmarks", str(scores), "--json", str(out)]
    assert main(["arena", *words]) == 0
    assert json.loads(out.read_text())["benchmarks"] == [
        {"benchmark": "reading", "count": 4, "spearman": 1, "p": pytest.approx(2 / 24)},
        {"benchmark": "trivia", "count": 3, "spearman": -0.5, "p": 1},
    ]
    assert "| reading   |      4 |    1.000 | 0.0833 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: expected a file named .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", "", "a.jsonl: no preferences"),
        ("a.jsonl", "{", "a.jsonl:1: not JSON"),
        ("a.jsonl", '{"model_a": "x"}', "a.jsonl:1: no model_b"),
        ("a.jsonl", '{"model_a": "x", "model_b": 3}', "model_b=3; expected text"),
        ("a.csv", "model_a,model_b,winner\nx,y,x", "a.csv:2: winner='x'; expected one of model_a"),
        ("a.csv", "model_a,model_b,winner\nx,x,tie", "a.csv:2: 'x' is compared with itself"),
        ("a.csv", "model_a,model_b,winner\nx,y,tie,more", "a.csv:2: more or fewer cells than"),
        ("a.csv", "model_a,model_b,winner\nx,y", "a.csv:2: more or fewer cells than"),
        ("a.csv", "model_a,model_b,winner\nx, x,tie", "a.csv:2: 'x' is compared with itself"),
        ("a.jsonl", '{"model_a": "x", "model_b": "y"}', "a.jsonl:1: no winner; expected"),
        ("a.csv", "model_a,model_b,winner_tie\nx,y,0", "0 of winner_model_a"),
        ("a.csv", b"model_a\n\xff", "a.csv: not UTF-8 text (invalid start byte)"),
        ("a.csv", 'model_a\n"x', "a.csv: not CSV after line 1: unexpected end of data"),
        ("a.parquet", "x", "a.parquet: not a Parquet file that can be read"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, capsys: Any, name: str, content: Any, message: str):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["arena", str(path), "--json", str(tmp_path / "o.json")]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def test_benchmarks_of_other_models_are_refused(tmp_path: Path, capsys: Any):
    votes = written(tmp_path / "a.jsonl", ROWS)
    scores = tmp_path / "scores.json"
    scores.write_text('{"reading": {"latxa": 3, "lama": 2, "gpt": 4}}')
    assert main(["arena", str(votes), "--benchmarks", str(scores)]) == 2
    text = capsys.readouterr().err
    assert "reading: scores of 1 rated models, expected at least 3 of latxa, llama" in text
    assert "did you mean llama?" in text
    scores.write_text("{}")
    assert main(["arena", str(votes), "--benchmarks", str(scores)]) == 2
    assert "scores.json: no benchmarks; expected" in capsys.readouterr().err
