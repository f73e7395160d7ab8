"""The worked examples of LLaVA-NDiNO's masks, in Llama 3's own ids and in a small vocabulary."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mllm_jax.common.errors import ConfigError
from mllm_jax.config.data import StreamConfig
from mllm_jax.data.chat.encoder import Chat
from mllm_jax.data.chat.switches import Switches, move_images
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.records.parse import IMAGE, Turn
from tests.support.tiktoken_file import LLAMA3_SPLIT

ASKED = "Quante persone ci sono in questa immagine? Rispondi brevemente."
FIRST = (Turn("user", (IMAGE, "\n" + ASKED)), Turn("assistant", ("1.",)))
SECOND = (Turn("user", ("E quanti gatti?",)), Turn("assistant", ("Due gatti.",)))
# of the first round, in Llama 3's ids
IDS = """128000 128006 882 128007 271 128256 198 2232 5048 61788 12088 21488 304 52701 4998 24281
30 54463 3595 72 5395 7986 68 13 128009 128006 78191 128007 271 16 13 128009"""
TRAIN = Switches(train_control_tokens=True)


def positions(encoded) -> list[int]:
    return encoded.weights.nonzero()[0].tolist()


@pytest.mark.realdata
def test_control_tokens_in_llama3s_ids(llama3):
    ours = Chat(llama3, TEMPLATES["llama3"], 128256, 1)
    theirs = Chat(llama3, TEMPLATES["llama3"], 128256, 1, switches=TRAIN)
    once = theirs.encode(FIRST)
    assert once.tokens.tolist() == [int(id) for id in IDS.split()]
    assert positions(once) == [0, 1, 3, 24, *range(25, 32)]
    twice = theirs.encode((*FIRST, *SECOND))
    assert len(twice.tokens) == 52
    assert positions(twice) == [0, 1, 3, *range(24, 33), 34, *range(42, 52)]
    assert positions(ours.encode(FIRST)) == [29, 30, 31]
    assert ours.encode((*FIRST, *SECOND)).tokens.tolist() == twice.tokens.tolist()


@pytest.mark.realdata
def test_captions_in_llama3s_ids(llama3):
    def caption(chat_format: str, text: str):
        chat = Chat(llama3, TEMPLATES[chat_format], 128256, 1)
        return chat.encode((Turn("user", (IMAGE, "\nx")), Turn("assistant", (text,))))

    shared = [128000, 128256, 1844, 342, 17173, 308, 2382]
    expected = {
        ("plain_newline", "Un gatto nero."): [*shared, 627],  # ".\n" is one token
        ("plain_newline", "Un gatto nero"): [*shared, 198],
        ("plain", "Un gatto nero."): [*shared, 13, 128001],
    }
    for (chat_format, text), ids in expected.items():
        encoded = caption(chat_format, text)
        assert encoded.tokens.tolist() == ids
        assert positions(encoded) == list(range(2, len(ids)))


@pytest.mark.realdata
def test_token_zero_in_llama3s_ids(llama3):
    chat = Chat(llama3, TEMPLATES["llama3"], 128256, 1, switches=Switches(drop_token_zero=True))
    usual = Chat(llama3, TEMPLATES["llama3"], 128256, 1)
    for text, dropped in {"Che bello!": 1, "a !": 0, "Oh! Che bello!\n\n": 2}.items():
        turns = (Turn("user", ("Ciao!",)), Turn("assistant", (text,)))
        ids = usual.encode(turns).tokens.tolist()
        assert ids.count(0) == dropped + 1
        assert chat.encode(turns).tokens.tolist() == [id for id in ids if id]
        assert len(positions(usual.encode(turns))) - len(positions(chat.encode(turns))) == dropped


# ------------------------------------------------------------------------------ a small vocabulary


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerFast:
    """Single bytes, "!" first, and the merges of ".\\n" and "\\n\\n", split as Llama 3 does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: n for n, letter in enumerate([*letters, ".Ċ", "ĊĊ"])}
    bpe = Tokenizer(models.BPE(vocab, [(".", "Ċ"), ("Ċ", "Ċ")]))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        extra_special_tokens=[
            *("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<image>")
        ],
    )


