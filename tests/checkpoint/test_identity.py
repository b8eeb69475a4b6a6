"""What a checkpoint has to agree in, and what it may note."""

import pytest

from grpo_jax.checkpoint.identity import check_identity, checked_meta, identity_difference

SAVED = {"settings": "a", "data": "1"}


def test_differences_are_named_in_order_and_what_is_absent_is_said():
    assert identity_difference(SAVED, dict(SAVED)) == ""
    assert identity_difference(SAVED, {"settings": "b", "code": "x"}) == (
        "code was absent and is x; data was 1 and is absent; settings was a and is b"
    )


def test_only_what_is_not_accepted_is_refused():
    current = {"settings": "b", "data": "2"}
    check_identity(3, SAVED, current, ("settings", "data"))
    with pytest.raises(ValueError, match=r"Checkpoint 3 belongs to another run: data was 1 and is 2\. "):
        check_identity(3, SAVED, current, ("settings",))


@pytest.mark.parametrize("meta", [{"x": (1, 2)}, {1: 2}, {"x": float("inf")}, {"x": {1, 2}}], ids=str)
def test_notes_that_json_would_change_are_refused(meta: dict):
    with pytest.raises(ValueError, match="JSON"):
        checked_meta(meta)


def test_notes_that_json_keeps_are_taken():
    assert checked_meta({"a": [1, 0.1, None, True, {"b": "c"}]}) == {"a": [1, 0.1, None, True, {"b": "c"}]}
