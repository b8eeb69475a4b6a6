"""Text of a model, of data and of settings on its way into a page: nothing of it is markup, nothing is invisible."""

import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_KEPT = {"\n", "\t"}
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """`text` in which every character can be seen: a control is its picture (␛), another format character its number.

    Line ends and tabs stay. Characters that turn the direction of a line, halves of surrogates, private and unassigned
    ones become ⟨U+202E⟩ and the like, so that they have no effect and can be searched for.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_seen(c) if unicodedata.category(c) in _HIDDEN and c not in _KEPT else c for c in text)


def _seen(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def shortened(text: str, most: int) -> str:
    """At most about `most` characters of `text`, made visible: its beginning and its end, where answers stand."""
    if len(text) <= most:
        return visible(text)
    half, out = most // 2, len(text) - 2 * (most // 2)
    return f"{visible(text[:half])} […{out:,} characters left out…] {visible(text[-half:])}"


def esc(text: object) -> str:
    """`text` for the content of an element or a quoted attribute."""
    return html.escape(visible(str(text)), quote=True)


def data_block(name: str, content: Mapping[str, Any]) -> str:
    """A block of JSON that a script of the page reads: no character in it can end the block or begin another."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return f'<script type="application/json" id="{name}">{text.translate(_ESCAPED)}</script>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table whose cells are markup already. The first cell of a row is its heading; `head` is text."""
    columns = "".join(f'<th scope="col">{esc(name)}</th>' for name in head)
    lines = [f'<tr><th scope="row">{row[0]}</th>{"".join(_cell(cell) for cell in row[1:])}</tr>' for row in rows]
    named = f' class="{kind}"' if kind else ""
    content = f"<caption>{esc(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table{named}>{content}</table></div>\n'


def _cell(content: str) -> str:
    return content if content.startswith("<td") else f"<td>{content}</td>"


def details(summary: str, content: str, *, opened: bool = False) -> str:
    """`content` behind a line that opens it."""
    return f"<details{' open' if opened else ''}><summary>{esc(summary)}</summary>\n{content}</details>\n"


def section(name: str, title: str, content: str) -> str:
    """A part of the page with its heading; nothing where there is no content."""
    if not content:
        return ""
    heading = f'<h2 id="{name}-title">{esc(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}\n{content}</section>\n'
