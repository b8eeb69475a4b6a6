"""What stays is the newest, the best, and nothing that only an interrupted run would have."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_jax.checkpoint.retention import Retention, ranked


def test_the_best_are_ranked_and_of_equal_ones_the_earlier_wins():
    rows: list[dict[str, Any]] = []
    for index, value in ((2, 0.5), (4, 0.25), (6, 0.5), (8, 0.75)):
        rows = ranked(rows, index=index, value=value, keep=3, mode="max")
    assert [row["index"] for row in rows] == [8, 2, 6]
    lowest: list[dict[str, Any]] = []
    for index, value in ((2, 0.5), (4, 0.25), (6, 0.25), (8, 0.75)):
        lowest = ranked(lowest, index=index, value=value, keep=3, mode="min")
    assert [row["index"] for row in lowest] == [4, 6, 2]


def test_a_worse_one_and_one_without_a_value_enter_no_ranking():
    best = [{"index": 2, "value": 0.5}]
    assert ranked(best, index=4, value=0.5, keep=1, mode="max") == best
    assert ranked(best, index=4, value=0.4, keep=1, mode="max") == best
    for value in (math.nan, math.inf, -math.inf):
        assert ranked(best, index=4, value=value, keep=2, mode="max") == best
    assert ranked(best, index=4, value=0.6, keep=1, mode="max") == [{"index": 4, "value": 0.6}]
    assert best == [{"index": 2, "value": 0.5}]  # a ranking is never changed in place
    with pytest.raises(ValueError, match="mode: got 'most', allowed max, min"):
        ranked([], index=1, value=1.0, keep=1, mode="most")


def test_the_newest_the_last_the_milestones_and_the_best_stay():
    rule = Retention(last=2, every=4)
    rule.best = frozenset({3, 99})
    # 8 and 9 are the last two, 4 and 8 milestones, 3 the best; 99 is not there.
    assert rule.kept(range(1, 10)) == {3, 4, 8, 9}
    assert rule.kept([]) == set()
    infos: list[Any] = [SimpleNamespace(step=step) for step in range(1, 10)]
    context: Any = None
    kept = [info.step for info, stays in zip(infos, rule.should_preserve(infos, context=context), strict=True) if stays]
    assert kept == [3, 4, 8, 9]


def test_a_passing_checkpoint_stays_while_it_is_the_newest_and_pushes_none_out():
    rule = Retention(last=2, every=None)
    rule.passing = frozenset({5})
    assert rule.kept([2, 4, 5]) == {2, 4, 5}
    # Uninterrupted, 2, 4 and 6 were saved and 4 and 6 stay.
    assert rule.kept([2, 4, 5, 6]) == Retention(last=2, every=None).kept([2, 4, 6]) == {4, 6}
