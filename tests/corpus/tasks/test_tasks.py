"""`mllm-jax corpus tasks`: the three tasks of LRM-LLaVA from aligned records, to the letter."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_jax.__main__ import main
from mllm_jax.corpus.tasks import wordings
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.parse import read_record

CAT = {
    "id": "42",
    "image": "42.jpg",
    "q": {"en": "What animal is this?", "eu": "Zein animalia da hau?"},
    "a": {"en": "A cat.", "eu": "Katu bat."},
}
PAPER = ("en", "zh", "it", "fr", "de", "es", "ru", "ro", "cs", "hr")
# id -> user, assistant, language
ORACLE = {
    "42/mvqa/eu": ("<image>\nZein animalia da hau?", "Katu bat.", "eu"),
    "42/mvqa/en": ("<image>\nWhat animal is this?", "A cat.", "en"),
    "42/ep/eu": (
        "<image>\nZein animalia da hau?\nFirst translate the question into English, then answer in "
        "Basque using the image, the question and its translation.",
        "What animal is this?\nKatu bat.",
        "eu",
    ),
    "42/bvqa/eu-en": ("<image>\nZein animalia da hau?\nAnswer in English.", "A cat.", "en"),
    "42/bvqa/en-eu": ("<image>\nWhat animal is this?\nAnswer in Basque.", "Katu bat.", "eu"),
}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of a file -> its records."""
    return {
        file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for file in sorted(folder.glob("*.jsonl"))
    }


def run(*words: Any) -> int:
    return main(["corpus", "tasks", *map(str, words)])


def build(tmp_path: Path, records: list[dict[str, Any]], *words: str) -> Path:
    source = write(tmp_path / "aligned.jsonl", records)
    assert run(source, "--out", tmp_path / "out", *words) == 0
    return tmp_path / "out"


def refused(capsys, *words: Any) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mllm-jax: error: "), error
    return error


def turns(record: dict[str, Any]) -> tuple[str, str, str]:
    user, assistant = record["conversations"]
    assert (user["from"], assistant["from"]) == ("human", "gpt")
    return user["value"], assistant["value"], record["language"]


def test_the_worked_example(tmp_path):
    files = read(build(tmp_path, [CAT]))
    assert list(files) == ["bvqa_eu", "ep_eu", "mvqa_en", "mvqa_eu"]
    got = {record["id"]: turns(record) for of in files.values() for record in of}
    assert got == ORACLE
    for of in files.values():
        for record in of:
            assert record["image"] == "42.jpg"
            folder = ImageFolder(tmp_path)
            parsed = read_record(record, record["id"], folder, None, ("eu", "en"))
            assert len(parsed.images) == 1, "a LLaVA record as training reads it"


def test_pairs_have_the_same_answer(tmp_path):
    """Two and two, as `mvqa` and `bvqa` have them; a text that is missing leaves one alone."""
    tasks = "mvqa", "bvqa", "pairs"
    lacking = {**CAT, "id": "43", "q": {"en": "What?"}}
    out = build(tmp_path, [CAT, lacking], "--tasks", *tasks)
    files = read(out)
    others = {r["id"]: r for of in ("mvqa_en", "mvqa_eu", "bvqa_eu") for r in files[of]}
    names = [(r["pair"], r["id"]) for r in files["pairs_eu"]]
    assert names == [
        ("42/eu", "42/mvqa/eu"),
        ("42/eu", "42/bvqa/en-eu"),
        ("42/en", "42/mvqa/en"),
        ("42/en", "42/bvqa/eu-en"),
        ("43/eu", "43/bvqa/en-eu"),
        ("43/en", "43/mvqa/en"),
    ]
    for record in files["pairs_eu"]:
        assert record == others[record["id"]] | {"pair": record["pair"]}
    (_, one, _), (_, other, _) = (turns(r) for r in files["pairs_eu"][:2])
    assert one == other == "Katu bat."
    streams = yaml.safe_load((out / "streams.yaml").read_text(encoding="utf-8"))["streams"]
    assert streams["pairs_eu"]["pairs"] == "pair" and "pairs" not in streams["bvqa_eu"]
    assert "pairs_en" not in streams


def test_never_a_pivot_for_english_nor_a_pair_without_it(tmp_path):
    three = json.loads(json.dumps(CAT))
    three["q"]["it"], three["a"]["it"] = "Che animale è?", "Un gatto."
    files = read(build(tmp_path, [three]))
    assert sorted(files) == [
        "bvqa_eu",
        "bvqa_it",
        "ep_eu",
        "ep_it",
        "mvqa_en",
        "mvqa_eu",
        "mvqa_it",
    ]
    pairs = [r["id"].rpartition("/")[2] for of in ("bvqa_eu", "bvqa_it") for r in files[of]]
    assert pairs == ["eu-en", "en-eu", "it-en", "en-it"]


