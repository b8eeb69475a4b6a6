import pytest

from grpo_jax.text import ByteTokenizer, check_template, fill

TOKENIZER = ByteTokenizer()


def test_fixed_parts_may_hold_special_tokens_and_values_never_do():
    ids = fill("{prompt}\n<think>", {"prompt": "<eos>"}, TOKENIZER)
    assert ids == [*b"<eos>\n", TOKENIZER.special["<think>"]]


def test_braces_in_a_value_are_text():
    assert fill("{prompt}", {"prompt": "{prompt}{x}"}, TOKENIZER) == list(b"{prompt}{x}")


def test_fields_come_in_the_order_of_the_template():
    assert fill("{b}-{a}", {"a": "1", "b": "2"}, TOKENIZER) == list(b"2-1")


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown field \{promt\}.*did you mean \{prompt\}"):
        check_template("{promt}", ("prompt",), "template")


@pytest.mark.parametrize("template", ["", "{prompt}{prompt}"])
def test_every_field_stands_exactly_once(template: str):
    with pytest.raises(ValueError, match=r"field \{prompt\} stands [02] times"):
        check_template(template, ("prompt",), "template")
    check_template("a {prompt} b", ("prompt",), "template")
