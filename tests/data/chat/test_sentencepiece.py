"""SentencePiece-style tokenizers: tables of pieces by hand, and what stock tokenizers encode.

A published vocabulary of 32,000 pieces (`tests.support.vocabulary`). In the tables a piece is
written as in the vocabulary, `*` is before the trained ones.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.literal_tokenizer import LiteralTokenizer
from mllm_jax.data.chat.templates import TEMPLATES, format_for
from mllm_jax.data.records.parse import IMAGE, Turn
from tests.support.vocabulary import IMAGE as IMAGE_ID
from tests.support.vocabulary import KINDS, LLAVA15, make_tokenizers, model_file

SYSTEM = (
    "<s> ▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant . "
    "▁The ▁assistant ▁gives ▁helpful , ▁detailed , ▁and ▁polite ▁answers ▁to ▁the ▁user ' s "
    "▁questions . "
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return make_tokenizers(tmp_path_factory.mktemp("vocabulary"))


def user(*parts) -> Turn:
    return Turn("user", parts)


def answer(text: str) -> Turn:
    return Turn("assistant", (text,))


def show(tokenizer, encoded) -> str:
    pieces = tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())
    pairs = zip(pieces, encoded.weights.tolist(), strict=True)
    return " ".join(("*" if trained else "") + piece for piece, trained in pairs)


def chat_of(tokenizer, chat_format: str) -> Chat:
    return Chat(tokenizer, format_for(chat_format, tokenizer), IMAGE_ID, 1)


ROUNDS = (user(IMAGE, "\nWhat is this?"), answer("A cat."), user("And this?"), answer("你 dogs."))
FIRST_ANSWER = "▁ASS IST ANT : *▁A *▁cat *. *</s> "
LAST_ANSWER = "▁And ▁this ? ▁ASS IST ANT : *▁ *你 *▁dogs *. *</s>"
# Original LLaVA (preprocess_v1) trains what is behind each "ASSISTANT:", also a space by itself,
# and each </s>. It encodes the text behind an image by itself, so with a space in front, as
# "always" does; behind </s> a tokenizer that is not `legacy` puts none, as "first" does.
VICUNA = {
    "first": SYSTEM + "▁US ER : ▁ <image> <0x0A> What ▁is ▁this ? " + FIRST_ANSWER + "USER : ",
    "always": SYSTEM + "▁US ER : ▁ <image> ▁ <0x0A> What ▁is ▁this ? " + FIRST_ANSWER + "▁US ER : ",
}
VICUNA["normalizer"] = VICUNA["always"]


@pytest.mark.parametrize("kind", KINDS)
def test_vicuna(kind, tokenizers):
    tokenizer = tokenizers[kind]
    chat = chat_of(tokenizer, "vicuna_v1")
    chat.check_prompts()
    assert show(tokenizer, chat.encode(ROUNDS)) == VICUNA[kind] + LAST_ANSWER
    prompt = chat.prompt(ROUNDS[:3])
    assert show(tokenizer, prompt) == VICUNA[kind].replace("*", "") + (
        "▁And ▁this ? ▁ASS IST ANT :"
    )


def test_vicuna_ids(tokenizers):
    """The ids, and another system text."""
    chat = chat_of(tokenizers["first"], "vicuna_v1")
    encoded = chat.encode((Turn("system", (" Be brief. ",)), user("Hi"), answer("Ondo")))
    assert show(tokenizers["first"], encoded) == (
        "<s> ▁Be ▁brief . ▁US ER : ▁Hi ▁ASS IST ANT : *▁O *nd *o *</s>"
    )
    text = "Be brief. USER: Hi ASSISTANT: Ondo"
    pieces = SentencePieceProcessor(model_file=str(model_file()))
    assert encoded.tokens.tolist() == [1, *pieces.encode(text), 2]
    with pytest.raises(ConfigError, match="system turn at the beginning only"):
        chat.encode((user("a"), Turn("system", ("b",)), answer("c")))


def preprocess_v1(tokenizer, conversation: str, legacy: bool) -> list[bool]:
    """Which tokens of a text-only conversation original LLaVA trains (llava/train/train.py)."""
    ids = tokenizer(conversation)["input_ids"]
    trained = [True] * len(ids)
    trained[0] = False
    begin = 1
    for number, part in enumerate(conversation.split("</s>")):
        if not part:
            break
        asked = part.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        later = number != 0 and not legacy  # the space of a first word, which is counted here only
        size = len(tokenizer(part)["input_ids"]) - later
        prompt = len(tokenizer(asked)["input_ids"]) - 2 - later
        trained[begin : begin + prompt] = [False] * prompt
        begin += size
    assert begin == len(ids)
    return trained


@pytest.mark.parametrize("kind", KINDS)
def test_vicuna_is_trained_as_by_the_original(kind, tokenizers):
    tokenizer = tokenizers[kind]
    turns = (user("What is this?"), answer("A cat."), *ROUNDS[2:], user("Ok"), answer("é\n\nb"))
    encoded = chat_of(tokenizer, "vicuna_v1").encode(turns)
    messages = [{"role": turn.role, "content": turn.parts[0]} for turn in turns]
    text = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES["vicuna_v1"], tokenize=False
    )
    assert text.endswith("USER: Ok ASSISTANT: é\n\nb</s>")
    assert encoded.tokens.tolist() == tokenizer(text)["input_ids"]
    expected = preprocess_v1(tokenizer, text, legacy=kind != "first")
    assert encoded.weights.tolist() == [float(trained) for trained in expected]


CAPTIONS = {
    ("plain", "first"): "<s> <image> *Un *▁g *atto *. *</s>",
    ("plain", "always"): "<s> <image> *▁Un *▁g *atto *. *</s>",
    ("plain_newline", "first"): "<s> <image> *Un *▁g *atto *. *<0x0A>",
    ("plain_newline", "always"): "<s> <image> *▁Un *▁g *atto *. *<0x0A>",
}


@pytest.mark.parametrize(("chat_format", "kind"), CAPTIONS)
def test_captions(chat_format, kind, tokenizers):
    chat = chat_of(tokenizers[kind], chat_format)
    chat.check_prompts()
    encoded = chat.encode((user(IMAGE, "\nDescribe."), answer(" Un gatto. ")))
    assert show(tokenizers[kind], encoded) == CAPTIONS[chat_format, kind]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_encoded_as_the_tokenizer_does(kind, tokenizers):
    texts = ["Kaixo <image> mundua", " a\n", "", "你</s>"]
    flat = chat_of(tokenizers[kind], "plain").completions(texts)
    copy = tokenizers[kind].backend_tokenizer
    copy = LiteralTokenizer(copy, frozenset(["<s>", "</s>", "<unk>", "<image>"]))._copy
    expected = [[1, *copy.encode(text).ids, 2] for text in texts]
    assert flat.tokens.tolist() == [id for ids in expected for id in ids]
    assert tokenizers[kind](texts[1])["input_ids"] == expected[1][:-1]


def test_prompts_of_llava_1_5(tokenizers):
    """As transformers' processor does: no beginning token in the template, a space ends a turn."""
    for kind, tokenizer in tokenizers.items():
        chat = Chat(tokenizer, LLAVA15, IMAGE_ID, 1)
        after_image = "<0x0A> What" if kind == "first" else "▁ <0x0A> What"
        assert show(tokenizer, chat.prompt(ROUNDS[:3])) == (
            f"<s> ▁US ER : ▁ <image> {after_image} ▁is ▁this ? ▁ASS IST ANT : ▁A ▁cat . "
            "▁US ER : ▁And ▁this ? ▁ASS IST ANT :"
        )
        with pytest.raises(ConfigError, match="typed parts only and cannot be trained with"):
            chat.check_answers()


