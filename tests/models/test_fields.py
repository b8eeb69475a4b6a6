"""Fields are taken one by one, and what nobody takes is refused."""

import pytest

from grpo_jax.models.fields import HARMLESS, Fields


def test_a_value_of_another_kind_is_noted_and_something_stands_in_for_it():
    fields = Fields({"a": "1", "b": 2, "c": None, "d": 1.5, "e": "x"}, where="here")
    assert fields.count("a") == 1
    assert fields.count("b", most=1) == 1
    assert fields.amount("c") == 1.0
    assert fields.count("d", 3) == 1
    assert fields.choice("e", {"y": 7}) == 7
    with pytest.raises(ValueError, match=r"^here describes") as caught:
        fields.close()
    for told in (
        "a: got '1'",
        "b: got 2, allowed whole numbers from 1 to 1",
        "c: got None",
        "d: got 1.5",
        "e: got 'x'",
    ):
        assert told in str(caught.value)


def test_defaults_and_null_are_told_apart():
    fields = Fields({"null": None, "given": 5}, where="")
    assert fields.count("missing", 3) == 3
    assert fields.count("missing", None) is None
    assert fields.count("null", null=True) is None
    assert fields.count("given", None) == 5
    assert fields.amount("missing", 2) == 2.0
    fields.close()
    empty = Fields({}, where="")
    empty.count("absent", null=True)  # required: null may be said and not left unsaid
    with pytest.raises(ValueError, match="absent: got None"):
        empty.close()


def test_only_some_values_change_nothing():
    Fields({"a": False, "b": 1}, where="").only({"a": (False,), "b": (1, None), "c": (2,)})
    for wrong in ({"a": 0}, {"a": True}, {"b": 2}):
        fields = Fields(wrong, where="")
        fields.only({"a": (False,), "b": (1, None)})
        with pytest.raises(ValueError, match="allowed"):
            fields.close()


def test_what_nobody_took_is_refused_and_the_nearest_named():
    fields = Fields({"rope_teta": 1, "\x1b[2J": 2}, where="")
    fields.amount("rope_theta", 1.0)
    with pytest.raises(
        ValueError, match="rope_teta: got 1, allowed is to leave this unknown field out; rope_theta"
    ) as e:
        fields.close()
    assert "\x1b" not in str(e.value)


def test_fields_inside_are_listed_with_their_place():
    fields = Fields({"rope": {"factor": "x", "extra": 1}, "list": [1]}, where="")
    inner = fields.inner("rope")
    assert inner is not None
    inner.amount("factor")
    inner.rest()
    assert fields.inner("missing") is None
    fields.inner("list")
    with pytest.raises(ValueError, match=r"rope\.factor: got 'x'.*rope\.extra: got 1.*list: got \[1\], allowed an obj"):
        fields.close()


def test_what_is_harmless_says_nothing_about_what_is_computed():
    decides = {
        "hidden_size",
        "rope_theta",
        "sliding_window",
        "head_dim",
        "norm_topk_prob",
        "attention_bias",
        "auto_map",
    }
    assert not HARMLESS & decides
    Fields(dict.fromkeys(HARMLESS, 1), where="").close()
