"""What is asked and said about a number, in Basque and English: tables of sentences and their
answers.

A question has a few wordings and one answer, short and without punctuation, so that exact match is
a fair measure.
"""

from collections.abc import Callable

from mllm_jax.digits.names import name

# kind of question -> its heading in a report
HEADINGS = {
    "number": "Which number",
    "parity": "Even or odd",
    "sum": "Sum of the digits",
    "larger": "Larger digit",
}
# About a picture, or about figures in a text: "Zenbakia: 57. Zein da zifren batura?"
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "number": {
        "eu": (
            "Zein zenbaki da hau?",
            "Zein zenbaki ageri da hemen?",
            "Zer zenbaki dago idatzita?",
        ),
        "en": (
            "Which number is this?",
            "What number is shown here?",
            "Which number is written here?",
        ),
    },
    "parity": {
        "eu": (
            "Zenbaki hau bikoitia ala bakoitia da?",
            "Bikoitia ala bakoitia da zenbakia?",
            "Zenbakia bikoitia da ala bakoitia?",
        ),
        "en": (
            "Is this number even or odd?",
            "Even or odd: which is this number?",
            "Is the number even or is it odd?",
        ),
    },
    "sum": {
        "eu": (
            "Zein da zifren batura?",
            "Zenbat da bi zifren batura?",
            "Zenbat egiten dute bi zifrek batuta?",
        ),
        "en": (
            "What is the sum of the digits?",
            "How much is the sum of the two digits?",
            "What do the two digits add up to?",
        ),
    },
    "larger": {
        "eu": (
            "Zein da zifrarik handiena?",
            "Zein zifra da handiena?",
            "Bi zifretatik, zein da handiena?",
        ),
        "en": (
            "Which digit is larger?",
            "What is the larger digit?",
            "Which of the two digits is larger?",
        ),
    },
}
PARITY = {"eu": ("bikoitia", "bakoitia"), "en": ("even", "odd")}
EQUAL = {"eu": "berdinak dira", "en": "they are equal"}
FIGURES = {"eu": "Zenbakia: {}.", "en": "The number: {}."}

# About a picture: its two digits and its number, each by name.
CAPTIONS: dict[str, tuple[str, ...]] = {
    "eu": (
        "{tens} eta {ones}: {number}.",
        "{tens} eta {ones} zifrekin {number} idatzi da.",
        "Eskuz idatzita: {tens}, {ones}; hau da, {number}.",
    ),
    "en": (
        "{tens} and {ones}: {number}.",
        "{tens} and {ones} make the number {number}.",
        "Written by hand: {tens}, {ones}; that is {number}.",
    ),
    "it": (
        "{tens} e {ones}: {number}.",
        "{tens} e {ones} formano il numero {number}.",
        "Scritto a mano: {tens}, {ones}; cioè {number}.",
    ),
    "es": (
        "{tens} y {ones}: {number}.",
        "{tens} y {ones} forman el número {number}.",
        "Escrito a mano: {tens}, {ones}; es decir, {number}.",
    ),
}

PLUS = {
    "eu": ("Zenbat da {} gehi {}?", "Kalkulatu: {} gehi {}.", "{} gehi {}?"),
    "en": ("How much is {} plus {}?", "Calculate: {} plus {}.", "{} plus {}?"),
}
MINUS = {
    "eu": ("Zenbat da {} ken {}?", "Kalkulatu: {} ken {}.", "{} ken {}?"),
    "en": ("How much is {} minus {}?", "Calculate: {} minus {}.", "{} minus {}?"),
}
NEXT = {
    "eu": "Zein zenbaki dator gero: {}, {}, {}?",
    "en": "Which number comes next: {}, {}, {}?",
}
SENTENCE = {
    "eu": "Idatzi esaldi bat {} zenbakiarekin.",
    "en": "Write a sentence with the number {}.",
}
# (language of the question, language asked for): how one asks for a translation
TRANSLATE: dict[tuple[str, str], str] = {
    ("eu", "en"): "Nola esaten da «{}» ingelesez?",
    ("eu", "it"): "Nola esaten da «{}» italieraz?",
    ("eu", "es"): "Nola esaten da «{}» gaztelaniaz?",
    ("en", "eu"): "How do you say «{}» in Basque?",
    ("en", "it"): "How do you say «{}» in Italian?",
    ("en", "es"): "How do you say «{}» in Spanish?",
}


def caption(wording: str, number: int, language: str) -> str:
    """A wording of CAPTIONS for a number: `57` in English is "Five and seven: fifty-seven."."""
    tens, ones = (name(digit, language) for digit in divmod(number, 10))
    return opening(wording.format(tens=tens, ones=ones, number=name(number, language)))


def answer(kind: str, number: int, language: str) -> str:
    """The one right answer to a question of `QUESTIONS[kind]`, e.g. `answer("sum", 57, "eu")` is
    "hamabi".

    Args:
        kind: "number", "parity", "sum" or "larger".
        number: 0 to 99, read as two digits (7 is 07).
        language: "eu" or "en".
    """
    return _ANSWERS[kind](number, language)


def _larger(number: int, language: str) -> str:
    tens, ones = divmod(number, 10)
    return EQUAL[language] if tens == ones else name(max(tens, ones), language)


_ANSWERS: dict[str, Callable[[int, str], str]] = {
    "number": name,
    "parity": lambda number, language: PARITY[language][number % 2],
    "sum": lambda number, language: name(sum(divmod(number, 10)), language),
    "larger": _larger,
}


def opening(text: str) -> str:
    """A sentence with its first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]
