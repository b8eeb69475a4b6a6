"""Rates, rules and draws by hand; and that files and mixtures give the classes that they are asked for."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_jax.data import Addition, Chain, Jsonl, Mixture
from grpo_jax.data.counter import hashed, unit
from grpo_jax.data.difficulty import (
    Classed,
    Difficulty,
    by_variance,
    chosen,
    in_pools,
    initial,
    measured,
    probabilities,
    told,
)

EVEN = np.full(4, 0.25)


def rates(*values: float) -> dict[str, np.ndarray]:
    return {"difficulty.rate": np.array(values, np.float32), "difficulty.seen": np.ones(len(values), np.int32)}


def test_by_variance_draws_most_what_is_solved_every_other_time_and_everything_sometimes():
    # 0.25 * (0 + 0.05), 0.25 * (0.25 * 0.75 + 0.05), 0.25 * (0.25 + 0.05), 0.25 * (0 + 0.05)
    weight = by_variance(np.array([0.0, 0.25, 0.5, 1.0]), EVEN)
    np.testing.assert_allclose(weight, [0.0125, 0.059375, 0.075, 0.0125], rtol=1e-12)
    # A class that has three times the share is drawn three times as often at the same rate.
    np.testing.assert_allclose(by_variance(np.array([0.5, 0.5]), np.array([0.75, 0.25])), [0.225, 0.075], rtol=1e-12)


def test_pools_have_shares_of_their_own_whatever_their_sizes():
    # Hard: classes 0 and 1; easy: class 3; medium: class 2.
    weight = in_pools(np.array([0.0, 0.2, 0.5, 0.9]), EVEN, hard=0.3, medium=0.6, easy=0.1)
    np.testing.assert_allclose(weight, [0.15, 0.15, 0.6, 0.1], rtol=1e-12)
    # Without a medium one, hard and easy keep their proportion of 3 to 1.
    settings = Difficulty(rule=partial(in_pools, hard=0.3, medium=0.6, easy=0.1))
    found = probabilities(settings, rates(0.0, 0.1, 0.1, 0.9), EVEN)
    np.testing.assert_allclose(found, [0.25, 0.25, 0.25, 0.25], rtol=1e-12)


def test_the_class_of_a_draw_is_where_its_number_falls():
    draws, probability = np.arange(4000), np.array([0.1, 0.2, 0.3, 0.4])
    found = chosen(7, draws, probability)
    number = unit(hashed(-2, 7, draws))
    for k, edge in enumerate(np.cumsum(probability)):
        assert (number[found == k] < edge).all() and (k == 0 or (number[found == k] >= edge - probability[k]).all())
    # Standard deviation of a share of 4,000 is at most 0.008; five of them.
    np.testing.assert_allclose(np.bincount(found) / 4000, probability, atol=0.04)
    np.testing.assert_array_equal(chosen(7, draws[100:200], probability), found[100:200])
    assert (chosen(8, draws, probability) != found).any()


def test_a_rate_begins_with_what_was_measured_first_and_then_moves_by_a_part():
    settings = Difficulty(decay=0.75)
    begun = initial(settings, EVEN)
    assert begun["difficulty.rate"].tolist() == [0.5] * 4 and begun["difficulty.seen"].tolist() == [0] * 4
    classes, won = np.array([1, 1, 1, 1, 2, 2, 3]), np.array([1, 0, 0, 0, 1, 1, 1], bool)
    counted = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    first = measured(settings, begun, classes, won, counted)
    # Class 1: one of four; class 2: one of the one that counts; classes 0 and 3 have no row that counts.
    assert first["difficulty.rate"].tolist() == [0.5, 0.25, 1.0, 0.5] and first["difficulty.seen"].tolist() == [
        0,
        1,
        1,
        0,
    ]
    then = measured(settings, first, np.array([1, 1, 2, 0]), np.array([1, 1, 0, 0], bool), np.ones(4, bool))
    # 0.75 * 0.25 + 0.25 * 1 = 0.4375; 0.75 * 1 + 0.25 * 0 = 0.75; class 0 for the first time: 0.
    assert then["difficulty.rate"].tolist() == [0.0, 0.4375, 0.75, 0.5]
    assert then["difficulty.rate"].dtype == np.float32 and then["difficulty.seen"].tolist() == [1, 2, 2, 0]


def test_what_is_told_of_a_step():
    seen = {**rates(0.0, 1.0, 0.5, 0.5), "difficulty.seen": np.array([3, 1, 0, 0], np.int32)}
    found = told(seen, np.array([0.5, 0.25, 0.125, 0.125]), np.array([0, 0, 1]))
    # Entropy of 1/2, 1/4, 1/8, 1/8: 1.75 bits.
    assert found.pop("difficulty/entropy") == pytest.approx(1.75 * np.log(2))
    assert found == {"difficulty/success": 0.5, "difficulty/seen": 0.5, "difficulty/classes": 2.0}
    nothing = told(initial(Difficulty(), EVEN), EVEN, np.array([0]))
    assert nothing["difficulty/success"] == nothing["difficulty/seen"] == 0.0


def never(rate: np.ndarray, share: np.ndarray) -> np.ndarray:
    return share * rate


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        pytest.param({"decay": 1.0}, "train.difficulty.decay: got 1.0, allowed 0 up to", id="decay"),
        pytest.param({"prior": 1.5}, "train.difficulty.prior: got 1.5, allowed 0 to 1", id="prior"),
        pytest.param({"rule": never}, "train.difficulty.rule: got weights of shape .*smallest 0.0", id="zero"),
        pytest.param({"rule": partial(by_variance, floor=0.0)}, "by_variance.floor: got 0.0, allowed > 0", id="floor"),
        pytest.param({"rule": partial(in_pools, easy=0.0)}, "in_pools.easy: got 0.0, allowed > 0", id="share"),
        pytest.param({"rule": partial(in_pools, low=0.9)}, "in_pools: got low=0.9, high=0.8", id="bounds"),
    ],
)
def test_settings_that_would_never_draw_something_are_refused(wrong: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        probabilities(Difficulty(**wrong), rates(0.0, 0.5, 1.0, 0.5), EVEN)


@pytest.fixture
def lines(tmp_path: Path) -> Jsonl:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"number {k}?", "answer": str(k)}) + "\n" for k in range(60)))
    return Jsonl(str(path), prompt_width=24, completion_width=24, heldout_share=0.2)


def test_a_class_of_a_file_is_a_training_line(lines: Jsonl):
    every = lines.drawable(0, np.arange(3))
    count = len(lines.class_shares())
    assert isinstance(lines, Classed) and sorted(every.row.tolist()) == sorted(set(lines.draw(0, np.arange(500)).row))
    assert lines.class_shares().tolist() == [1 / count] * count and not lines.is_heldout(every).any()
    classes = np.array([5, 0, 5, count - 1])
    found = lines.draw_class(3, np.array([70, 71, 72, 73]), classes)
    assert found.row.tolist() == [every.row[k] for k in classes] and found.draw.tolist() == [70, 71, 72, 73]
    assert lines.class_of(np.asarray(found.row)).tolist() == classes.tolist()


def test_a_class_of_a_mixture_is_a_part():
    parts = {"short": Chain(operands=3, operators="+"), "adding": Addition(digits=3), "long": Chain(operands=7)}
    task = Mixture(parts, {"short": 0.5, "adding": 0.2, "long": 0.3})
    assert isinstance(task, Classed) and not isinstance(parts["long"], Classed)
    np.testing.assert_allclose(task.class_shares(), [0.2, 0.3, 0.5], rtol=1e-12)  # adding, long, short
    classes, draws = np.array([2, 0, 0, 1]), np.array([9, 10, 3, 3])
    found = task.draw_class(4, draws, classes)
    own = [
        parts[name].draw(4, np.array([k])) for name, k in zip(("short", "adding", "adding", "long"), draws, strict=True)
    ]
    for index, prompts in enumerate(own):
        width = prompts.tokens.shape[1]
        np.testing.assert_array_equal(found.tokens[index, :width], prompts.tokens[0])
    assert task.class_of(np.asarray(found.row)).tolist() == classes.tolist() and found.draw.tolist() == draws.tolist()
    # The classes that the mixture names by itself give what it draws by itself.
    plain = task.draw(4, np.arange(50))
    same = task.draw_class(4, np.arange(50), task.class_of(np.asarray(plain.row)))
    np.testing.assert_array_equal(same.tokens, plain.tokens)
    every = task.drawable(4, np.arange(5))
    assert sorted(every.draw.tolist()) == sorted([*range(5)] * 3)
    assert task.class_of(np.asarray(every.row)).tolist() == [0] * 5 + [1] * 5 + [2] * 5
