r"""Mathematical answers as people and models write them, read by a small grammar of our own: no `eval`, no algebra.

``1/2``, ``0.5``, ``\frac12``, ``50\%``, ``$1,234$``, ``2\frac{1}{2}``, ``3 \times 10^{4}``, ``90^\circ``, ``x = 5`` and
``5 \text{ cm}`` are exact numbers, their units left out; ``(1, 2]``, ``\{3, 4\}``, ``1, 2``, ``[0, 1) \cup (2, 3)`` and
matrices are read part by part; all else (``2\sqrt{3}``, ``x^2 + 1``, ``\text{Monday}``) is compared as text, in one
spelling of its LaTeX. Roots, powers and sums are not worked out: ``\sqrt{4}`` is not 2.

An answer has at most `LONGEST` characters, and parts inside parts go down to `DEEPEST`; every step is linear in that
length. Numbers are bounded by `grpo_jax.rewards.numbers`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from grpo_jax.rewards.latex import TEXT_BEGINS, TEXT_ENDS, spelled
from grpo_jax.rewards.numbers import parse_number

LONGEST = 1024
"""Characters of an answer; a longer one is not read."""
DEEPEST = 8
_ANY_ORDER = "any order"
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*([^\s{}$\\]+)")
_THOUSANDS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
_FRACTION = re.compile(r"([+-]?)(\d*)\\frac\{([^{}]*)\}\{([^{}]*)\}")
_MIXED = re.compile(r"([+-]?)(\d+) (\d+) ?/ ?(\d+)")
_POWER = re.compile(r"([^\\*]*)(?:\\times|\\cdot|\*) ?10\^\{([+-]?\d{1,4})\}")
_NAME = re.compile(r"(?:[A-Za-z](?:\([a-z]\)|_\{\w\})?|\\[a-z]+) ?(?:=|\\in(?![a-z])) ?")
_EXPONENT = re.compile(r"\^\{(?:-?\d|\\circ)\}$")
_WORD = re.compile(r"(^|[ /]|(?<=[0-9.%}]))([A-Za-z]+)$")
_MATRIX = re.compile(r"\\begin\{([a-z]*matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_BEHIND = re.compile(rf"([^{TEXT_BEGINS}{TEXT_ENDS}]+){TEXT_BEGINS}[^{TEXT_ENDS}]*{TEXT_ENDS}(?: ?\^\{{-?\d\}})?")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_GLUED = frozenset(
    "mm cm dm km in ft yd mi mg kg lb lbs oz ml mL sec min hr hrs mph Hz kHz USD EUR GBP deg rad".split()
)
"""Units that may follow a number without a space."""
_SINGLE = frozenset("m g s h l L N J W V A C F K".split())
_NO_UNITS = frozenset(
    "and or not no if to more less fewer than at most least about pi sqrt sin cos tan log ln exp mod base choose"
    " percent hundred thousand million billion trillion infinity undefined x y z".split()
)
_CLOSES = {"(": ")", "[": "]", "\\{": "\\}"}


@dataclass(frozen=True)
class Number:
    """An exact number; of ``50%``, `value` is 50 and `percent` True."""

    value: Fraction
    percent: bool = False


@dataclass(frozen=True)
class Several:
    """Parts in order, or in any."""

    kind: str  # the brackets, "any order", "union" or the name of a matrix with the length of its rows
    parts: tuple["Answer", ...]


@dataclass(frozen=True)
class Words:
    """Anything else, in one spelling."""

    text: str


Answer = Number | Several | Words


def boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` or ``\fbox{...}`` of `text` whose braces are closed, or None.

    One pass over the text, however deep its braces. Without braces, as in ``\boxed 5``, it is the next word.
    """
    waiting: list[int] = []  # where the content of an open brace begins; negative for one that is no box
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match[0]
        if token[-1] == "{" and len(token) != 2:
            waiting.append(match.end() if len(token) > 1 else -1)
        elif token == "}" and waiting:
            start = waiting.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
    if best is not None:
        return text[best[0] : best[1]]
    words = _BARE_BOX.findall(text)
    return words[-1] if words else None


