"""What is asked and said about a number, in Basque, English and Spanish: tables of sentences.

A question has a few wordings, of the same meaning by their place in all languages, and one answer,
short and without punctuation, so that exact match is a fair measure.
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
        "es": (
            "¿Qué número es este?",
            "¿Qué número aparece aquí?",
            "¿Qué número está escrito aquí?",
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
        "es": (
            "¿Este número es par o impar?",
            "¿Par o impar: cómo es este número?",
            "¿Es par el número o es impar?",
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
        "es": (
            "¿Cuál es la suma de las cifras?",
            "¿Cuánto es la suma de las dos cifras?",
            "¿Cuánto suman las dos cifras?",
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
        "es": (
            "¿Qué cifra es mayor?",
            "¿Cuál es la cifra mayor?",
            "¿Cuál de las dos cifras es mayor?",
        ),
    },
}
PARITY = {"eu": ("bikoitia", "bakoitia"), "en": ("even", "odd"), "es": ("par", "impar")}
EQUAL = {"eu": "berdinak dira", "en": "they are equal", "es": "son iguales"}
FIGURES = {"eu": "Zenbakia: {}.", "en": "The number: {}.", "es": "El número: {}."}

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
    "es": ("¿Cuánto es {} más {}?", "Calcula: {} más {}.", "¿{} más {}?"),
}
MINUS = {
    "eu": ("Zenbat da {} ken {}?", "Kalkulatu: {} ken {}.", "{} ken {}?"),
    "en": ("How much is {} minus {}?", "Calculate: {} minus {}.", "{} minus {}?"),
    "es": ("¿Cuánto es {} menos {}?", "Calcula: {} menos {}.", "¿{} menos {}?"),
}
NEXT = {
    "eu": "Zein zenbaki dator gero: {}, {}, {}?",
    "en": "Which number comes next: {}, {}, {}?",
    "es": "¿Qué número viene después: {}, {}, {}?",
}
SENTENCE = {
    "eu": "Idatzi esaldi bat {} zenbakiarekin.",
    "en": "Write a sentence with the number {}.",
    "es": "Escribe una frase con el número {}.",
}
# (language of the question, language asked for): how one asks for a translation
TRANSLATE: dict[tuple[str, str], str] = {
    ("eu", "en"): "Nola esaten da «{}» ingelesez?",
    ("eu", "it"): "Nola esaten da «{}» italieraz?",
    ("eu", "es"): "Nola esaten da «{}» gaztelaniaz?",
    ("en", "eu"): "How do you say «{}» in Basque?",
    ("en", "it"): "How do you say «{}» in Italian?",
    ("en", "es"): "How do you say «{}» in Spanish?",
    ("es", "eu"): "¿Cómo se dice «{}» en euskera?",
    ("es", "en"): "¿Cómo se dice «{}» en inglés?",
    ("es", "it"): "¿Cómo se dice «{}» en italiano?",
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
        language: "eu", "en" or "es".
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
