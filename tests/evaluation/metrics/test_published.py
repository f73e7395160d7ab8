"""Published answers, scored again: the numbers of the papers, to the last printed digit."""

import json
from collections import defaultdict

import pytest

from mllm_jax.evaluation.languages import language
from mllm_jax.evaluation.metrics import letters, options, yes_no

pytestmark = pytest.mark.realdata


@pytest.fixture
def metrics(shared):
    return shared / "realdata" / "metrics"


@pytest.fixture
def expected(metrics):
    return json.loads((metrics / "expected.json").read_text())


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pope_of_llava_1_5_13b(metrics, expected):
    answers = defaultdict(dict)
    for line in lines(metrics / "pope" / "llava-v1.5-13b.jsonl"):
        answers[line["category"]][line["question"].split("\n")[0], line["image"]] = line
    f1 = {}
    for category in ("random", "popular", "adversarial"):
        truths = lines(metrics / "pope" / f"coco_pope_{category}.json")
        texts = [answers[category][truth["text"], truth["image"]]["prediction"] for truth in truths]
        scores = yes_no.pope([truth["label"] for truth in truths], texts, language("en"))
        f1[category] = scores["f1"]
        assert f"{scores['f1']:.2f}" == f"{expected['pope_f1_pct'][category]:.2f}"
        assert scores["unparseable"] == 0
    assert f"{sum(f1.values()) / 3:.1f}" == f"{expected['pope_f1_pct']['published_avg']:.1f}"


def test_scienceqa_of_llava_1_5_13b(metrics, expected):
    answers = json.loads((metrics / "scienceqa" / "llava-v1.5-13b_outputs.json").read_text())
    right = {True: [], False: []}
    for record in json.loads((metrics / "scienceqa" / "llava_test_CQM-A.json").read_text()):
        question, truth = (turn["value"] for turn in record["conversations"])
        choices = [
            line for line in question.split("\n") if line[1:3] == ". " and line[0] in "ABCDE"
        ]
        chosen = letters.parse_letter(answers[record["id"]], choices, "scienceqa")
        right["image" in record].append(chosen == truth)
    everything = right[True] + right[False]
    assert (len(right[True]), len(everything)) == (2017, 4241)
    image, total = (100 * sum(group) / len(group) for group in (right[True], everything))
    assert f"{image:.2f}" == f"{expected['scienceqa']['acc_image_pct']:.2f}"
    assert f"{total:.2f}" == f"{expected['scienceqa']['acc_all_pct']:.2f}"


def test_xstorycloze_in_basque_of_llama_3_1(metrics, expected):
    (file,) = (metrics / "xstorycloze_eu").glob("*samples*.jsonl")
    right = []
    for line in lines(file):
        sums = [float(response[0]) for response in line["filtered_resps"]]
        texts = [line["doc"][f"sentence_quiz{n}"] for n in (1, 2)]
        chosen = options.chosen(sums, texts, [1, 1])
        right.append(float(chosen["acc"] == int(line["target"])))
        assert right[-1] == line["acc"]
    published = expected["xstorycloze_eu_llama31_8b"]
    assert sum(right) / len(right) == published["acc"]
    assert options.standard_error(right) == pytest.approx(published["stderr"], rel=1e-12)