def encode(tokenizer, chat_format: str, turns, **switches: bool) -> tuple[str, str]:
    """The pieces of a conversation, control tokens in short, and the trained ones of them."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    template = TEMPLATES[chat_format]
    chat = Chat(tokenizer, template, image, 1, switches=Switches(**switches))
    chat.check_prompts()
    encoded = chat.encode(turns)
    pieces = tokenizer.convert_ids_to_tokens(encoded.tokens.tolist())
    short = {"<|begin_of_text|>": "B", "<|start_header_id|>": "{", "<|end_header_id|>": "}"}
    short |= {"<|eot_id|>": "E", "<|end_of_text|>": "T", "<image>": "I"}
    pieces = [short.get(piece, piece) for piece in pieces]
    trained = [piece for piece, weight in zip(pieces, encoded.weights, strict=True) if weight]
    return " ".join(pieces), " ".join(trained)


CHAT = (Turn("user", (IMAGE, "\na!")), Turn("assistant", ("b!",)))
PICTURE_ALONE = (Turn("user", (IMAGE,)), Turn("assistant", ("b",)))


def test_control_tokens(small):
    pieces, trained = encode(small, "llama3", (*CHAT, *CHAT), train_control_tokens=True)
    once = "{ u s e r } ĊĊ I Ċ a ! E { a s s i s t a n t } ĊĊ b ! E"
    assert pieces == f"B {once} {once}"
    header = "{ } E { a s s i s t a n t } ĊĊ b ! E"
    assert trained == f"B {header} {header}"
    assert encode(small, "llama3", CHAT)[1] == "b ! E"
    pieces, trained = encode(small, "llama31", PICTURE_ALONE, train_control_tokens=True)
    assert pieces.endswith("E { u s e r } ĊĊ I E { a s s i s t a n t } ĊĊ b E")
    assert trained == "B { } E { } E { a s s i s t a n t } ĊĊ b E"


def test_the_line_break_merges_with_a_full_stop(small):
    for text, ids in {"b.": "b .Ċ", "b": "b Ċ", "b.\n.": "b .Ċ .Ċ"}.items():
        caption = (CHAT[0], Turn("assistant", (text,)))
        assert encode(small, "plain_newline", caption) == (f"B I {ids}", ids)
    assert encode(small, "plain", CHAT) == ("B I b ! T", "b ! T")


def test_token_zero_is_dropped(small):
    assert small.convert_tokens_to_ids("!") == 0
    pieces, trained = encode(small, "plain", (*CHAT, *CHAT), drop_token_zero=True)
    assert (pieces, trained) == ("B I b T I b T", "b T b T")
    both = encode(small, "llama3", CHAT, drop_token_zero=True, train_control_tokens=True)[1]
    assert both == "B { } E { a s s i s t a n t } ĊĊ b E"
    image = small.convert_tokens_to_ids("<image>")
    chat = Chat(small, TEMPLATES["plain"], image, 3, switches=Switches(drop_token_zero=True))
    for one in chat.encode_batch([CHAT, CHAT]):
        assert one.placeholders.tolist() == [-1, 0, 1, 2, -1, -1]


@pytest.mark.parametrize("chat_format", ["llama3", "llama31", "plain"])
def test_the_end_of_an_answer_is_not_trained(small, chat_format):
    """The last trained token of every answer is missing; the tokens are the same."""
    turns = (*CHAT, *CHAT)
    usual = encode(small, chat_format, turns)
    end = "T" if chat_format == "plain" else "E"
    assert usual[1] == f"b ! {end} b ! {end}"
    assert encode(small, chat_format, turns, train_end_of_turn=False) == (usual[0], "b ! b !")


def test_an_image_is_moved_to_the_front(small):
    moved = "Ċ x Ġ Ġ y"
    turns = (Turn("user", ("x ", IMAGE, " y ")), Turn("assistant", ("b",)))
    assert encode(small, "llama3", turns, image_first=True)[0].startswith(
        f"B {{ u s e r }} ĊĊ I {moved} E"
    )
    assert encode(small, "llama3", turns)[0].startswith("B { u s e r } ĊĊ x Ġ I Ġ y E")


@pytest.mark.parametrize(
    ("parts", "moved"),
    [
        ((IMAGE, "\nZer?"), (IMAGE, "\nZer?")),
        (("Zer?\n", IMAGE), (IMAGE, "\nZer?")),
        (("Zer ", IMAGE, " da?"), (IMAGE, "\nZer  da?")),
        ((" ", IMAGE), (IMAGE, "\n")),
        (("", IMAGE, "Zer?"), ("", IMAGE, "Zer?")),
        (("a", IMAGE, IMAGE), ("a", IMAGE, IMAGE)),
        (("a",), ("a",)),
    ],
)
def test_which_images_move(parts, moved):
    assert move_images([Turn("user", parts)]) == [Turn("user", moved)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"train_control_tokens": True, "format": "plain"}, "format plain has no headers"),
        ({"train_control_tokens": True, "format": "vicuna_v1"}, "format vicuna_v1 has no headers"),
        ({"drop_token_zero": True, "layout": "text"}, "drop_token_zero: has no effect on docum"),
        ({"image_first": True, "kind": "text"}, "image_first: has no effect on documents"),
        ({"train_end_of_turn": False, "layout": "text"}, "=false: has no effect on documents"),
        ({"train_end_of_turn": False, "format": "plain_newline"}, "ends answers by no token"),
        (
            {"train_end_of_turn": False, "train_control_tokens": True},
            "train_control_tokens trains it; give one of the two",
        ),
    ],
)
def test_switches_without_effect_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        StreamConfig("a", **options)
    assert Switches.of(StreamConfig("a", image_first=True)) == Switches(image_first=True)
