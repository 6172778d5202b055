from __future__ import annotations

import pytest
from hypothesis import given

from memory.text import UNKNOWN, detect_language, split_unspaced, words
from unit.texts import any_text


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Where did we go last summer, and who was with us?", "english"),
        ("Wo waren wir letzten Sommer, und wer war mit dabei?", "german"),
        ("Où est-ce que nous sommes allés avec ma mère ?", "french"),
        ("¿Dónde está la casa de mi hermana?", "spanish"),
        ("Non so dove sono gli occhiali di mio padre", "italian"),
        ("Onde é que nós vamos com a minha mãe?", "portuguese"),
        ("Waar is het boek van mijn zus, en wie heeft het?", "dutch"),
        ("Куда мы поехали прошлым летом?", "russian"),
        ("dog name", "english"),
        ("我们去年夏天去了哪里？", UNKNOWN),
        ("日本に行きました", UNKNOWN),
        ("เราไปไหนกัน", UNKNOWN),
        ("mixed 中文 and the English is here", UNKNOWN),
        ("Köln Zürich", UNKNOWN),
        ("", "english"),
    ],
)
def test_a_language_is_told_by_its_function_words_or_not_at_all(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    assert detect_language("the cat and the dog " * 100 + "der die das und " * 5000) == "english"


def test_words_keep_their_apostrophes() -> None:
    assert words("It's Anna’s dog, isn't it? x_y 3rd") == [
        "It's", "Anna’s", "dog", "isn't", "it", "x", "y", "3rd",
    ]  # fmt: skip


def test_unspaced_scripts_become_pairs() -> None:
    assert split_unspaced("去北京吗").split() == ["去北", "北京", "京吗"]
    assert split_unspaced("I saw 猫 there").split() == ["I", "saw", "猫", "there"]
    assert split_unspaced("spaced words") == "spaced words"


@given(any_text)
def test_any_text_has_a_language_and_words(text: str) -> None:
    assert isinstance(detect_language(text), str)
    assert all(word in text for word in words(text))
    split_unspaced(text)