def parse_answer(text: str) -> Answer | None:
    """What `text` says, or None where there is nothing, too much, or more inside each other than is read."""
    if len(text) > LONGEST:
        return None
    inner = boxed(text)
    plain = spelled(text if inner is None else inner, deepest=DEEPEST)
    if plain is None or len(plain) > 4 * LONGEST:
        return None
    return _read(plain, 0)


def same(given: Answer, right: Answer, *, tolerance: float = 0.0) -> bool:
    """Whether `given` is the answer `right`; numbers up to ``tolerance * max(1, |right|)``.

    A percentage equals its hundredth. Where the right answer is one, its number alone is right too, and where the right
    answer is a number of 1 or more, so is that percentage: the question asked for percent.
    """
    given, right = _single(given), _single(right)
    if isinstance(given, Number) and isinstance(right, Number):
        return _equal(given, right, tolerance)
    if isinstance(given, Several) and isinstance(right, Several):
        if given.kind != right.kind or len(given.parts) != len(right.parts):
            return False
        if given.kind not in (_ANY_ORDER, "union"):
            return all(same(a, b, tolerance=tolerance) for a, b in zip(given.parts, right.parts, strict=True))
        left = list(right.parts)
        for part in given.parts:
            found = next((index for index, other in enumerate(left) if same(part, other, tolerance=tolerance)), None)
            if found is None:
                return False
            left.pop(found)
        return True
    return given == right


def _equal(given: Number, right: Number, tolerance: float) -> bool:
    def near(a: Fraction, b: Fraction) -> bool:
        return a == b or abs(a - b) <= tolerance * max(1, abs(b))

    if given.percent == right.percent:
        return near(given.value, right.value)
    if right.percent:
        return near(given.value, right.value / 100) or near(given.value, right.value)
    return near(given.value / 100, right.value) or (abs(right.value) >= 1 and near(given.value, right.value))


def _single(answer: Answer) -> Answer:
    """A set of one is what it holds."""
    if isinstance(answer, Several) and answer.kind == _ANY_ORDER and len(answer.parts) == 1:
        return answer.parts[0]
    return answer


def _read(text: str, depth: int) -> Answer | None:
    """The answer in spelled LaTeX."""
    text = text.lstrip(" ,;:").rstrip(" .,;:")
    name = _NAME.match(text)
    if name is not None and "=" not in text[name.end() :]:
        text = text[name.end() :].strip()
    if not text or depth > DEEPEST:
        return None
    return _number(text) or _parts(text, depth) or _words(text)


def _number(text: str) -> Number | None:
    """The number that `text` is, with or without a unit."""
    bare = text.strip()
    percent = bare.endswith(("%", "percent", "per cent"))
    if percent:
        bare = re.sub(r"(?:%|per ?cent)$", "", bare).rstrip()
    value = _value(bare)
    if value is None and not percent:
        shorter, scale = _without_unit(bare)
        found = None if shorter is None else _value(shorter)
        value = None if found is None else found * 10**scale
    return None if value is None else Number(value, percent)


def _value(text: str) -> Fraction | None:
    text = _THOUSANDS.sub("", text.strip())
    if text[:1] in ("-", "+"):
        text = text[0] + text[1:].lstrip()
    if (match := _FRACTION.fullmatch(text.replace(" ", ""))) is not None:
        top, bottom, whole = parse_number(match[3]), parse_number(match[4]), parse_number(match[2] or "0")
        if top is None or not bottom or whole is None or (match[2] and (top < 0 or bottom < 0)):
            return None
        return (whole + top / bottom) * (-1 if match[1] == "-" else 1)
    if (match := _MIXED.fullmatch(text)) is not None:
        whole, part = parse_number(match[2]), parse_number(f"{match[3]}/{match[4]}")
        return None if whole is None or part is None else (whole + part) * (-1 if match[1] == "-" else 1)
    if (match := _POWER.fullmatch(text)) is not None:
        factor = parse_number(match[1])
        power = int(match[2])
        return None if factor is None or abs(power) > 32 else factor * Fraction(10) ** power
    return None if text.endswith("%") else parse_number(text)


