"""Masks as tables written by hand, and equality with what transformers renders and encodes."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_template, load_tokenizer
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.data.records.parse import IMAGE, Turn, user_turn

USER, ANSWER = "⟨start⟩user⟨end⟩\n\n", "⟨start⟩assistant⟨end⟩\n\n"
HEADER = "⟨start⟩system⟨end⟩\n\nCutting Knowledge Date: December 2023\nToday Date: "
CONTROL = {
    "<|begin_of_text|>": "⟨bos⟩",
    "<|end_of_text|>": "⟨stop⟩",
    "<|start_header_id|>": "⟨start⟩",
    "<|end_header_id|>": "⟨end⟩",
    "<|eot_id|>": "⟨eot⟩",
    "<image>": "⟨im⟩",
}


def show(tokenizer: Any, encoded: Encoded) -> str:
    """Control tokens in angle brackets, trained tokens in square ones."""
    control = {tokenizer.convert_tokens_to_ids(text): shown for text, shown in CONTROL.items()}
    text = ""
    pairs = zip(encoded.tokens.tolist(), encoded.weights.tolist(), strict=True)
    for trained, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        assert trained in (0.0, 1.0)
        piece = ""
        for is_control, ids in itertools.groupby(group, key=lambda pair: pair[0] in control):
            tokens = [token for token, _ in ids]
            shown = [control[t] for t in tokens] if is_control else [tokenizer.decode(tokens)]
            piece += "".join(shown)
        text += f"[{piece}]" if trained else piece
    return text


def user(*parts: Any) -> Turn:
    return Turn("user", parts)


def answer(text: str) -> Turn:
    return Turn("assistant", (text,))


def system(text: str) -> Turn:
    return Turn("system", (text,))


# what it shows, format, turns, tokens with the trained ones in brackets (2 patches an image)
TABLE = [
    (
        "a caption; the user's text goes",
        "plain",
        (user(IMAGE, "\nDeskribatu."), answer(" Katu bat. ")),
        "⟨bos⟩⟨im⟩⟨im⟩[Katu bat.⟨stop⟩]",
    ),
    (
        "images before, between and after the user's text",
        "plain",
        (user(IMAGE, "\n", IMAGE, "x <image> y", IMAGE), answer("Hiru.")),
        "⟨bos⟩⟨im⟩⟨im⟩⟨im⟩⟨im⟩⟨im⟩⟨im⟩[Hiru.⟨stop⟩]",
    ),
    ("plain text", "plain", (user(""), answer("Testua.")), "⟨bos⟩[Testua.⟨stop⟩]"),
    (
        "a line break and no token ends a caption",
        "plain_newline",
        (user(IMAGE, "\nDeskribatu."), answer(" Katu bat. ")),
        "⟨bos⟩⟨im⟩⟨im⟩[Katu bat.\n]",
    ),
    (
        "captions of several images, and one of none",
        "plain_newline",
        (*(user(IMAGE), answer("Bat.")), *(user(IMAGE), answer("Bi")), *(user("x"), answer("3"))),
        "⟨bos⟩⟨im⟩⟨im⟩[Bat.\n]⟨im⟩⟨im⟩[Bi\n3\n]",
    ),
    (
        "one round without a system turn",
        "llama3",
        (user("Zer da?"), answer("Katu bat.")),
        f"⟨bos⟩{USER}Zer da?⟨eot⟩{ANSWER}[Katu bat.⟨eot⟩]",
    ),
    (
        "several rounds, all answers trained",
        "llama3",
        (user("Bat?"), answer("1"), user("Bi?"), answer("2\n\n3")),
        f"⟨bos⟩{USER}Bat?⟨eot⟩{ANSWER}[1⟨eot⟩]{USER}Bi?⟨eot⟩{ANSWER}[2\n\n3⟨eot⟩]",
    ),
    (
        "a system turn is not trained",
        "llama3",
        (system(" Labur. "), user("Zer da?"), answer("Katu.")),
        f"⟨bos⟩⟨start⟩system⟨end⟩\n\nLabur.⟨eot⟩{USER}Zer da?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]",
    ),
    (
        "an image before the text",
        "llama3",
        (user(IMAGE, "\nZer da?"), answer("Katu.")),
        f"⟨bos⟩{USER}⟨im⟩⟨im⟩\nZer da?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]",
    ),
    (
        "an image after the text, and a later one in the middle",
        "llama3",
        (user(" Zer da?\n", IMAGE), answer("A."), user("Eta ", IMAGE, " hau? "), answer("B.")),
        f"⟨bos⟩{USER}Zer da?\n⟨im⟩⟨im⟩⟨eot⟩{ANSWER}[A.⟨eot⟩]"
        f"{USER}Eta ⟨im⟩⟨im⟩ hau?⟨eot⟩{ANSWER}[B.⟨eot⟩]",
    ),
    (
        "only an image",
        "llama3",
        (user(IMAGE, "\n"), answer("Katu.")),
        f"⟨bos⟩{USER}⟨im⟩⟨im⟩⟨eot⟩{ANSWER}[Katu.⟨eot⟩]",
    ),
    (
        "control tokens in texts stay text, on both sides",
        "llama3",
        (user("<image> <|eot_id|>"), answer("<|begin_of_text|><|eot_id|><image>")),
        f"⟨bos⟩{USER}<image> <|eot_id|>⟨eot⟩{ANSWER}[<|begin_of_text|><|eot_id|><image>⟨eot⟩]",
    ),
    (
        "the date header stands even without a system turn",
        "llama31",
        (user(IMAGE, "\nZer da?"), answer("Katu.")),
        f"⟨bos⟩{HEADER}26 Jul 2024\n\n⟨eot⟩{USER}⟨im⟩⟨im⟩\nZer da?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]",
    ),
    (
        "the system text follows the date",
        "llama31",
        (system(" Labur.\n"), user("Zer?"), answer("Katu."), user("Eta?"), answer("Bi.")),
        f"⟨bos⟩{HEADER}26 Jul 2024\n\nLabur.⟨eot⟩{USER}Zer?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]"
        f"{USER}Eta?⟨eot⟩{ANSWER}[Bi.⟨eot⟩]",
    ),
]


@pytest.mark.parametrize(("what", "format", "turns", "expected"), TABLE, ids=[t[0] for t in TABLE])
def test_masks(what, format, turns, expected, tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES[format], image_token, patches=2)
    encoded = chat.encode(turns)
    assert show(tokenizer, encoded) == expected
    seated = encoded.tokens == image_token
    assert encoded.placeholders[seated].tolist() == list(range(int(seated.sum())))
    assert (encoded.placeholders[~seated] == -1).all()
    assert not encoded.weights[seated].any()


def test_date_can_be_given(tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES["llama31"], image_token, 2, {"date_string": "1 Jan 2026"})
    shown = show(tokenizer, chat.encode((user("Zer?"), answer("Katu."))))
    assert shown == f"⟨bos⟩{HEADER}1 Jan 2026\n\n⟨eot⟩{USER}Zer?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]"


def test_batch_is_the_same_as_one_by_one(tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES["llama3"], image_token, 2)
    conversations = [turns for _, format, turns, _ in TABLE if format == "llama3"]
    for whole, turns in zip(chat.encode_batch(conversations), conversations, strict=True):
        for a, b in zip(whole, chat.encode(turns), strict=True):
            np.testing.assert_array_equal(a, b)


def stock_ids(tokenizer, template, turns, **options) -> list[int]:
    """What transformers makes of the same conversation with strings as content."""
    messages = [
        {"role": t.role, "content": "".join("<image>" if p is IMAGE else p for p in t.parts)}
        for t in turns
    ]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


TEXT = st.text(st.sampled_from("aZ .,\n'\t1é語🙂?  "), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT)
@pytest.mark.parametrize(
    "format",
    [
        "plain",
        "plain_newline",
        "llama3",
        "llama31",
        pytest.param("meta3", marks=pytest.mark.realdata),
        pytest.param("meta31", marks=pytest.mark.realdata),
    ],
)
def test_ids_are_those_of_transformers(format, tokenizer, image_token, request, rounds, beginning):
    """Runs are encoded whole: what merges across template and content merges here too."""
    if format in META:
        shared = request.getfixturevalue("shared")
        template = (shared / f"realdata/configs/{META[format]}.jinja").read_text()
    else:
        template = TEMPLATES[format]
    chat = chat_of(tokenizer, template, image_token)
    turns = [] if beginning is None or format.startswith("plain") else [system(beginning)]
    for question, reply in rounds:
        turns += [user(IMAGE, "\n" + question), answer("x" + reply)]
    encoded = chat.encode(turns)
    assert encoded.tokens.tolist() == stock_ids(tokenizer, template, turns)


META = {"meta3": "chat_template_llama3", "meta31": "chat_template_llama3_1"}
CHATS: dict[str, Chat] = {}


def chat_of(tokenizer, template: str, image_token: int) -> Chat:
    return CHATS.setdefault(template, Chat(tokenizer, template, image_token, patches=1))


@pytest.mark.parametrize("format", ["llama3", "llama31", "plain", "plain_newline"])
@pytest.mark.parametrize(
    "asked",
    [
        user_turn("Zer da?"),
        user_turn("Zer da?", images=1),
        user_turn("Zer <image> da?", images=2),
        user(IMAGE, "Zer da?"),
        user("Zer ", IMAGE, " da?"),
        user("Zer da?\n", IMAGE),
        user(IMAGE, IMAGE, "\n\nZer da?"),
    ],
)
def test_a_prompt_is_the_beginning_of_the_training_text(format, asked, tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES[format], image_token, patches=2)
    before = () if format.startswith("plain") else (user_turn("Bat?", 1), answer("Bai."))
    prompt = chat.prompt((*before, asked))
    whole = chat.encode((*before, asked, answer("Katu.")))
    n = len(prompt.tokens)
    assert prompt.tokens.tolist() == whole.tokens[:n].tolist()
    assert prompt.placeholders.tolist() == whole.placeholders[:n].tolist()
    assert not prompt.weights.any()
    assert whole.weights[n] == 1
    assert not whole.weights[n - 1]


def test_prompts_with_typed_parts_are_those_of_transformers(tokenizer, image_token):
    for template in (TEMPLATES["llama31"], TYPED_ONLY):
        chat = Chat(tokenizer, template, image_token, patches=1)
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Zer da?"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        assert "<image>\n<image>\nZer da?" in text
        stock = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert chat.prompt([user_turn("Zer da?", images=2)]).tokens.tolist() == stock


# as LLaVA-NeXT's for Mistral: parts only, all images first, no trimming
TYPED_ONLY = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


def test_folder_template_of_the_oracle(oracle):
    for name, images in (("llava_two_images", 2), ("llava_linear", 1), ("llama31", 0)):
        tokenizer = load_tokenizer(oracle / name)
        expected = np.load(oracle / name / "expected.npz")
        token = tokenizer.get_vocab()["<image>"] if images else None
        chat = Chat(tokenizer, load_template(oracle / name, tokenizer), token, patches=16)
        prompt = chat.prompt([user_turn(str(expected["question"]), images)])
        assert prompt.tokens.tolist() == expected["input_ids"][0].tolist()


def test_the_tokenizer_is_not_changed(tokenizer, image_token):
    before = tokenizer.backend_tokenizer.to_str()
    Chat(tokenizer, TEMPLATES["llama3"], image_token, 2).encode((user("a"), answer("<|eot_id|>")))
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_beginning_token_from_the_tokenizer_where_the_template_has_none(tokenizer, image_token):
    template = TEMPLATES["llama3"].replace("{{- bos_token -}}", "")
    turns = (user("Zer?"), answer("Katu."))
    with pytest.raises(ConfigError, match="beginning token 0 times"):
        Chat(tokenizer, template, image_token, 2)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)],
    )
    adds = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>")
    shown = show(tokenizer, Chat(adds, template, image_token, 2).encode(turns))
    assert shown == f"⟨bos⟩{USER}Zer?⟨eot⟩{ANSWER}[Katu.⟨eot⟩]"
    twice = Chat(adds, TEMPLATES["llama3"], image_token, 2).encode(turns)
    assert twice.tokens.tolist().count(adds.bos_token_id) == 1


BAD_TEMPLATES = [
    ("{{ bos_token }}" + TEMPLATES["llama3"], "beginning token 2 times"),
    ("{{ bos_token }}{% for m in messages %}{{ m.content[:0] }}{% endfor %}", "neither strings"),
    ("{{ bos_token }}{% for m in messages %}{{ m.content * 2 }}{% endfor %}", "neither strings"),
    ("{{ bos_token }}{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "neither strings"),
    ("{{ bos_token }}{% for m in messages %}{{ m.content.x.y }}{% endfor %}", "neither strings"),
    ("A" + TEMPLATES["llama3"], "beginning token 1 times, not once at the start"),
    (
        TEMPLATES["plain"].replace("flat(message['content']) | trim + ", ""),
        "does not render every text exactly once",
    ),
    (TEMPLATES["plain"].replace("| trim +", "* 2 +"), "does not render every text exactly once"),
]


@pytest.mark.parametrize(("template", "message"), BAD_TEMPLATES)
def test_templates_that_cannot_be_used(template, message, tokenizer, image_token):
    with pytest.raises(ConfigError, match=message):
        Chat(tokenizer, template, image_token, 2)


def test_answers_must_be_ended_and_cut_out_cleanly(tokenizer, image_token):
    role = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    turns = (user("Zer?"), answer("Katu."))
    unended = Chat(tokenizer, role + "{{ m.content }}{% endfor %}", image_token, 2)
    with pytest.raises(ConfigError, match="special token directly after every answer"):
        unended.encode(turns)
    spaced = Chat(tokenizer, role + " {{ m.content }}<|eot_id|>{% endfor %}", image_token, 2)
    encoded = spaced.encode((user("Zer?"), answer("bat")))  # " bat" is one token
    assert show(tokenizer, encoded).endswith("⟨end⟩[ bat⟨eot⟩]")
    joined = Chat(tokenizer, role + " b{{ m.content }}<|eot_id|>{% endfor %}", image_token, 2)
    with pytest.raises(ConfigError, match=r"record 'k': a token crosses the border.*eltz"):
        joined.encode_batch([(user("Zer?"), answer("eltz"))], ["record 'k'"])
    with pytest.raises(ConfigError, match="typed parts only"):
        Chat(tokenizer, TYPED_ONLY, image_token, 2).encode(turns)


def test_what_a_conversation_cannot_be(tokenizer, image_token):
    chat = Chat(tokenizer, TEMPLATES["plain"], image_token, 2)
    with pytest.raises(ConfigError, match=r"record 'k': the chat template refuses.*no system turn"):
        chat.encode_batch([(system("Labur."), user("Zer?"), answer("Katu."))], ["record 'k'"])
    with pytest.raises(ConfigError, match="ends with a user turn"):
        chat.prompt((user("Zer?"), answer("Katu.")))
    text_only = Chat(tokenizer, TEMPLATES["llama3"], None, 0)
    with pytest.raises(ConfigError, match="model reads no images"):
        text_only.encode((user(IMAGE, "\nZer?"), answer("Katu.")))
    assert show(tokenizer, text_only.encode((user("<image>"), answer("b")))).count("<image>") == 1


def test_a_prompt_that_the_training_text_does_not_begin_with_is_refused(tokenizer, image_token):
    Chat(tokenizer, TEMPLATES["llama3"], image_token, 2).check_prompts()
    gpt2 = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=gpt2, bos_token="<|begin_of_text|>")
    assert "ĊĊ" in fast.get_vocab()
    with pytest.raises(ConfigError, match="tokens change when an answer is appended"):
        Chat(fast, TEMPLATES["llama3"], image_token, 2).check_prompts()


def test_the_longest_of_the_special_tokens_at_a_place_is_taken(tokenizer, image_token):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<|eot_id|>2"])
    longer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>")
    template = TEMPLATES["llama3"].replace("<|eot_id|>", "<|eot_id|>2")
    encoded = Chat(longer, template, image_token, 2).encode((user("Zer?"), answer("Katu.")))
    assert encoded.tokens[-1] == longer.convert_tokens_to_ids("<|eot_id|>2")
    assert encoded.weights[-1] == 1


def test_image_tokens_that_do_not_fit(tokenizer):
    with pytest.raises(ConfigError, match=r"model.image_token=9999 is not a token id"):
        Chat(tokenizer, TEMPLATES["llama3"], 9999, 2)
    with pytest.raises(ConfigError, match="ordinary word"):
        Chat(tokenizer, TEMPLATES["llama3"], tokenizer.convert_tokens_to_ids("a"), 2)


# ------------------------------------------------------------------------- templates of strangers

HEAD = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
TAIL = (
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant"
    "<|end_header_id|>{% endif %}"
)
LOOKING = {
    "a thought": "{{ m.content.split('</think>')[-1] if '</think>' in m.content else m.content }}",
    "upper case": "{{ m.content | replace('katu', 'KATU') }}",
    "a slice": "{{ m.content[:20] }}",
    "emptiness": "{{ m.content or 'nothing' }}",
    "length": "{{ m.content }}{% if m.content | length > 15 %}!{% endif %}",
    "control tokens": "{{ m.content | replace('<|eot_id|>', '') }}",
}
TOLD = {
    "a thought": "Pentsatu. </think>Katua.",
    "upper case": "Hori katu bat da.",
    "a slice": "Txakur beltz bat belardian.",
    "emptiness": "",
    "length": "Txakur beltz bat belardian.",
    "control tokens": "a<|eot_id|>b",
}


@pytest.mark.parametrize("what", LOOKING)
def test_a_template_that_looks_at_texts_is_refused_where_that_shows(what, tokenizer, image_token):
    chat = Chat(tokenizer, HEAD + LOOKING[what] + TAIL, image_token, 1)
    plain = (user("Zer?"), answer("Hori."))
    assert chat.encode(plain).tokens.tolist() == stock_ids(tokenizer, chat._template, plain)
    told = (user("Zer?"), answer(TOLD[what]), user("Eta?"))
    if TOLD[what]:
        with pytest.raises(
            ConfigError, match=r"record 'k': the chat template depends on the texts"
        ):
            chat.encode_batch([told[:2]], ["record 'k'"])
    with pytest.raises(ConfigError, match="depends on the texts: it writes") as error:
        chat.prompt(told)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_typed_parts_are_looked_at_too(tokenizer, image_token):
    template = TYPED_ONLY.replace("{{ p.text }}", "{{ p.text | replace('katu', 'KATU') }}")
    chat = Chat(tokenizer, template, image_token, 1)
    assert len(chat.prompt([user_turn("Zer da?", 1)]).tokens) > 5
    with pytest.raises(ConfigError, match=r"depends on the texts: it writes '.*KATU"):
        chat.prompt([user_turn("Zer da katu hori?", 1)])


TRIMS = {
    "nothing": "{{ m.content }}",
    "all": "{{ m.content | trim }}",
    "answers alone": "{{ m.content | trim if m.role == 'assistant' else m.content }}",
    "users alone": "{{ m.content if m.role == 'assistant' else m.content | trim }}",
    "left": "{{ m.content.lstrip() }}",
    "and writes spaces": " {{ m.content | trim }}{{ ' ' if m.role == 'user' }}",
}
SPACED = st.text(st.sampled_from("aZ .\n\t1é🙂"), max_size=8)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(SPACED, SPACED), min_size=1, max_size=2))
@pytest.mark.parametrize("what", TRIMS)
def test_white_space_around_texts_is_as_the_template_leaves_it(
    what, tokenizer, image_token, rounds
):
    chat = chat_of(tokenizer, HEAD + "\n" + TRIMS[what] + TAIL, image_token)
    turns = [
        turn
        for question, reply in rounds
        for turn in (user(IMAGE, "\n" + question), answer("x" + reply + " "))
    ]
    if what == "and writes spaces":  # a space that it writes may merge with the answer
        turns = [turn._replace(parts=("x", *turn.parts)) for turn in turns]
        prompt = chat.prompt([*turns, user("Zer? ")]).tokens.tolist()
        stock = stock_ids(
            tokenizer, chat._template, [*turns, user("Zer? ")], add_generation_prompt=True
        )
        assert prompt == stock
        return
    encoded = chat.encode(turns)
    assert encoded.tokens.tolist() == stock_ids(tokenizer, chat._template, turns)


def test_an_answer_that_is_not_trimmed_is_trained_whole(tokenizer, image_token):
    chat = chat_of(tokenizer, HEAD + TRIMS["nothing"] + TAIL, image_token)
    shown = show(tokenizer, chat.encode((user(" Zer? "), answer(" Katu. \n"))))
    assert shown == "⟨bos⟩⟨start⟩user⟨end⟩ Zer? ⟨eot⟩⟨start⟩assistant⟨end⟩[ Katu. \n⟨eot⟩]"


def test_a_format_whose_tokens_the_tokenizer_has_not(tokenizer, image_token):
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in tree["added_tokens"]:
        token["special"] = token["content"] != "<|eot_id|>"
    fewer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)), bos_token="<|begin_of_text|>"
    )
    reason = r"format llama31 writes <\|eot_id\|>, which is not a special token of this"
    with pytest.raises(ConfigError, match=reason):
        Chat(fewer, TEMPLATES["llama31"], image_token, 1)
    Chat(fewer, TEMPLATES["plain"], image_token, 1)


def test_why_strings_or_parts_are_not_taken(tokenizer, image_token):
    with pytest.raises(
        ConfigError, match="neither strings nor typed parts; with strings, the chat t"
    ):
        Chat(tokenizer, BAD_TEMPLATES[1][0], image_token, 2)
    typed = Chat(tokenizer, TYPED_ONLY, image_token, 2)
    with pytest.raises(
        ConfigError, match="typed parts only and cannot be trained with: with strings"
    ):
        typed.check_answers()
    Chat(tokenizer, TEMPLATES["plain"], image_token, 2).check_answers()
