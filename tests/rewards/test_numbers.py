import time
from fractions import Fraction

import pytest

from grpo_jax.rewards.numbers import parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        (" 12\n", 12),
        ("007", 7),
        ("-3.50", Fraction(-7, 2)),
        ("+7", 7),
        ("\u22127", -7),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("1,234,567", 1234567),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("15%", Fraction(3, 20)),
        ("$20", 20),
        ("-$20", -20),
        ("1" * 32, int("1" * 32)),
        ("1e32", 10**32),
    ],
)
def test_numbers_as_people_write_them(text: str, value: Fraction):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "x",
            "1x",
            "--1",
            "+-1",
            "1-",
            "1,23",
            "1,2345",
            ",123",
            ".",
            "e5",
            "1e",
            "1/0",
            "1/",
            "/2",
            "1/2/3",
        ),
        *(
            "1 2",
            "inf",
            "nan",
            "0x10",
            "1_000",
            "\u0661",
            "½",
            "1e33",
            "1e100000000",
            "9" * 33,
            "1" * 65,
            "%",
            "$",
            "-",
        ),
    ],
)
def test_anything_else_is_no_number(text: str):
    assert parse_number(text) is None


def test_no_text_makes_the_reader_work_hard():
    start = time.process_time()
    for text in ("1e" + "9" * 60, "1," * 30 + "1", "1" * 10**6, "," * 64, "1/1e-32", "1e32/1e-32", "-" * 64):
        parse_number(text)
    assert time.process_time() - start < 0.5
