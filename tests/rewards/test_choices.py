"""Which option an answer names: cases by hand, none of them a guess."""

import time

import pytest

from grpo_jax.rewards.choices import LONGEST, labelled, parse_choice

CITIES = {"A": "Rome", "B": "Paris", "C": "New York", "D": "the A team"}
NUMBERS = {"A": "4", "B": "3", "C": "-4"}
LETTERS = {"A": "B", "B": "A", "C": "C"}

READ = {
    "B": "B",
    "b": "B",
    " b\n": "B",
    "(b)": "B",
    "[B]": "B",
    "B.": "B",
    "B)": "B",
    "b:": "B",
    "**B**": "B",
    "$B$": "B",
    "`(B)`": "B",
    "option B": "B",
    "Option (b).": "B",
    "answer: B": "B",
    "the answer is B": "B",
    "The correct answer is option (B).": "B",
    "I choose B": "B",
    "It's B!": "B",
    "B B": "B",
    "b (B)": "B",
    "A": "A",
    "Paris": "B",
    "paris.": "B",
    "  PARIS ": "B",
    '"Paris"': "B",
    "new   york": "C",
    "The answer is New York.": "C",
    "the A team": "D",
    "B) Paris": "B",
    "(C) New York": "C",
    "option B: Paris.": "B",
    "D. the a team": "D",
}
UNREAD = [
    "A good answer is Paris or so",
    "A good answer is...",
    "A good answer is B",
    "Answer",
    "the answer is",
    "not B",
    "not option B",
    "A or B",
    "A, B",
    "A B",
    "A/B",
    "AB",
    "both A and B",
    "B, no, C",
    "B) Rome",  # the letter of one option, the text of another
    "B) Paris or C) New York",
    "B) Berlin",
    "Rome Paris",
    "Berlin",
    "E",  # there are four
    "1",
    "(",
    "**",
    ".",
    "",
    "   ",
    "Ｂ",
    "ß",
]


@pytest.mark.parametrize("text", READ)
def test_what_names_one_option_is_read(text: str):
    assert parse_choice(text, CITIES) == READ[text]


@pytest.mark.parametrize("text", UNREAD)
def test_what_does_not_clearly_name_one_option_is_not_guessed(text: str):
    assert parse_choice(text, CITIES) is None


def test_without_options_only_a_letter_names_one():
    assert [parse_choice(text) for text in ("B", "(z)", "option I", "I")] == ["B", "Z", "I", "I"]
    assert [parse_choice(text) for text in ("Paris", "B) Paris", "3", "A, B", "A good answer is")] == [None] * 5


def test_numbers_and_letters_may_be_the_texts_of_options():
    assert [parse_choice(text, NUMBERS) for text in ("3", "4.", "-4", "A) 4", "B 3")] == ["B", "A", "C", "A", "B"]
    assert [parse_choice(text, NUMBERS) for text in ("A) 3", "4 3", "34", "5", "+4")] == [None] * 5
    # "A" is the letter of one option and the text of another; "C" is both of one.
    assert [parse_choice(text, LETTERS) for text in ("A", "B", "C")] == [None, None, "C"]


def test_the_same_text_twice_names_neither_option():
    assert parse_choice("4", {"A": "4", "B": "4", "C": "5"}) is None
    assert parse_choice("A", {"A": "4", "B": "4", "C": "5"}) == "A"


def test_options_are_a_list_or_have_letters():
    assert labelled(["x", 2, 0.5]) == {"A": "x", "B": "2", "C": "0.5"}
    assert labelled({"a": "x", "C": "y"}) == {"A": "x", "C": "y"}


@pytest.mark.parametrize(
    "options", [[], {}, "AB", 3, [" "], [None], {"AA": "x"}, {"1": "x"}, {"a": 1, "A": 2}, [1] * 27]
)
def test_other_options_are_an_error_of_the_data(options: object):
    with pytest.raises(ValueError, match=r"options: got .*; allowed is a list of 1 to 26 texts"):
        labelled(options)


@pytest.mark.parametrize(
    "unit", ["A", " A", "( ", "(", "the ", "B) ", "answer ", "\u00a0", "A,", "ﬃ", "\x00"], ids=ascii
)
def test_an_answer_of_hostile_length_is_read_or_refused_at_once(unit: str):
    start = time.process_time()
    for count in (LONGEST // len(unit), 2_000_000 // len(unit)):
        named = {" A": "A", "B) ": "B"}.get(unit)  # one letter, however often
        assert parse_choice(unit * count, CITIES) == (named if count < LONGEST else None)
    assert time.process_time() - start < 0.2


def test_the_time_grows_in_proportion_to_the_length():
    def seconds(length: int) -> float:
        options = {"A": "x" * length, "B": "y " * (length // 2)}
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            for _ in range(40):
                parse_choice("y " * (length // 2), options)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(4000) < 12 * seconds(1000)  # 4 times as long; a square would be 16
