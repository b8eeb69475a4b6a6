r"""One spelling for LaTeX that says the same: ``\dfrac12`` is ``\frac{1}{2}``, ``x^2`` is ``x^{2}``.

A single pass over the tokens; what groups hold is read by recursion down to a given depth and no further.
"""

import re
import unicodedata

TEXT_BEGINS, TEXT_ENDS = "\x02", "\x03"
r"""Marks around what stood in ``\text{...}``."""
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_FRACTIONS = {r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"}
_TEXTS = set(r"\text \textbf \textit \textrm \textnormal \mathrm \mathbf \mathit \mathsf \mbox \operatorname".split())
_SILENT = set(
    r"\left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle \limits \boldsymbol \mathbb"
    r" \! \$ $ \( \) \[ \] \rm \bf".split()
)
_SPACES = set(r"\, \; \: \> ~ \quad \qquad \enspace \thinspace".split()) | {"\\ ", "\\\n"}
_OTHER_NAMES = {
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\neq": r"\ne",
    r"\ast": "*",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lparen": "(",
    r"\rparen": ")",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\%": "%",
    r"\degree": r"^{\circ}",
    r"\degrees": r"^{\circ}",
    r"\#": "#",
    r"\&": "and",
    r"\_": "_",
    r"\to": r"\rightarrow",
    r"\div": "/",
    r"\lt": "<",
    r"\gt": ">",
    r"\infin": r"\infty",
    r"\vert": "|",
    r"\mid": "|",
}
_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u22c5": r"\cdot ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u221a": r"\sqrt ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u00b1": r"\pm ",
    "\u2208": r"\in ",
    "\u00b0": r"^\circ ",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u20ac": "",
    "\u00a3": "",
}
_NOT_PLAIN = re.compile(r"[^\x00-\x7f]")


class _TooDeepError(Exception):
    """Groups inside each other, more than are read."""


def spelled(text: str, *, deepest: int) -> str | None:
    r"""`text` in one spelling, or None where groups are nested deeper than `deepest`.

    Arguments stand in braces, other braces are left out, as are dollar signs, ``\left`` and their like; runs of white
    space are one space; ``\text{...}`` stands between `TEXT_BEGINS` and `TEXT_ENDS`.
    """
    tokens = _TOKEN.findall(_NOT_PLAIN.sub(_plain, text).replace(TEXT_BEGINS, "").replace(TEXT_ENDS, ""))
    try:
        return re.sub(r" +", " ", _Reader(tokens, deepest).all(0)).strip()
    except _TooDeepError:
        return None


def _plain(match: re.Match[str]) -> str:
    """One character that is not ASCII, as LaTeX or in its compatible form."""
    character = match[0]
    if character in _SIGNS:
        return _SIGNS[character]
    parts = unicodedata.normalize("NFKC", character)
    if "\u2044" in parts:  # a half, a third
        top, _, bottom = parts.partition("\u2044")
        return f"\\frac{{{top}}}{{{bottom}}}"
    return parts if len(parts) <= 4 else character


class _Reader:
    """Tokens and how far they were read."""

    def __init__(self, tokens: list[str], deepest: int) -> None:
        self._tokens, self._deepest, self._at = tokens, deepest, 0

    def all(self, depth: int) -> str:
        """Everything up to the end, or inside a group up to its closing brace."""
        if depth > self._deepest:
            raise _TooDeepError
        parts = []
        while self._at < len(self._tokens):
            token = self._next()
            if token == "}" and depth:
                break
            parts.append(self._one(token, depth))
        return "".join(parts)

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _one(self, token: str, depth: int) -> str:
        """The spelling of what begins with `token`."""
        if token == "{":
            return self.all(depth + 1)
        if token == r"\!":  # as in 1,\! 000
            self._skip_spaces()
        if token == "}" or token in _SILENT:
            return ""
        if token in _FRACTIONS:
            top = self._argument(depth)
            return rf"\frac{{{top}}}{{{self._argument(depth)}}}"
        if token == r"\sqrt":
            return rf"\sqrt{self._root(depth)}{{{self._argument(depth)}}}"
        if token in ("^", "_"):
            return f"{token}{{{self._argument(depth)}}}"
        if token in _TEXTS:
            words = self._argument(depth)
            return f" {words} " if words.casefold() in ("and", "or") else f"{TEXT_BEGINS}{words}{TEXT_ENDS}"
        if token in (r"\begin", r"\end"):
            return f"{token}{{{self._argument(depth)}}}"
        if token in _SPACES or token.isspace():
            return " "
        return _OTHER_NAMES.get(token, token)

    def _argument(self, depth: int) -> str:
        """What a command is applied to: a group, another command with its arguments, or one character."""
        if depth >= self._deepest:
            raise _TooDeepError
        self._skip_spaces()
        if self._at == len(self._tokens) or self._tokens[self._at] == "}":
            return ""
        return self._one(self._next(), depth + 1).strip()

    def _skip_spaces(self) -> None:
        while self._at < len(self._tokens) and self._tokens[self._at].isspace():
            self._at += 1

    def _root(self, depth: int) -> str:
        """The degree of a root, ``[3]``, where it has one."""
        if self._at == len(self._tokens) or self._tokens[self._at] != "[" or "]" not in self._tokens[self._at :]:
            return ""
        end = self._tokens.index("]", self._at)
        found = "".join(self._tokens[self._at + 1 : end])
        self._at = end + 1
        return f"[{found}]"
