"""Shares against targets, by hand."""

import re
from html import unescape

import numpy as np
import pytest

from mllm_jax.report import mixture


@pytest.fixture
def sample() -> mixture.Sample:
    """Five examples in two steps of two rows; the stream `mixed` has two languages."""

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    return mixture.Sample(
        steps=range(7, 9),
        rows=4,
        streams=ints(0, 0, 0, 1, 1),
        languages=ints(0, 0, 0, 0, 1),
        tokens=ints(10, 10, 10, 5, 15),
        trained=ints(2, 2, 2, 1, 3),
        tiles=ints(1, 1, 1, 0, 0),
    )


TARGET = mixture.Target({"captions": 3.0, "mixed": 1.0}, ("eu", "xx", "en"), 20, 3)


def rows(section: str) -> dict[str, list[str]]:
    found = re.findall(r"<tr class=''><th scope=row>(.*?)</th>(.*?)</tr>", section)
    return {
        unescape(name): [
            unescape(re.sub(r"<[^>]+>", "", cell)).replace("\N{NARROW NO-BREAK SPACE}", "")
            for cell in re.findall(r"<td>(.*?)</td>", cells)
        ]
        for name, cells in found
    }


def test_shares(sample: mixture.Sample):
    section = mixture.shares(sample, TARGET)
    assert rows(section) == {
        "captions": ["75.0%", "60.0%", "60.0%", "60.0%"],
        "mixed": ["25.0%", "40.0%", "40.0%", "40.0%"],
        "Basque (eu)": ["87.5%", "80.0%", "70.0%", "70.0%"],
        "xx": ["12.5%", "20.0%", "30.0%", "30.0%"],
        "English (en)": ["0.0%", "0.0%", "0.0%", "0.0%"],
    }
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split())
    assert "Steps 7 to 8: 4 rows with 5 examples." in text
    assert "padding 37.5 % of 80 tokens" in text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "image slots in use 25.0 % of 12" in text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "examples in a row 1.2 in the mean" in text


def test_a_mixture_without_images_says_nothing_of_slots(sample: mixture.Sample):
    assert "slots" not in mixture.shares(sample, TARGET._replace(image_slots=0))


def test_left_out_names_languages_and_codes():
    stream = {"records": 1200, "used": 1190, "dropped": {"eu": 7, "en": 3}, "cut": {}}
    report = {"records": 1205, "used": 1195, "streams": {"a<b": stream}}
    section = mixture.left_out(report)
    assert rows(section) == {"a<b": ["1,200", "1,190", "10 7 eu, 3 en", "0"]}
    assert "1,195 of 1,205 records are used." in section
    assert "faulty" not in section
    report["streams"]["a<b"] = stream | {"faults": {"broken image": 2}}
    section = mixture.left_out(report)
    assert rows(section)["a<b"] == ["1,200", "1,190", "2 2 broken image", "10 7 eu, 3 en", "0"]


def test_lengths_have_a_chart_per_stream():
    sizes = {"a": np.array([3, 4, 20], np.int64), "<b>": np.array([1], np.int64)}
    section = mixture.lengths(sizes, 20)
    assert section.count("<svg") == 2
    assert "3 examples; half have at most 4 tokens, the longest 20" in section
    assert "&lt;b&gt;" in section
