"""Words and phrases in a text."""

from __future__ import annotations

import pytest

from ets.tasks.words import holds, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-known fact, 2 times.", ["It's", "a", "well-known", "fact", "times"]),
        ("Äpfel – e.g. 'red' ones_too", ["Äpfel", "e", "g", "red", "ones", "too"]),
        ("3rd -- ...", ["rd"]),
        ("", []),
    ],
)
def test_words_are_letters_with_apostrophes_and_hyphens_inside(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(("phrase", "found"), [("red", True), ("red apple", True), ("apples", False), ("C++", True)])
def test_a_phrase_stands_in_any_case_and_not_within_a_word(phrase: str, found: bool) -> None:
    assert holds("A Red Apple in c++.", phrase) == found and not holds("coloured pineapples", phrase)
