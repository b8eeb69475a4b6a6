"""Numbers as people write them, read without `eval` and without any way to make the reader work hard.

``12``, ``-3.50``, ``+7``, ``1,234,567``, ``3/4``, ``-1.5e3``, ``$20``, ``15%`` -> exact `Fraction`. Caps come before
any arithmetic: 64 characters, 32 digits a number, exponents up to 32 in size (``1e100000000`` as a Fraction would
fill the memory). Anything else is None.
"""

import re
from fractions import Fraction

LONGEST = 64
MOST_DIGITS = 32
LARGEST_EXPONENT = 32

_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3})+"
_NUMBER = re.compile(rf"(?P<whole>{_GROUPED}|[0-9]+)?(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}}))?")


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, white space around it aside, or None."""
    cleaned = text.strip()
    if not cleaned or len(cleaned) > LONGEST:
        return None
    cleaned = cleaned.replace("\u2212", "-")
    sign = -1 if cleaned[0] == "-" else 1
    cleaned = cleaned.removeprefix("-") if sign < 0 else cleaned.removeprefix("+")
    percent = cleaned.endswith("%")
    cleaned = cleaned.removeprefix("$").removesuffix("%").rstrip()
    numerator, slash, denominator = cleaned.partition("/")
    top = _decimal(numerator.rstrip())
    bottom = _decimal(denominator.lstrip()) if slash else Fraction(1)
    if top is None or not bottom:
        return None
    return sign * top / bottom / (100 if percent else 1)


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    whole = (match["whole"] or "").replace(",", "")
    part = match["part"] or ""
    exponent = int(match["exponent"] or 0)
    if not 1 <= len(whole) + len(part) <= MOST_DIGITS or abs(exponent) > LARGEST_EXPONENT:
        return None
    return Fraction(int(whole + part), 10 ** len(part)) * Fraction(10) ** exponent
