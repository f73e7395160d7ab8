"""Generation arguments of the harnesses: what they mean, and what is refused by its name."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.harness.decoding import Decoding, cut, decoding


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Decoding(256, 0.0, ())),
        (
            {"until": ["\n\n", ""], "max_gen_toks": 64, "do_sample": False, "temperature": 0.0},
            Decoding(64, 0.0, ("\n\n",)),
        ),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "\n"},
            Decoding(16, 0.0, ("\n",)),
        ),
        # what says nothing about the likeliest token, or about our model
        (
            {"do_sample": False, "temperature": 0.2, "top_p": 0.1, "image_aspect_ratio": "pad"},
            Decoding(256, 0.0, ()),
        ),
        ({"temperature": 0.2}, Decoding(256, 0.2, ())),
        ({"do_sample": True}, Decoding(256, 1.0, ())),
        ({"do_sample": True, "temperature": 0}, Decoding(256, 0.0, ())),
        ({"max_tokens": 8, "until": None}, Decoding(8, 0.0, ())),
    ],
)
def test_what_they_mean(arguments, expected):
    assert decoding(arguments, "task a") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_token": 8}, "'max_new_token'=8 is not known; did you mean max_new_tokens?"),
        ({"num_beams": 4}, "num_beams=4 is not supported; leave it out, or give 1"),
        ({"do_sample": True, "top_p": 0.9}, "top_p=0.9 is not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not supported"),
        ({"do_sample": "yes"}, "do_sample='yes' is not true or false"),
        ({"temperature": float("nan")}, "temperature=nan is not a number of 0 or more"),
        ({"temperature": "hot"}, "temperature='hot' is not a number"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is not a number of 1 or more"),
        ({"until": [1]}, r"until=\[1\] is not a text or a list of texts"),
        ({"visual_cot": True}, "'visual_cot'=True is not known; known are max_gen_toks"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=f"task a: generation argument {message}"):
        decoding(arguments, "task a")


def test_an_answer_ends_before_the_first_stop_string():
    assert cut("Bai.\nQ: zer?\n\n", ("\n\n", "Q:", "\n")) == "Bai."
    assert cut("Bai.", ("Q:",)) == "Bai."
    assert cut("Bai.", ()) == "Bai."
