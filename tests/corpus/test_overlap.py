"""Words and runs of words: what is the same text, and what is only a prompt."""

import numpy as np

from mllm_jax.corpus.overlap import KnownRuns, SetRuns, find_known, runs_of, shared_words, words_of


def words(count: int, start: int = 0) -> list[str]:
    return [f"w{number}" for number in range(start, start + count)]


def test_words_are_nfc_and_folded_without_punctuation():
    assert words_of("<image>\nZer  da HAU, jauna?") == ["zer", "da", "hau", "jauna"]
    assert words_of("L'E\u0301TE\u0301 STRASSE") == words_of("l’Été Straße") == [
        "l", "été", "strasse",
    ]  # fmt: skip
    assert words_of("हिन्दी में") == ["हिन्दी", "में"]
    assert words_of("写真に猫 2匹") == ["写", "真", "に", "猫", "2", "匹"]
    assert words_of("...") == []


def test_runs_are_those_of_each_text():
    texts = [words(15), words(12), words(14, 1)]
    runs = runs_of(texts)
    assert runs.texts.tolist() == [0, 0, 0, 2, 2]
    assert runs.hashes[1:3].tolist() == runs.hashes[3:].tolist()
    assert len(set(runs.hashes.tolist())) == 3
    reordered = runs_of([["w1", "w0", *words(13, 2)]]).hashes
    assert not set(reordered[:2].tolist()) & set(runs.hashes.tolist())


def test_short_texts_without_pictures_are_one_run_from_eight_words_on():
    texts = [words(7), words(8), words(12), words(13)]
    assert runs_of(texts, whole=[True] * 4).texts.tolist() == [3, 1, 2]
    assert runs_of(texts, whole=[False] * 4).texts.tolist() == [3]
    assert runs_of(texts, size=5).texts.tolist() == [0] * 3 + [1] * 4 + [2] * 8 + [3] * 9


def known(texts: list[list[str]]) -> KnownRuns:
    runs = runs_of(texts, inner=True)
    return KnownRuns([SetRuns(len(texts), runs.hashes, runs.inner, runs.texts)])


def test_runs_that_hold_a_prompt_are_left_out():
    prompt = ["answer", "the", "question", "using", "a", "single", "word", "or", "phrase"]
    asked = [[*words(13, 100 * number), "in", "the", "picture", *prompt] for number in range(1200)]
    runs = known(asked)
    own = runs_of([words(13, 500)]).hashes
    assert find_known(runs.hashes, own).tolist() == [0]
    assert runs.match(100, own, np.array([7])) == {7: (5, 1)}
    # a clean question that ends in the same words, before the same prompt
    clean = runs_of([[*words(13, -500), "in", "the", "picture", *prompt]]).hashes
    assert find_known(runs.hashes, clean).tolist() == []
    # 13 places, of which 5 hold at least 8 words of "in the picture answer ... phrase"
    assert len(runs.hashes) == 1200 * (25 - 13 + 1 - 5)
    assert runs.prompts > 0
    # a passage with twelve questions of 1,212 is not a prompt
    passage = [words(40, -1000)] * 12 + asked
    assert find_known(known(passage).hashes, runs_of([words(40, -1000)]).hashes).size == 28


def test_prompts_are_also_those_of_the_training_data():
    """A set of five records does not tell its questions from its prompt."""
    prompt = words(14)
    runs = known([[*words(13, 100 * number + 20), *prompt] for number in range(5)])
    assert runs.prompts == 0
    trained = [prompt] * 20 + [[*words(13, 320), "x"]]
    own = runs_of(trained)
    places = find_known(runs.hashes, own.hashes)
    assert len(places) == 41
    matches = runs.match(len(trained), own.hashes[places], own.texts[places])
    assert matches == {20: (3, 1)}


def test_nothing_known():
    assert find_known(np.zeros(0, np.uint64), runs_of([words(20)]).hashes).size == 0
    assert known([]).hashes.size == 0
    none = np.zeros(0, np.int64)
    assert known([words(20)]).match(10, none.astype(np.uint64), none) == {}


def test_shared_words_are_marked_in_both():
    first, second = ["a", *words(14), "b"], [*words(14), "c"]
    assert shared_words(first, second) == (set(range(1, 15)), set(range(14)))
    assert shared_words(words(5), words(5)) == (set(range(5)), set(range(5)))
    assert shared_words(words(5), words(6)) == (set(), set())