TEXT = st.text(st.sampled_from("aZ .,\n\t1é語🙂▁>s/?  "), max_size=12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "plain_newline", "mistral"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(name, kind, tokenizers, rounds):
    tokenizer = tokenizers[kind]
    template = MISTRAL if name == "mistral" else format_for(name, tokenizer)
    if (name, kind) not in CHATS:
        CHATS[name, kind] = Chat(tokenizer, template, IMAGE_ID, 1)
    chat = CHATS[name, kind]
    turns = []
    for question, reply in rounds:
        turns += [user(IMAGE, "\n" + question), answer("x" + reply)]
    messages = [
        {"role": t.role, "content": "".join("<image>" if p is IMAGE else p for p in t.parts)}
        for t in turns
    ]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    written = tokenizer.bos_token in text
    stock = tokenizer(text, add_special_tokens=not written)["input_ids"]
    assert chat.encode(turns).tokens.tolist() == stock


CHATS: dict[tuple[str, str], Chat] = {}


def test_control_tokens_in_texts_stay_text(tokenizers):
    for kind in KINDS:
        chat = chat_of(tokenizers[kind], "vicuna_v1")
        encoded = chat.encode((user("<s> <image>"), answer("</s> <unk>"))).tokens.tolist()
        assert [t for t in encoded if t in (0, 1, 2, IMAGE_ID)] == [1, 2]


def test_a_tokenizer_that_does_not_begin_texts(tokenizers):
    bare = make_bare(tokenizers["first"])
    with pytest.raises(ConfigError, match="format vicuna_v1 leaves <s> to the tokenizer, which"):
        Chat(bare, TEMPLATES["vicuna_v1"], IMAGE_ID, 1)
    Chat(bare, format_for("plain", bare), IMAGE_ID, 1)


def make_bare(tokenizer):
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_formats_of_other_tokens_are_refused(tokenizers, tokenizer, image_token):
    reason = r"format llama3 writes <\|start_header_id\|>, which is not a special token of this"
    with pytest.raises(ConfigError, match=reason):
        Chat(tokenizers["first"], TEMPLATES["llama3"], IMAGE_ID, 1)
    with pytest.raises(ConfigError, match="format vicuna_v1 writes </s>, which is not a special"):
        Chat(tokenizer, TEMPLATES["vicuna_v1"], image_token, 1)


def test_a_prompt_that_ends_by_a_space_is_refused_for_training(tokenizers):
    template = LLAVA15.replace("'ASSISTANT:'", "'ASSISTANT: '").replace(
        "message['content'] | selectattr('type', 'equalto', 'text')", "[{'text': message.content}]"
    )
    template = template.replace(
        "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}",
        "{{ content['text'] + '</s>' }}",
    )
    chat = Chat(tokenizers["first"], template, None, 0)
    with pytest.raises(ConfigError, match="prompt's tokens change when an answer is appended"):
        chat.check_prompts()
