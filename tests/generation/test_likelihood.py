"""Log-likelihoods: equal to transformers', for text and pictures, alone and in a batch."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm_jax.common.errors import ConfigError
from mllm_jax.data.chat.tokens import Encoded
from mllm_jax.data.images.tiles import Tiles
from mllm_jax.data.records.parse import user_turn
from mllm_jax.generation.batching import batches, read_ahead
from mllm_jax.generation.engine import Answerer
from mllm_jax.generation.images import Images
from mllm_jax.generation.likelihood import Scored

TEXTS = [  # (context, continuation): of many lengths, with and without a space at the border
    ("Zenbat itsasontzi daude portuan?", " Hiru txiki eta bat handia."),
    ("Que hai na mesa? ", "Un prato de peixe"),
    ("", "¿De qué color es el paraguas?"),
    ("Who is standing beside the red bicycle? " * 6, "An old woman."),
    ("Mendi gainean\n\n", "elurra"),
    ("Mendi gai", "nean elurra dago"),  # inside a word
    ("a", " b"),
    ("Hiru txiki eta bat handia, denak urdinez margotuta.", " c"),
]
ASKED = [
    ("Zein kolore?", "urdina"),
    ("Zein kolore?", "gorria eta zuria"),
    ("Which colours are in the picture, and how many of them?", "Two of them."),
    ("Zein?", "A"),
    ("Zein?", "B"),
    ("Zein?", "urdinez margotuta, eta hiru txiki"),
]
CLOSE = 1e-4


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def text(oracle) -> Answerer:
    return Answerer(oracle / "llama31")


@pytest.fixture(scope="module")
def pictured(oracle) -> Answerer:
    return Answerer(oracle / "llava_mlp")


def summed(torch: Any, logits: Any, ids: Any, count: int) -> tuple[float, bool]:
    """The last `count` ids' log-probabilities, and whether each is the likeliest."""
    of_last = torch.log_softmax(logits[0, -count - 1 : -1].double(), dim=-1)
    last = ids[0, -count:]
    taken = of_last.gather(1, last[:, None]).sum()
    return float(taken), bool((of_last.argmax(-1) == last).all())


