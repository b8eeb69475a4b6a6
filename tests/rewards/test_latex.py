import pytest

from grpo_jax.rewards.latex import TEXT_BEGINS, TEXT_ENDS, spelled


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\frac{a}b", r"\frac{a}{b}"),
        (r"\frac\pi 2", r"\frac{\pi}{2}"),
        (r"x^2_1", "x^{2}_{1}"),
        (r"x^{10}", "x^{10}"),
        (r"\sqrt 2 + \sqrt[3]{5}", r"\sqrt{2} + \sqrt[3]{5}"),
        (r"\left( 1,\, 2 \right]", "( 1, 2 ]"),
        (r"$50\%$", "50%"),
        (r"\text{a b}", f"{TEXT_BEGINS}a b{TEXT_ENDS}"),
        (r"1{,}000", "1,000"),
        (r"\{1\}", r"\{1\}"),
        (r"90^\circ", r"90^{\circ}"),
        ("90\u00b0", r"90^{\circ}"),
        ("x\u00b2 \u2264 \u00bd", r"x^{2} \le \frac{1}{2}"),
        ("\uff11\uff12", "12"),  # wide digits are the same digits
        (r"a \\ b & c", r"a \\ b & c"),
        (r"\frac{1}", r"\frac{1}{}"),
        ("}{", ""),
    ],
)
def test_one_spelling(text: str, wanted: str):
    assert spelled(text, deepest=8) == wanted
    assert spelled(wanted, deepest=8) in (wanted, wanted.replace(TEXT_BEGINS, "").replace(TEXT_ENDS, ""))


def test_groups_are_read_down_to_the_limit():
    assert spelled("{" * 8 + "1" + "}" * 8, deepest=8) == "1"
    assert spelled("{" * 9 + "1" + "}" * 9, deepest=8) is None
    assert spelled(r"\frac" * 9 + "1" * 10, deepest=8) is None
