"""The names of 0-99 in Basque, English, Italian and Spanish. Pure functions.

Basque counts in twenties: 77 is 3 x 20 + 17, "hirurogeita hamazazpi" (Euskaltzaindia, rule 7: how
numbers are written).
"""

from collections.abc import Callable

from mllm_jax.common.errors import require

_EU = (
    "zero bat bi hiru lau bost sei zazpi zortzi bederatzi hamar hamaika hamabi hamahiru hamalau "
    "hamabost hamasei hamazazpi hemezortzi hemeretzi"
).split()
_EU_TWENTIES = ("", "hogei", "berrogei", "hirurogei", "laurogei")

_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_EN_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_IT = (
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici "
    "quattordici quindici sedici diciassette diciotto diciannove"
).split()
_IT_TENS = (
    "",
    "",
    "venti",
    "trenta",
    "quaranta",
    "cinquanta",
    "sessanta",
    "settanta",
    "ottanta",
    "novanta",
)

_ES = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés "
    "veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve"
).split()
_ES_TENS = (
    "",
    "",
    "",
    "treinta",
    "cuarenta",
    "cincuenta",
    "sesenta",
    "setenta",
    "ochenta",
    "noventa",
)


def _basque(n: int) -> str:
    if n < 20:
        return _EU[n]
    twenties, rest = divmod(n, 20)
    return f"{_EU_TWENTIES[twenties]}ta {_EU[rest]}" if rest else _EU_TWENTIES[twenties]


def _english(n: int) -> str:
    if n < 20:
        return _EN[n]
    tens, ones = divmod(n, 10)
    return f"{_EN_TENS[tens]}-{_EN[ones]}" if ones else _EN_TENS[tens]


def _italian(n: int) -> str:
    if n < 20:
        return _IT[n]
    tens, ones = divmod(n, 10)
    word = _IT_TENS[tens]
    if ones in (1, 8):  # the tens lose their last vowel before uno and otto
        word = word[:-1]
    return word + ("" if ones == 0 else "tré" if ones == 3 else _IT[ones])


def _spanish(n: int) -> str:
    if n < 30:
        return _ES[n]
    tens, ones = divmod(n, 10)
    return f"{_ES_TENS[tens]} y {_ES[ones]}" if ones else _ES_TENS[tens]


NAMES: dict[str, Callable[[int], str]] = {
    "eu": _basque,
    "en": _english,
    "it": _italian,
    "es": _spanish,
}


def name(number: int, language: str) -> str:
    """The number in words, e.g. `name(77, "eu")` is "hirurogeita hamazazpi".

    Args:
        number: 0 to 99.
        language: "eu", "en", "it" or "es".

    Raises:
        ConfigError: another language, or a number without a name here.
    """
    require(
        language in NAMES, f"language={language!r}: numbers have names here in {', '.join(NAMES)}"
    )
    require(0 <= number <= 99, f"number={number}: names go from 0 to 99")
    return NAMES[language](number)
