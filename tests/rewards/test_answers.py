r"""What is equal and what is not was decided by reading, not by running: the reason stands beside each pair.

Values are worked out in sight: ``2\frac{1}{2} = 5/2 = 2.5``.
"""

import time
from fractions import Fraction

import pytest

from grpo_jax.rewards.answers import LONGEST, Number, Several, Words, boxed, parse_answer, same

EQUAL = [
    # integers and decimals
    ("18", "18"),
    (" 18. ", "18"),
    ("018", "18"),  # a leading zero changes nothing
    ("+7", "7"),
    ("-7", "\u22127"),  # the minus of typography
    ("- 7", "-7"),
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    (r"10,\!000", "10000"),
    (r"11,\! 111,\! 100", "11111100"),
    ("1 234 567", "1234567"),
    ("0.50", "1/2"),  # 0.50 = 50/100 = 1/2
    (".5", "0.5"),
    ("3.", "3.0"),
    ("1.5e3", "1500"),
    (r"1.5 \times 10^{3}", "1500"),  # 1.5 * 1000
    (r"3\cdot 10^2", "300"),
    (r"2 \times 10^{-2}", "0.02"),
    # fractions
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\tfrac{3}{6}", "1/2"),  # 3/6 = 1/2
    (r"-\frac{3}{4}", "-0.75"),
    (r"\frac{-3}{4}", "-3/4"),
    (r"2\frac{1}{2}", "5/2"),  # 2 + 1/2
    ("2 1/2", "2.5"),
    ("\u00bd", "0.5"),
    ("2\u00bd", "2.5"),
    ("10/4", "2.5"),
    # percent
    ("50%", r"50\%"),
    (r"50\%", "0.5"),  # 50 of a hundred
    ("50", r"50\%"),  # the question asks for percent
    ("40%", "40"),
    ("50 percent", "50%"),
    # money, units, degrees
    ("$18", "18"),
    (r"\$18.00", "18"),
    ("$1,234$", "1234"),
    ("18 dollars", "18"),
    (r"5 \text{ cm}", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"5\,\mathrm{m/s}", "5"),
    ("5cm", "5 cm"),
    ("60 miles per hour", "60"),
    ("60 km/h", "60"),
    ("12 square feet", "12"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90 degrees"),
    ("90\u00b0", r"90^\circ"),
    (r"\frac{3}{4} \text{ inches}", "3/4"),
    (r"\sqrt{10}\text{ units}", r"\sqrt{10}"),
    (r"25 \pi\text{ cm}^2", r"25\pi"),
    ("3 million", "3000000"),
    (r"1.5\text{ thousand}", "1500"),
    # a name in front
    ("x = 5", "5"),
    ("x=5", "x = 5"),
    (r"x \in [1, 2]", "[1,2]"),
    (r"y = 2x + 3", "2x+3"),
    # roots and other expressions, one spelling
    (r"2\sqrt{3}", r"2\sqrt3"),
    (r"\frac{\sqrt{2}}{2}", r"\dfrac{\sqrt2}{2}"),
    (r"\sqrt[3]{2}", r"\sqrt[3] 2"),
    ("x^2 + 1", "x^{2}+1"),
    (r"\left( x + 1 \right)", "(x+1)"),
    (r"3\pi", "3 \u03c0"),
    (r"\dfrac{\pi}{6}", r"\frac{\pi}6"),
    (r"1 \pm \sqrt{5}", "1 \u00b1 \\sqrt{5}"),
    (r"x \leq 3", r"x \le 3"),
    # tuples, intervals, sets, lists
    ("(1, 2)", "(1,2)"),
    ("(0.5, 3)", r"\left(\frac{1}{2}, 3\right)"),
    (r"[0, \infty)", r"\left[0,\infty\right)"),
    (r"(-\infty, 3]", r"(-\infty,3.0]"),
    (r"(1, 2) \cup (3, 4]", r"(3,4]\cup(1,2)"),  # a union has no order
    (r"\{1, 2\}", r"\{2, 1\}"),  # nor has a set
    ("1, 2, 3", "3, 1, 2"),
    ("1 and 2", "1, 2"),
    ("1 or 2", "2, 1"),
    ("x = 1 or x = 2", "1, 2"),
    (r"5 \text{ or } 6", "5, 6"),
    (r"x = 3, y = 4", "3, 4"),
    (r"\{5\}", "5"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 0.5 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&\frac12\end{bmatrix}"),
    # words
    (r"\text{Monday}", "monday"),
    ("New  York", "new york"),
    (r"\text{(B)}", "B"),
    ("(b)", "B"),
    ("even.", "Even"),
    # boxes
    (r"\boxed{18}", "18"),
    (r"so \boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\fbox{7}", "7"),
]
UNEQUAL = [
    ("18", "19"),
    ("18", "-18"),
    ("0.33", "1/3"),  # 33/100 is not 1/3
    ("1.234", "1,234"),
    ("1/2", "2"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("12", "1, 2"),
    ("5x", "5"),  # a coefficient is no number with a unit
    ("5 x", "5"),
    (r"5\pi", "5"),
    (r"x \text{ is even}", "x"),
    ("2516_8", "2516"),  # the base belongs to it
    ("5 or more", "5"),
    ("50%", "5"),
    ("0.5%", "0.5"),  # 0.5 % = 0.005
    ("5%", "0.5"),  # 5 % = 0.05
    (r"\sqrt{3}", "3"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"\sqrt{2}", r"\sqrt[3]{2}"),
    ("x^2", "x^3"),
    ("x^{12}", "x^12"),  # in LaTeX x^12 is x^1 and then 2
    ("2^{10}", "210"),
    ("(1, 2)", "(2, 1)"),  # a point has an order
    ("(1, 2)", "[1, 2]"),  # open and closed
    ("[1, 2)", "[1, 2]"),
    ("(1, 2)", "(1, 2, 3)"),
    ("1, 2", "1, 2, 2"),
    ("1, 1, 2", "1, 2, 2"),
    (r"(1,2) \cup (3,4)", r"(1,2) \cup (3,5)"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("Monday", "Tuesday"),
    ("A", "B"),
    ("x \\le 3", "x \\ge 3"),
    ("", "0"),
    ("no solution", "0"),
    (r"\frac{1}{0}", "0"),
    ("-2 1/2", "-3/2"),  # -(2 + 1/2) = -5/2
    ("3 million", "3"),
    ("1.5 \\times 10^{3}", "15"),
    ("3:30", "330"),
    (r"\boxed{1} and then \boxed{2}", "1"),  # the last box counts
]


def alike(given: str, right: str, tolerance: float = 0.0) -> bool:
    a, b = parse_answer(given), parse_answer(right)
    return a is not None and b is not None and same(a, b, tolerance=tolerance)


@pytest.mark.parametrize(("given", "right"), EQUAL, ids=range(len(EQUAL)))
def test_what_says_the_same_is_equal(given: str, right: str):
    assert alike(given, right), (parse_answer(given), parse_answer(right))
    assert alike(right, right)


@pytest.mark.parametrize(("given", "right"), UNEQUAL, ids=range(len(UNEQUAL)))
def test_what_says_something_else_is_not(given: str, right: str):
    assert not alike(given, right), (parse_answer(given), parse_answer(right))


def test_numbers_are_equal_up_to_a_tolerance_wherever_they_stand():
    assert alike("3.14", "3.1416", 0.001)  # 0.0016 <= 0.001 * 3.1416 = 0.0031
    assert not alike("3.13", "3.1416", 0.001)  # 0.0116
    assert alike("(3.14, 0)", "(3.1416, 0)", 0.001) and not alike("(3.13, 0)", "(3.1416, 0)", 0.001)
    assert alike("0.001, 2", "2, 0.0015", 0.001)  # below 1 the tolerance is absolute: 0.0005 <= 0.001


def test_what_was_read():
    assert parse_answer("2 1/2") == Number(Fraction(5, 2))
    assert parse_answer("12.5%") == Number(Fraction(25, 2), percent=True)
    assert parse_answer("(1, x)") == Several("()", (Number(Fraction(1)), Words("x")))
    assert parse_answer(r"\text{Monday}") == Words("monday")


@pytest.mark.parametrize(
    "text", ["", "   ", "$$", r"\boxed{}", "x" * (LONGEST + 1), "{" * 9 + "1" + "}" * 9, r"\frac" * 20]
)
def test_what_cannot_be_read_is_none(text: str):
    assert parse_answer(text) is None


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x \} y}", r"x \} y"),
        (r"\boxed {3}", "3"),
        (r"\fbox{4}.", "4"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{1} and \boxed{2", "1"),  # the second is not closed
        (r"} \boxed{1} }", "1"),
        ("nothing", None),
        (r"\boxed{2", None),
        (r"\boxedx{2}", None),
    ],
)
def test_the_last_closed_box_counts(text: str, content: str | None):
    assert boxed(text) == content


HOSTILE = [
    *("1" * 1024, "1," * 512, "(" * 1024, "(" * 512 + ")" * 512, "{" * 512 + "}" * 512, "\\frac" * 170, "^" * 1024),
    *("\\sqrt[" * 170, "1/" * 512, "1e999999999", "9" * 64 + "e32", "1 " * 512, "a " * 512, "5" + " mm" * 340),
    *("\\text{" * 170, "\\text{a}" * 120, " and " * 200, "x=" * 512, "%" * 1024, "-" * 1024, "\\" * 1024),
    *("\\begin{pmatrix}" * 60, "\\{" * 512, "\\cup" * 256, "\ufdfa" * 1024, "\u00bd" * 1024, "\x00" * 1024),
    *("10^{" * 256, "1\\times10^{9999}", "\\frac{1}{" * 100, "1 \\times " * 100, "__import__('os')", "\ud800"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_an_answer_cannot_make_the_reader_work_hard(text: str):
    start = time.process_time()
    read = parse_answer(text[:LONGEST])
    if read is not None:
        assert same(read, read)
    assert parse_answer(text * 1000) is None or len(text) < 2
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("unit", ["\\boxed{", "}", "\\boxed{1}", "\\boxed ", "{", "\\", "\\{", "\\boxed{\\boxed{1}}"])
def test_finding_a_box_takes_time_linear_in_the_text(unit: str):
    start = time.process_time()
    boxed(unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 5