def check(ours: list[Any], theirs: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([x.sum for x in ours], [x for x, _ in theirs], atol=CLOSE, rtol=0)
    assert [x.greedy for x in ours] == [greedy for _, greedy in theirs]


def test_of_text_equals_transformers(torch, text, oracle):
    """Contexts without a template; batches of one and eight."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(oracle / "llama31", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(oracle / "llama31")
    ours = text.log_likelihoods(*zip(*TEXTS, strict=True), rows=8)
    theirs = []
    for (context, continuation), found in zip(TEXTS, ours, strict=True):
        ids = tokenizer(tokenizer.bos_token + context + continuation, add_special_tokens=False)
        ids = torch.tensor([ids["input_ids"]])
        with torch.no_grad():
            theirs.append(summed(torch, model(ids).logits, ids, found.tokens))
    check(ours, theirs)
    check(text.log_likelihoods(*zip(*TEXTS, strict=True), rows=1), theirs)


def test_of_pictures_equals_transformers(torch, pictured, oracle, tmp_path):
    """Prompts by the chat template, pictures of their own; batches of one and eight."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = oracle / "llava_mlp"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    files = []
    for n in range(3):
        files.append(tmp_path / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(files[-1])
    images = [[files[n % 3]] for n in (0, 0, 1, 2, 2, 2)]
    turns = [[user_turn(question, 1)] for question, _ in ASKED]
    continuations = [continuation for _, continuation in ASKED]
    ours = pictured.log_likelihoods(turns, continuations, images, rows=8)
    theirs = []
    for (question, continuation), (file,), found in zip(ASKED, images, ours, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(
            text=prompt + continuation, images=[Image.open(file)], return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits
        theirs.append(summed(torch, logits, inputs["input_ids"], found.tokens))
    check(ours, theirs)
    check(pictured.log_likelihoods(turns, continuations, images, rows=1), theirs)


def test_one_beginning_token_and_the_border(text):
    bos = text.tokenizer.bos_token_id

    def tokens(context: str, continuation: str) -> tuple[list[int], str]:
        encoded = text.continued(context, continuation)
        ids = encoded.tokens.tolist()
        assert ids[0] == bos and ids.count(bos) == 1
        return ids, text.text([i for i, w in zip(ids, encoded.weights, strict=True) if w])

    assert tokens("Zer da?", " Katu bat.")[1] == " Katu bat."
    assert tokens("Zer da? ", "Katu bat.")[1] == " Katu bat."  # the space is the continuation's
    assert tokens("", "Katu bat.")[1] == "Katu bat."
    rendered = text.tokenizer.bos_token + "Zer da?"  # as a chat template begins
    assert tokens(rendered, " Katu") == tokens("Zer da?", " Katu")
    with pytest.raises(ConfigError, match="the continuation is empty"):
        text.continued("Zer da?", "")
    limit = text.config.language.max_length
    with pytest.raises(ConfigError, match=f"context 1: the prompt has .* max_length={limit}"):
        text.log_likelihoods(["a", "urdina " * limit], [" b", " b"])


def test_text_alone_is_the_first_that_a_mesh_is_asked(text, oracle, make_mesh):
    """Parameters are read by then: their shapes come from one row, and eight devices share none."""
    shared = Answerer(oracle / "llama31", mesh=make_mesh())
    contexts, continuations = zip(*TEXTS[:2], strict=True)
    ours, alone = (x.log_likelihoods(contexts, continuations) for x in (shared, text))
    np.testing.assert_allclose([x.sum for x in ours], [x.sum for x in alone], atol=CLOSE)


def test_a_token_of_both_is_the_continuations(text):
    """Nothing of the continuation is left out: the whole word, where one token has both."""
    whole = text.continued("", "elurra")
    if len(whole.tokens) - 1 < len("elurra"):  # some letters are one token
        encoded = text.continued("e", "lurra")
        assert encoded.tokens.tolist() == whole.tokens.tolist()
        assert encoded.weights.sum() >= 1


def test_continuations_of_one_token_share_a_row(text):
    """Letters of a question's options: its text is read once, and the numbers are the same."""
    encoded = [text.continued("Zein da zuzena?\n", letter) for letter in "XYZ"]
    assert len(Scored(encoded, Images([()] * 3)).rows) == 1
    together = text.losses(encoded, [()] * 3)
    alone = [text.losses([one], [()])[0] for one in encoded]
    np.testing.assert_allclose([x.sum for x in together], [x.sum for x in alone], atol=1e-5)
    assert [x[1:] for x in together] == [x[1:] for x in alone]


def test_the_same_text_about_other_pictures_is_another_row():
    square = np.zeros((1, 2, 2, 3), np.uint8)
    first, second = (Tiles(square + n, np.arange(4, dtype=np.int32)) for n in range(2))
    one = Encoded(np.arange(6, dtype=np.int32), np.ones(6, np.float32), np.full(6, -1, np.int32))
    assert len(Scored([one] * 3, Images([[first], [second], [first]])).rows) == 2


def test_embeddings_are_computed_once(pictured, oracle, monkeypatch):
    """For the answer, and for the loss of what it should have been."""
    folder = oracle / "llava_mlp"
    question = str(np.load(folder / "expected.npz")["question"])
    pictures = pictured.pictures([folder / "image_0.png"])
    prompt = pictured.prompt([user_turn(question, 1)], 12)
    whole = pictured.prompt([user_turn(question, 1)], 12, continuation="Katu bat")
    expected = pictured.answer([prompt], [pictures], 12), pictured.losses([whole], [pictures])
    images = pictured.embed([pictures] * 2)  # the same picture twice: one square
    assert images.squares is not None and len(images.squares) == 1
    monkeypatch.setattr("mllm_jax.generation.programs.encode", None)
    answers = pictured.answer([prompt] * 2, images, 12)
    assert answers == expected[0] * 2
    for found in pictured.losses([whole] * 2, images):
        assert found.sum == pytest.approx(expected[1][0].sum) and found[1:] == expected[1][0][1:]


# ----------------------------------------------------------------------------------------- batching


def test_batches_by_slots_and_length():
    groups = batches([5, 9, 1, 7, 3], [0, 3, 1, 4, 0], rows=2)
    assert [group.items for group in groups] == [[4, 0], [2], [3, 1]]
    assert [(group.rows, group.slots) for group in groups] == [(2, 0), (1, 1), (2, 4)]
    assert batches([], [], rows=2) == []


def test_pictures_are_read_ahead_and_errors_arrive_with_their_batch():
    groups = batches([1] * 8, [1] * 8, rows=2)

    def read(number: int) -> int:
        if number == 5:
            raise ConfigError("picture 5")
        return number * 10

    batch = read_ahead(groups, read)
    arrived = [next(batch), next(batch)]
    with pytest.raises(ConfigError, match="picture 5"):
        next(batch)
    assert [pictures for _, pictures in arrived] == [[0, 10], [20, 30]]
    assert [group.items for group, _ in arrived] == [[0, 1], [2, 3]]
    assert list(read_ahead([], read)) == []
