"""The completions that are shown are the ones asked for, and verifiers disagree only where both have spoken."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from grpo_jax.report.choice import disagree, judges, kept, pick, reward_of, spread, verdicts

BOTH = ("accuracy", "accuracy_numeric")


def judged(exact: float | None, numeric: float | None, **statuses: str) -> dict[str, Any]:
    return {"components": {"accuracy": exact, "accuracy_numeric": numeric, "format": 0.0}, "statuses": statuses}


def row(number: int, reward: float, **more: Any) -> dict[str, Any]:
    return {"sample": number, "reward": reward, "valid": True, "stopped": True, **more}


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [each["sample"] for each in rows]


def test_a_reward_is_what_was_recorded_or_the_sum_of_the_components_or_the_least_of_all():
    assert reward_of({"reward": 0.5, "components": {"a": 2.0}}) == 0.5
    assert reward_of({"components": {"a": 1.0, "b": 0.25, "c": None}}) == 1.25
    lost: list[dict[str, Any]] = [{"reward": 1.0, "valid": False}, {"reward": None, "components": {"a": 1.0}}]
    assert [reward_of(each) for each in [*lost, {"reward": "1"}]] == [-math.inf] * 3
    assert reward_of({"reward": None, "components": []}) == -math.inf


def test_verifiers_disagree_where_their_verdicts_differ():
    assert disagree(judged(1.0, 0.0), BOTH) and disagree(judged(0.0, 1.0), BOTH)
    assert not disagree(judged(1.0, 1.0), BOTH) and not disagree(judged(0.0, 0.0), BOTH)
    # A share counts as right above one half; format is not asked.
    assert not disagree(judged(0.6, 1.0), BOTH) and disagree(judged(0.5, 1.0), BOTH)


def test_a_verifier_without_a_verdict_disagrees_with_nobody():
    assert not disagree(judged(0.0, 1.0, accuracy="timeout"), BOTH)
    assert not disagree(judged(0.0, 1.0, accuracy_numeric="error"), BOTH)
    assert not disagree(judged(None, 1.0), BOTH)
    # That no answer was found is a verdict: the other one found it.
    assert disagree(judged(0.0, 1.0, accuracy="unparsable"), BOTH)
    assert verdicts(judged(0.0, 1.0, accuracy="timeout"), BOTH) == {"accuracy_numeric": True}


def test_verifiers_are_the_components_called_accuracy_whose_values_are_0_or_1():
    assert judges([judged(0.0, 1.0), judged(1.0, None)]) == BOTH
    with pytest.raises(ValueError, match=r"--verifiers: got 'accuracy' .*, allowed two or more of the components acc"):
        judges([judged(0.0, 1.0), judged(1.0, 0.5)])
    with pytest.raises(ValueError, match=r"got none .* \(the run has none\)"):
        judges([])


def test_verifiers_can_be_named():
    rows = [judged(1.0, 0.5)]
    assert judges(rows, ["accuracy", "format"]) == ("accuracy", "format")
    with pytest.raises(ValueError, match="got 'exact', allowed two or more of the components accuracy, accuracy_num"):
        judges(rows, ["accuracy", "exact"])
    with pytest.raises(ValueError, match="got 'accuracy', allowed two or more"):
        judges(rows, ["accuracy", "accuracy"])


def test_filters_pick_by_reward_by_the_end_by_whether_there_is_a_score_and_by_disagreement():
    rows = [row(n, reward) for n, reward in enumerate([0.5, 1.0, 0.0])]
    rows += [row(3, 2.0, valid=False), row(4, 0.25, stopped=False), row(5, 0.75, **judged(1.0, 0.0))]
    assert numbers(pick(rows, which="best")) == [1, 5, 0, 4, 2]
    assert numbers(pick(rows, which="worst")) == [2, 4, 0, 5, 1]
    assert numbers(pick(rows, which="truncated")) == [4]
    assert numbers(pick(rows, which="invalid")) == [3]
    assert numbers(pick(rows, which="disagreement", verifiers=BOTH)) == [5]
    assert pick(rows, which="disagreement") == []


def test_what_is_kept_of_many_has_every_kind():
    rows = [row(n, n / 40) for n in range(40)]
    rows[20] |= {"stopped": False}
    rows[21] |= {"valid": False}
    rows[22] |= judged(1.0, 0.0)
    # In turn: worst 0, best 39, truncated 20, invalid 21, contested 22, the first of those evenly spread (0 again).
    assert numbers(kept(rows, most=5, verifiers=BOTH)) == [0, 20, 21, 22, 39]
    # Second turn: worst 1, best 38, and 40 / 8 = 5 as the second of eight evenly spread.
    assert numbers(kept(rows, most=8, verifiers=BOTH)) == [0, 1, 5, 20, 21, 22, 38, 39]
    assert kept(rows[:4], most=4) == rows[:4]
    assert all(len(kept(rows, most=most)) == most for most in range(1, 41))


def test_steps_are_spread_from_the_first_to_the_last():
    assert spread(range(9), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread([7, 8, 9], 2) == [7, 9]
