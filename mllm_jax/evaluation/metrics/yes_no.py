"""Yes/no answers: POPE's own rule, the harnesses' variants by name, a strict one, MME's.

    rule        an answer is                                 what else differs
    official    "no" where the first sentence holds a        nothing is unparseable: an answer in
                negation, else "yes"                         another language counts as "yes"
    lmms-eval   "yes" or "no", in any case, nothing else     recall forgets unparseable answers;
                                                             yes_share is that of the TRUTH
    ndino       as lmms-eval, one final punctuation mark     as lmms-eval
                left out
    strict      its first word (ours)                        unparseable answers are wrong
    mme         see `mme`                                    unparseable answers are wrong

The rules are written for English; here the words are those of a `Language`. By the official rule
with English's words a Basque "ez" (no) counts as "yes", so `unparseable` is reported beside it: the
share of answers that hold none of the words of the language asked for.
"""

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from mllm_jax.common.errors import ConfigError, quoted, require
from mllm_jax.evaluation.languages import Language

YES, NO = "yes", "no"


def parse_yes_no(answer: str, language: Language, rule: str = "official") -> str | None:
    """An answer as "yes" or "no"; None where the rule cannot tell.

    Raises:
        ConfigError: an unknown rule, or a language that does not state its words.
    """
    return _rule(rule)(answer, language)


def truth_of(label: str, language: Language) -> str:
    """A published label, in English or in the language itself, as "yes" or "no".

    Raises:
        ConfigError: it is neither.
    """
    word = _plain(label)
    if word == YES or word in _forms(language.need("yes")):
        return YES
    if word == NO or word in _forms(language.need("no")):
        return NO
    raise ConfigError(
        f"label {quoted(label)} is neither yes nor no in {language.name}; expected "
        f"{', '.join(map(repr, (*language.need('yes'), *language.need('no'))))}"
    )


def pope(
    truths: Sequence[str], answers: Sequence[str], language: Language, rule: str = "official"
) -> dict[str, float]:
    """accuracy, precision, recall, f1, yes_share and unparseable of a set of answers, in percent.

    Precision, recall and F1 without any positive answer are 0.

    Args:
        truths: "yes" or "no", see `truth_of`.
        answers: as the model wrote them.
        language: whose words count.
        rule: by name, see the top of this file.

    Raises:
        ConfigError: no answers, an unknown rule, or a language that does not state its words.

    Source: AoiDragon/POPE, evaluate.py; lmms-eval, tasks/pope; LLaVA-NDiNO, pope_it.
    """
    parse = _rule(rule)
    require(len(answers) > 0, "yes/no answers: none to score")
    parsed = [parse(answer, language) for answer in answers]
    pairs = Counter(zip(truths, parsed, strict=True))
    harness = rule in ("lmms-eval", "ndino")
    right_yes, answered = pairs[YES, YES], sum(one == YES for one in parsed)
    truly = sum(truth == YES for truth in truths)
    precision = _percent(right_yes, answered)
    recall = _percent(right_yes, right_yes + pairs[YES, NO] if harness else truly)
    return {
        "accuracy": _percent(right_yes + pairs[NO, NO], len(answers)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right_yes else 0.0,
        "yes_share": _percent(truly if harness else answered, len(answers)),
        "unparseable": _percent(
            sum(unparseable(answer, language, rule) for answer in answers), len(answers)
        ),
    }


def unparseable(answer: str, language: Language, rule: str = "official") -> bool:
    """Whether the rule cannot tell what an answer says.

    The official rule itself is never unsure; for it, an answer is unparseable that holds neither a
    negation nor a yes or no of the language.
    """
    if rule != "official":
        return _rule(rule)(answer, language) is None
    text = f" {_plain(answer)} "
    words = _forms((*language.need("yes"), *language.need("no"), *language.need("negations")))
    return not any(f" {word} " in text for word in words)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def official(answer: str, language: Language) -> str:
    """POPE's own rule: the first sentence without commas, split at spaces, holds a negation."""
    sentence = unicodedata.normalize("NFC", answer).split(".")[0]
    words = sentence.replace(",", "").split(" ")
    return NO if any(word in words for word in language.need("negations")) else YES


def lmms_eval(answer: str, language: Language) -> str | None:
    """The label alone, in any case: "No." is unparseable."""
    return _label(answer.lower().strip(), language)


def ndino(answer: str, language: Language) -> str | None:
    """As `lmms_eval`, without one final punctuation mark. An empty answer, on which the published
    program stops, is unparseable."""
    text = answer.lower().strip()
    marked = text != "" and text[-1] in string.punctuation
    return _label(text[:-1] if marked else text, language)


def _label(text: str, language: Language) -> str | None:
    labels = {language.need("yes")[0]: YES, language.need("no")[0]: NO}
    return labels.get(unicodedata.normalize("NFC", text))


def strict(answer: str, language: Language) -> str | None:
    """Our rule: what the answer begins with, whatever follows; neither word is unparseable."""
    text = f"{_plain(answer)} "
    for words, value in ((language.need("yes"), YES), (language.need("no"), NO)):
        if any(text.startswith(f"{word} ") for word in _forms(words)):
            return value
    return None


def mme(answer: str, language: Language) -> str | None:
    """MME's rule: the word, its first letter alone, or the word within the first four characters.

    For languages with longer words, as many characters as the longest and one more.

    Source: calculation.py of MME's evaluation tool, as in lmms-eval's tasks/mme.
    """
    text = unicodedata.normalize("NFC", answer).lower().strip().replace(".", "")
    yes, no = _forms(language.need("yes")), _forms(language.need("no"))
    if len(text) == 1:
        return {yes[0][0]: YES, no[0][0]: NO}.get(text)
    start = text[: max(4, *(len(word) + 1 for word in (*yes, *no)))]
    for words, value in ((yes, YES), (no, NO)):
        if any(word in start for word in words):
            return value
    return None


RULES: dict[str, Callable[[str, Language], str | None]] = {
    "official": official,
    "lmms-eval": lmms_eval,
    "ndino": ndino,
    "strict": strict,
    "mme": mme,
}


def _rule(name: str) -> Callable[[str, Language], str | None]:
    if name not in RULES:
        raise ConfigError(f"yes/no answers: rule {quoted(name)} is not one of {', '.join(RULES)}")
    return RULES[name]


def _plain(text: str) -> str:
    """Lower case, one space between words, no punctuation but apostrophes inside words."""
    text = unicodedata.normalize("NFC", text).casefold()
    clean = "".join(c if c.isalnum() or c in "'’" else " " for c in text)
    return " ".join(word.strip("'’") for word in clean.split())


def _forms(words: Iterable[str]) -> list[str]:
    return [unicodedata.normalize("NFC", word).casefold() for word in words]