def test_a_record_that_lacks_a_language_yields_what_it_can(tmp_path, capsys):
    question_alone = {
        "id": 1,
        "image": "1.jpg",
        "q": {"en": "Who?", "eu": "Nor?"},
        "a": {"eu": "Ni."},
    }
    no_english = {"id": 2, "image": "2.jpg", "q": {"eu": "Non?"}, "a": {"eu": "Hor.", "en": " "}}
    out = build(tmp_path, [CAT, question_alone, no_english], "--json")
    files = read(out)
    ids = {name: [r["id"] for r in of] for name, of in files.items()}
    assert ids == {
        "mvqa_en": ["42/mvqa/en"],
        "mvqa_eu": ["42/mvqa/eu", "1/mvqa/eu", "2/mvqa/eu"],
        "ep_eu": ["42/ep/eu", "1/ep/eu"],
        "bvqa_eu": ["42/bvqa/eu-en", "42/bvqa/en-eu", "1/bvqa/en-eu"],
    }
    report = json.loads((out / "tasks.json").read_text("utf-8"))
    assert json.loads(capsys.readouterr().out)["tasks"] == report["tasks"]
    rows = {(row["task"], row["language"]): row for row in report["tasks"]}
    assert report["records"] == 3
    assert rows["mvqa", "en"]["left_out"] == {"no answer in en": 1, "no question in en": 1}
    assert rows["mvqa", "eu"] == {
        "task": "mvqa", "language": "eu", "file": "mvqa_eu.jsonl", "records": 3, "left_out": {},
    }  # fmt: skip
    assert rows["ep", "eu"]["left_out"] == {"no question in en": 1}
    assert rows["bvqa", "eu"]["left_out"] == {"no answer in en": 2, "no question in en": 1}


def test_the_table_counts_by_task_language_and_reason(tmp_path, capsys):
    build(tmp_path, [CAT, {"id": 2, "image": "2.jpg", "q": {"eu": "Non?"}, "a": {"eu": "Hor."}}])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    table = {(c[1].strip(), c[2].strip()): [x.strip() for x in c[3:-1]] for c in lines[2:]}
    assert table["ep", "eu"] == ["1", "1", "no question in en: 1"]
    assert table["bvqa", "eu"] == ["2", "2", "no answer in en: 1, no question in en: 1"]


def test_the_same_bytes_again(tmp_path):
    first = build(tmp_path, [CAT])
    assert run(tmp_path / "aligned.jsonl", "--out", tmp_path / "again") == 0
    for file in first.glob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_instructions_in_the_language_of_the_question(tmp_path):
    files = read(build(tmp_path, [CAT], "--instructions", "question"))
    users = [r["conversations"][0]["value"].splitlines()[-1] for r in files["bvqa_eu"]]
    assert users == ["Erantzun ingelesez.", "Answer in Basque."]
    assert files["ep_eu"][0]["conversations"][0]["value"].endswith(
        "\nLehenik itzuli galdera ingelesera, eta gero erantzun euskaraz, irudia, galdera eta "
        "haren itzulpena erabiliz."
    )


def test_captions_are_asked_for_in_the_language_of_the_caption(tmp_path):
    """Stage 1 of the paper: image, multilingual question, description."""
    records = [
        {"id": n, "image": f"{n}.jpg", "a": {"en": f"Cat {n}.", "eu": f"{n} katu."}}
        for n in range(20)
    ]
    files = read(build(tmp_path, records, "--tasks", "mvqa"))
    assert list(files) == ["mvqa_en", "mvqa_eu"]
    known = wordings.load()
    pairs = set()
    for english, basque in zip(files["mvqa_en"], files["mvqa_eu"], strict=True):
        asked = [turns(one)[0].removeprefix("<image>\n") for one in (english, basque)]
        numbers = known["en"].describe.index(asked[0]), known["eu"].describe.index(asked[1])
        assert numbers[0] == numbers[1], "the same question in both languages"
        pairs.add(numbers[0])
    assert pairs == {0, 1, 2}, "every wording is used"


