"""Fidelity of stored answers: human texts of every kind of truth, with images and without."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.fidelity import human_texts, line_fidelity
from mllm_jax.evaluation.language_id import Py3LangID

BASQUE = "Txakur beltz handi bat belardian korrika dabil."
ENGLISH = "A large black dog is running on the grass."


def line(answer, images=("a.jpg",), truth=BASQUE):
    return {"language": "eu", "answer": answer, "images": list(images), "truth": truth}


@pytest.fixture(scope="module")
def langid():
    return Py3LangID()


def test_with_and_without_images(langid):
    """Half in Basque with an image, all without: 50 points are lost to the image."""
    lines = [line(BASQUE), line(ENGLISH), line("Bai"), line(BASQUE, images=())]
    assert line_fidelity(lines, ["eu", "en"], langid) == {
        "language_fidelity": pytest.approx(200 / 3),
        "undecided": 25,
        "identifier_accuracy": 100,
        "identifier_undecided": 0,
        "language_fidelity_image": 50,
        "undecided_image": pytest.approx(100 / 3),
        "language_fidelity_text": 100,
        "undecided_text": 0,
        "image_loss": 50,
    }


def test_the_same_questions_without_their_images(langid):
    """Paired by id: what was not asked both ways, and questions without images, are left out."""
    lines = [line(BASQUE), line(ENGLISH), line(ENGLISH, images=()), line(BASQUE)]
    lines = [{**of, "id": str(n)} for n, of in enumerate(lines)]
    alone = [{**line(BASQUE, images=()), "id": name} for name in ("1", "0")]
    assert line_fidelity(lines, ["eu", "en"], langid, alone) == {
        "language_fidelity": 50,
        "undecided": 0,
        "identifier_accuracy": 100,
        "identifier_undecided": 0,
        "language_fidelity_image": 50,
        "undecided_image": 0,
        "language_fidelity_without_image": 100,
        "undecided_without_image": 0,
        "image_loss": 50,
    }


def test_one_kind_of_question_has_no_loss(langid):
    scores = line_fidelity([line(ENGLISH)], ["eu", "en"], langid)
    assert set(scores) == {
        *("language_fidelity", "undecided", "identifier_accuracy", "identifier_undecided"),
    }
    assert scores["language_fidelity"] == 0
    undecided = [line("Bai", truth="B"), line("Ez", images=(), truth="B")]
    assert line_fidelity(undecided, ["eu", "en"], langid) == {
        "undecided": 100,
        "identifier_undecided": 100,
        "undecided_image": 100,
        "undecided_text": 100,
    }


def test_human_texts():
    assert human_texts("bai") == ["bai"]
    assert human_texts(["bai", "ez"]) == ["bai", "ez"]
    assert human_texts({"letter": "B", "options": ["katua", "txakurra"]}) == [
        *("B", "katua", "txakurra"),
    ]
    assert human_texts(3) == []


def test_refusals(langid):
    with pytest.raises(ConfigError, match="no answers"):
        line_fidelity([], ["eu", "en"], langid)
    with pytest.raises(ConfigError, match="language 'eu' is not among those to tell apart: es, en"):
        line_fidelity([line(BASQUE)], ["es", "en"], langid)