def _without_unit(text: str) -> tuple[str | None, int]:
    """`text` without the words of a unit behind it, None if there are none, and the power of ten that they say."""
    rest, scale = text.rstrip(), 0
    for _ in range(8):
        if rest.endswith(TEXT_ENDS):
            inside = rest[rest.rfind(TEXT_BEGINS) + 1 : -1].strip()
            rest = rest[: rest.rfind(TEXT_BEGINS)]
            scale += _SCALES.get(inside.casefold(), 0)
        elif (match := _EXPONENT.search(rest)) is not None:
            before = rest[: match.start()].rstrip()
            if "circ" not in match[0] and not (before.endswith(TEXT_ENDS) or _unit(before)):
                break
            rest = before
        elif (match := _WORD.search(rest)) is not None:
            if match[2].casefold() in _SCALES:
                scale += _SCALES[match[2].casefold()]
            elif not _unit(rest):
                break
            rest = rest[: match.start()]
        else:
            break
        rest = rest.rstrip(" -/")
    return (rest if rest and rest != text.rstrip() else None), scale


def _unit(text: str) -> bool:
    """True where `text` ends with a word that may be a unit."""
    match = _WORD.search(text)
    if match is None or match[2].casefold() in _NO_UNITS:
        return False
    if not match[1]:
        return match.start() > 0 and match[2] in _GLUED
    return len(match[2]) > 1 or match[2] in _SINGLE or match[1] == "/"


def _parts(text: str, depth: int) -> Answer | None:
    """The parts of a tuple, an interval, a set, a list, a union or a matrix; None where it has none."""
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None:
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        return _several(f"matrix of {len(rows)} rows", [cell for row in rows for cell in row], depth)
    unions = _split(text, ("\\cup",))
    if len(unions) > 1:
        return _several("union", unions, depth)
    inside = _inside(text)
    if inside is not None:
        opening, content, closing = inside
        pieces = _split(content, (",", ";") if opening != "\\{" else (",",))
        if opening == "\\{":
            return _several(_ANY_ORDER, pieces, depth)
        if len(pieces) > 1:
            return _several(opening + closing, pieces, depth)
        return _read(content, depth + 1) if opening == "(" and closing == ")" else None
    pieces = [piece.removeprefix("and ").removeprefix("or ") for piece in _split(text, (",", ";", " and ", " or "))]
    return _several(_ANY_ORDER, pieces, depth) if len(pieces) > 1 else None


def _several(kind: str, pieces: list[str], depth: int) -> Several | None:
    parts = [_read(piece, depth + 1) for piece in pieces]
    return None if any(part is None for part in parts) else Several(kind, tuple(part for part in parts if part))


def _inside(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing one of `text`, where one pair is around all of it."""
    opening = next((bracket for bracket in _CLOSES if text.startswith(bracket)), None)
    closings = ("\\}",) if opening == "\\{" else (")", "]")
    closing = next((bracket for bracket in closings if text.endswith(bracket)), None)
    if opening is None or closing is None or len(text) <= len(opening) + len(closing):
        return None
    level = 0
    for match in re.finditer(r"\\[{}]|[()\[\]{}]", text):
        level += 1 if match[0][-1] in "([{" else -1
        if level == 0:
            whole = match.end() == len(text)
            return (opening, text[len(opening) : -len(closing)], closing) if whole else None
    return None


def _split(text: str, marks: tuple[str, ...]) -> list[str]:
    """The pieces of `text` between those of `marks` that no bracket encloses; empty pieces left out."""
    pieces, begin, level = [], 0, 0
    for match in re.finditer("|".join(re.escape(mark) for mark in marks) + r"|\\[{}]|[()\[\]{}]", text):
        if match[0] in marks:
            if level == 0:
                pieces.append(text[begin : match.start()])
                begin = match.end()
        else:
            level = max(0, level + (1 if match[0][-1] in "([{" else -1))
    return [piece.strip() for piece in (*pieces, text[begin:]) if piece.strip()]


def _words(text: str) -> Words | None:
    """`text` without spaces, marks of text and differences of case; without the words behind an expression."""
    match = _BEHIND.fullmatch(text)
    if match is not None and re.search(r"\d", match[1]):
        text = match[1]
    plain = text.replace(TEXT_BEGINS, "").replace(TEXT_ENDS, "")
    plain = "".join(plain.split()).casefold().strip(".'\"*")
    if len(plain) == 3 and plain[0] == "(" and plain[2] == ")":  # the letter of a choice
        plain = plain[1]
    return Words(plain) if plain else None