def test_several_pictures_and_none(tmp_path):
    several = CAT | {"id": 1, "image": ["a.jpg", "b.jpg"]}
    none = {name: value for name, value in CAT.items() if name != "image"} | {"id": 2}
    first, second = read(build(tmp_path, [several, none]))["mvqa_en"]
    assert turns(first)[0] == "<image>\n<image>\nWhat animal is this?"
    assert first["image"] == ["a.jpg", "b.jpg"]
    assert turns(second)[0] == "What animal is this?" and "image" not in second


def test_wordings_of_the_papers_languages_and_more():
    known = wordings.load()
    assert {*PAPER, "eu", "gl", "ca", "cy"} <= known.keys()
    for code, of in known.items():
        assert of.language == code and len(of.describe) == len(known["en"].describe)
        assert set(of.answer_in) == set(known), code
        for target in known.values():
            name = target.answer_in[code]
            for sentence in (of.pivot, of.bilingual):
                assert sentence is not None and name in sentence.format(answer_in=name)
    texts = {of.pivot for of in known.values()}
    assert len(texts) == len(known)


# ----------------------------------------------------------------------------------- bad input


def test_a_language_without_wordings_says_what_to_add(tmp_path, capsys):
    irish = json.loads(json.dumps(CAT))
    irish["q"]["ga"], irish["a"]["ga"] = "Cén t-ainmhí é seo?", "Cat."
    source, out = write(tmp_path / "a.jsonl", [irish]), tmp_path / "out"
    error = refused(capsys, source, "--out", out)
    assert "ga" in error and "--wordings" in error and "answer_in" in error
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    file = tmp_path / "ga.yaml"
    file.write_text('language: ga\nname: Irish\nanswer_in: {"en": in Irish}\n', "utf-8")
    assert run(source, "--out", out, "--wordings", file) == 0
    assert read(out)["bvqa_ga"][1]["conversations"][0]["value"].endswith("\nAnswer in Irish.")
    error = refused(
        capsys, source, "--out", tmp_path / "x", "--wordings", file, "--instructions", "question"
    )
    assert "ga" in error and "pivot" in error
    file.write_text("language: ga\nname: Irish\nanswer_im: {}\n", "utf-8")
    assert "answer_in" in refused(capsys, source, "--out", tmp_path / "x", "--wordings", file)
    file.write_text('language: ga\nname: Irish\nanswer_in: {}\nbilingual: "Answer."\n', "utf-8")
    error = refused(capsys, source, "--out", tmp_path / "x", "--wordings", file)
    assert "bilingual" in error and "{answer_in}" in error


def test_duplicate_ids_are_refused(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", [CAT, CAT | {"id": "7"}, CAT | {"id": 7}])
    error = refused(capsys, source, "--out", tmp_path / "out")
    assert "a.jsonl:2" in error and "a.jsonl:3" in error and "'7'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id": None}, "id"),
        ({"id": ["x"]}, "id"),
        ({"q": "Zer?"}, "q"),
        ({"q": {"eu": 7}}, "q.eu"),
        ({"a": None}, "a"),
        ({"a": {"eu": "Katu <image> bat."}}, "<image>"),
        ({"q": {"eu": "<image>\nZer?"}}, "<image>"),
        ({"image": 7}, "image"),
        ({"image": [""]}, "image"),
        ({"question": {}}, "question"),
    ],
)
def test_what_is_not_an_aligned_record_is_one_line(tmp_path, capsys, change, expected):
    source = write(tmp_path / "a.jsonl", [CAT, CAT | {"id": 2} | change])
    error = refused(capsys, source, "--out", tmp_path / "out")
    assert "a.jsonl:2" in error and expected in error
    assert not (tmp_path / "out").exists()


def test_flags_that_cannot_be_met(tmp_path, capsys):
    source, out = write(tmp_path / "a.jsonl", [CAT]), tmp_path / "out"
    assert "xx" in refused(capsys, source, "--out", out, "--languages", "en", "xx")
    assert "en" in refused(capsys, source, "--out", out, "--languages", "en", "--tasks", "ep")
    assert "no such file" in refused(capsys, tmp_path / "b.jsonl", "--out", out)
    empty = write(tmp_path / "empty.jsonl", [])
    assert "no records" in refused(capsys, empty, "--out", out)
    out.mkdir()
    (out / "mine").write_text("")
    assert "not empty" in refused(capsys, source, "--out", out)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(CAT) + "\n{", "utf-8")
    assert "broken.jsonl:2" in refused(capsys, broken, "--out", tmp_path / "x")


def test_keys_that_are_knowingly_not_read(tmp_path):
    out = build(tmp_path, [CAT | {"source": "coco"}], "--ignore", "source")
    assert len(read(out)["mvqa_eu"]) == 1
