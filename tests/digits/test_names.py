"""Number names against tables written by hand."""

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.digits.names import NAMES, name

EU = """
zero bat bi hiru lau bost sei zazpi zortzi bederatzi hamar hamaika hamabi hamahiru hamalau
hamabost hamasei hamazazpi hemezortzi hemeretzi
""".split()
TABLES = {
    "eu": dict(enumerate(EU))
    | {
        20: "hogei",
        21: "hogeita bat",
        22: "hogeita bi",
        29: "hogeita bederatzi",
        30: "hogeita hamar",
        31: "hogeita hamaika",
        38: "hogeita hemezortzi",
        39: "hogeita hemeretzi",
        40: "berrogei",
        41: "berrogeita bat",
        50: "berrogeita hamar",
        57: "berrogeita hamazazpi",
        59: "berrogeita hemeretzi",
        60: "hirurogei",
        61: "hirurogeita bat",
        71: "hirurogeita hamaika",
        77: "hirurogeita hamazazpi",
        80: "laurogei",
        81: "laurogeita bat",
        90: "laurogeita hamar",
        98: "laurogeita hemezortzi",
        99: "laurogeita hemeretzi",
    },
    "en": dict(
        enumerate(
            """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
            fifteen sixteen seventeen
            eighteen nineteen twenty twenty-one""".split()
        )
    )
    | {
        30: "thirty",
        40: "forty",
        44: "forty-four",
        50: "fifty",
        60: "sixty",
        70: "seventy",
        80: "eighty",
        88: "eighty-eight",
        90: "ninety",
        99: "ninety-nine",
    },
    "it": dict(
        enumerate(
            """zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici
            quattordici quindici sedici
            diciassette diciotto diciannove venti ventuno ventidue ventitré ventiquattro venticinque
            ventisei ventisette ventotto
            ventinove trenta trentuno trentadue trentatré""".split()
        )
    )
    | {
        38: "trentotto",
        40: "quaranta",
        41: "quarantuno",
        43: "quarantatré",
        48: "quarantotto",
        50: "cinquanta",
        58: "cinquantotto",
        61: "sessantuno",
        68: "sessantotto",
        71: "settantuno",
        77: "settantasette",
        80: "ottanta",
        81: "ottantuno",
        88: "ottantotto",
        90: "novanta",
        91: "novantuno",
        98: "novantotto",
        99: "novantanove",
    },
    "es": dict(
        enumerate(
            """cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce
            quince dieciséis diecisiete
            dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco
            veintiséis veintisiete veintiocho
            veintinueve treinta""".split()
        )
    )
    | {
        31: "treinta y uno",
        33: "treinta y tres",
        40: "cuarenta",
        50: "cincuenta",
        60: "sesenta",
        66: "sesenta y seis",
        70: "setenta",
        77: "setenta y siete",
        80: "ochenta",
        90: "noventa",
        99: "noventa y nueve",
    },
}


@pytest.mark.parametrize("language", NAMES)
def test_names_are_those_of_the_table(language: str):
    assert {number: name(number, language) for number in TABLES[language]} == TABLES[language]


@pytest.mark.parametrize("language", NAMES)
def test_every_number_has_a_name_of_its_own(language: str):
    assert len({name(number, language) for number in range(100)}) == 100


@pytest.mark.parametrize(
    ("number", "language", "words"),
    [(7, "fr", "eu, en, it, es"), (100, "eu", "0 to 99"), (-1, "en", "0 to 99")],
)
def test_what_has_no_name_is_refused(number: int, language: str, words: str):
    with pytest.raises(ConfigError, match=words):
        name(number, language)
