"""What cannot be seen gets a sign; what is HTML is escaped."""

import pytest

from mllm_jax.report.visible import visible, visible_html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("katu", "katu"),
        (" da\n", "␣da↵"),
        ("\r\n\ta", "␍↵⇥a"),
        ("a\u200bb\u202ec\ufeff", "a⟨200B⟩b⟨202E⟩c⟨FEFF⟩"),
        ("\x00\u00a0\ufe0f", "⟨0000⟩⟨00A0⟩⟨FE0F⟩"),
        ("ñandú €", "ñandú␣€"),
        ("\udcc3", "c3"),
        ("", ""),
    ],
)
def test_signs(text: str, shown: str):
    assert visible(text) == shown


def test_html_is_escaped_and_signs_are_marked():
    assert list(visible_html(["<b> &"])) == ["&lt;b&gt;<i class=space>␣</i>&amp;"]


def test_a_character_across_tokens_is_named_at_its_last_byte():
    cat = [chr(0xDC00 + byte) for byte in "🐈".encode()]
    shown = list(visible_html([cat[0] + cat[1], cat[2], cat[3] + " a"]))
    assert shown[0] == "<i class=byte>f0</i><i class=byte>9f</i>"
    assert shown[1] == "<i class=byte>90</i>"
    assert shown[2] == "<i class=byte>88</i><i class=whole>= 🐈</i><i class=space>␣</i>a"


def test_bytes_that_never_become_a_character_stay_bytes():
    shown = list(visible_html(["\udcf0\udc9f", "a", "\udc90\udc88"]))
    assert "whole" not in "".join(shown)
    assert shown[2] == "<i class=byte>90</i><i class=byte>88</i>"


def test_a_character_from_bytes_that_shows_nothing_gets_its_sign():
    turned = [chr(0xDC00 + byte) for byte in "\u202e".encode()]
    shown = "".join(visible_html(turned))
    assert "\u202e" not in shown
    assert shown.endswith("<i class=whole>= ⟨202E⟩</i>")
