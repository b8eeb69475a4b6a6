"""Nothing that was read becomes markup, and nothing in it stays invisible."""

import json
import unicodedata
from html.parser import HTMLParser

import pytest

from grpo_jax.report.markup import data_block, details, esc, section, shortened, table, visible

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)' x=\"",
    "\x1b[2J\x1b]0;owned\x07",
    "abc\u202edcba\u2066x\u2069",
    "nul \x00 del \x7f csi \x9b",
    "half \ud800 and \udfff",
    "]]>--><!--",
    "&lt;b&gt;&#60;b&#62;",
    "a\u2028b\u2029c\ufeffd\u00ade",
)


class Seen(HTMLParser):
    """Elements, and the text between them."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_controls_become_pictures_and_other_formats_numbers():
    assert visible("a\x1b[31m\x00\x7f\r") == "a␛[31m␀␡␍"
    assert visible("x\u202ey\u200b\ud800\ue000\x9b\u2028") == "x⟨U+202E⟩y⟨U+200B⟩⟨U+D800⟩⟨U+E000⟩⟨U+009B⟩⟨U+2028⟩"
    assert visible("two\nlines\tand é 漢字 😀 ∑") == "two\nlines\tand é 漢字 😀 ∑"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_is_one_piece_of_visible_text(text: str):
    seen = Seen(f'<p title="{esc(text)}">{esc(text)}</p>')
    assert seen.tags == ["p"] and seen.text == visible(text)
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert [c for c in seen.text if unicodedata.category(c) in hidden] == []
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_block_of_data_holds_its_text_and_ends_once(text: str):
    block = data_block("data", {"text": text, text: [text]})
    inside = block.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert not set(inside) & set("<>&\u2028\u2029") and inside.isascii()
    assert json.loads(inside) == {"text": text, text: [text]}


def test_a_block_of_data_has_no_number_that_is_none():
    with pytest.raises(ValueError, match="Out of range float"):
        data_block("data", {"x": float("nan")})


def test_a_long_text_is_cut_out_of_the_middle_with_what_is_missing():
    assert shortened("a" * 10, 10) == "a" * 10
    # Half of 10 on either side of 1,000,000: 999,990 are left out.
    assert shortened("a" * 500_000 + "b" * 500_000, 10) == "aaaaa […999,990 characters left out…] bbbbb"
    assert shortened("\x00" * 9 + "x", 4) == "␀␀ […6 characters left out…] ␀x"


def test_a_table_names_its_columns_and_rows():
    page = table("<All>", ["run", "a<b"], [["r", "1"], ["s", '<td data-x="1">2</td>']], kind="numbers")
    seen = Seen(page)
    assert seen.tags.count("td") == 2 and seen.tags.count("caption") == 1 and seen.text.strip() == "<All>runa<br1s2"
    assert page.count('scope="col"') == 2 and page.count('scope="row"') == 2


def test_a_part_without_content_is_not_there():
    assert section("a", "A", "") == ""
    assert Seen(section("a", "<A>", "<p>x</p>")).tags == ["section", "h2", "p"]
    assert Seen(details("<more>", "x")).text == "<more>\nx\n"
