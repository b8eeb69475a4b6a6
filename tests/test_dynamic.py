"""Groups over rounds, by hand: which are informative, which are trained on, which wait, and that none is lost."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import dynamic
from grpo_jax.dynamic import Dynamic, Groups
from grpo_jax.types import Array, Prompts, Reward, Rollouts

P, G, T = 3, 2, 4
gathered = jax.jit(functools.partial(dynamic.gathered, group_size=G))
closed, opened = jax.jit(dynamic.closed), jax.jit(dynamic.opened, static_argnames="max_age")


def i32(*values: int) -> Array:
    return jnp.asarray(values, jnp.int32)


def sampled(
    rewards: Sequence[Sequence[float]], *, draw: int, version: int = 0, order: Sequence[int] | None = None
) -> tuple[Rollouts, Reward, Mapping[str, Array]]:
    """Rows of prompts with these rewards, numbered from `draw`; token 0 of a row is 100 * draw + sample.

    A reward of nan stands for a row that could not be scored. `order` are the places of the rows in the record.
    """
    prompts, group = len(rewards), len(rewards[0])
    at = np.arange(prompts * group) if order is None else np.asarray(order)
    prompt, sample = (np.repeat(np.arange(prompts), group)[at], np.tile(np.arange(group), prompts)[at])
    outcome = np.asarray(rewards, np.float32).reshape(-1)[at]
    valid = ~np.isnan(outcome)
    first = 100 * (draw + prompt) + sample
    ones = jnp.ones((len(at), T), jnp.float32)
    rollouts = Rollouts(
        prompts=Prompts(
            tokens=jnp.ones((prompts, 2), jnp.int32),
            length=jnp.ones(prompts, jnp.int32),
            draw=draw + jnp.arange(prompts, dtype=jnp.int32),
            row=7 * (draw + jnp.arange(prompts, dtype=jnp.int32)),
            label={"kind": jnp.arange(prompts, dtype=jnp.int32) % 2},
        ),
        prompt=jnp.asarray(prompt, jnp.int32),
        sample=jnp.asarray(sample, jnp.int32),
        tokens=jnp.asarray(first[:, None] + np.arange(T)[None], jnp.int32),
        length=jnp.full(len(at), T, jnp.int32),
        stopped=jnp.ones(len(at), bool),
        mask=jnp.ones((len(at), T), bool),
        logp=-ones,
        logp_full=-2 * ones,
        version=jnp.full(len(at), version, jnp.int32),
    )
    reward = Reward(
        outcome=jnp.asarray(np.nan_to_num(outcome)),
        valid=jnp.asarray(valid),
        components={"accuracy": jnp.asarray(np.nan_to_num(outcome))},
    )
    return rollouts, reward, {"accuracy": jnp.asarray(sample % 2, jnp.int32)}


def nothing() -> Groups:
    return dynamic.empty(dynamic.grouped(*sampled([[0, 0]] * P, draw=0), group_size=G))


def draws(held: Groups) -> list[int]:
    """Numbers of the draws of the informative groups held, in order."""
    return np.asarray(held.rollouts.prompts.draw)[np.asarray(held.informative)].tolist()


MIXED, SOLVED, FAILED = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        pytest.param([1.0, 0.0, 0.0], True, id="one of three"),
        pytest.param([1.0, 1.0, 1.0], False, id="all solved"),
        # In float32 the mean of three 0.85 is not 0.85, so their deviation is not 0.
        pytest.param([0.85, 0.85, 0.85], False, id="equal, of no exact mean"),
        pytest.param([0.85, float(np.nextafter(np.float32(0.85), np.float32(1))), 0.85], True, id="the next float"),
        pytest.param([1.0, float("nan"), 1.0], False, id="another could not be scored"),
        pytest.param([1.0, float("nan"), float("nan")], False, id="one is left"),
        pytest.param([float("nan")] * 3, False, id="none is left"),
    ],
)
def test_a_group_is_informative_unless_its_valid_rewards_are_exactly_equal(rewards: list[float], expected: bool):
    rollouts, reward, _ = sampled([rewards, [0.0, 1.0, 2.0]], draw=0)
    assert dynamic.informative(rollouts, reward).tolist() == [expected, True]


def test_a_component_may_be_asked_instead_and_one_without_a_value_is_not():
    rollouts, reward, _ = sampled([[1.0, 1.2], [1.0, 0.0], [1.0, 0.0]], draw=0)
    nan = float("nan")
    reward = dataclasses.replace(reward, components={"accuracy": jnp.asarray([1.0, 1.0, 1.0, 0.0, 1.0, nan])})
    assert dynamic.informative(rollouts, reward, component="accuracy").tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"train.dynamic.component: got 'acuracy', allowed None and 'accuracy'"):
        dynamic.informative(rollouts, reward, component="acuracy")


def test_rounds_fill_a_step_and_what_is_left_over_comes_first_at_the_next():
    # Step 5: draws 0 to 2 bring one informative group, draws 3 to 5 three: four for three places.
    held, told = opened(nothing(), i32(5)[0])
    assert int(told["informative"]) == int(told["expired"]) == 0
    held, told = gathered(held, *sampled([SOLVED, MIXED, FAILED], draw=0, version=5))
    assert (int(told["informative"]), int(told["found"])) == (1, 1)
    assert float(told["sum"]["reward"]) == 3.0 and float(told["count"]["reward"]) == 6.0
    assert int(told["tokens"]) == 6 * T
    held, told = gathered(held, *sampled([MIXED, MIXED, MIXED], draw=3, version=5))
    assert (int(told["informative"]), int(told["found"])) == (4, 3)
    trained, kept, told = closed(held, i32(5)[0])
    assert draws(trained) == [1, 3, 4] and draws(kept) == [5]
    assert {name: int(count) for name, count in told.items()} == {"filled": 0, "surplus": 1, "stale": 0}
    # Step 6: draw 5 waits already, so a round with two of three is enough for it.
    held, told = opened(kept, i32(6)[0])
    assert int(told["informative"]) == 1
    held, told = gathered(held, *sampled([MIXED, SOLVED, MIXED], draw=6, version=6))
    assert int(told["informative"]) == 3
    trained, kept, told = closed(held, i32(6)[0])
    assert draws(trained) == [5, 6, 8] and draws(kept) == []
    assert {name: int(count) for name, count in told.items()} == {"filled": 0, "surplus": 0, "stale": 1}
    assert trained.rollouts.version.tolist() == [5, 5, 6, 6, 6, 6]


def test_every_field_of_a_row_moves_with_its_group():
    held, _ = opened(nothing(), i32(0)[0])
    held, _ = gathered(held, *sampled([SOLVED, [0.25, 0.5], FAILED], draw=0))
    held, _ = gathered(held, *sampled([FAILED, [0.5, 0.75], MIXED], draw=3))
    trained, _, _ = closed(held, i32(0)[0])
    rows = trained.rollouts
    assert draws(trained) == [1, 4, 5] and rows.prompt.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows.tokens[:, 0].tolist() == [100, 101, 400, 401, 500, 501] and rows.tokens[3].tolist() == [
        401,
        402,
        403,
        404,
    ]
    assert rows.sample.tolist() == [0, 1] * 3 and rows.prompts.row.tolist() == [7, 28, 35]
    assert rows.prompts.label["kind"].tolist() == [1, 1, 0]
    assert trained.reward.outcome.tolist() == [0.25, 0.5, 0.5, 0.75, 1.0, 0.0]
    assert trained.reward.components["accuracy"].tolist() == trained.reward.outcome.tolist()
    assert trained.status["accuracy"].tolist() == [0, 1] * 3 and trained.reward.valid.all()


def test_rows_need_not_stand_in_the_order_of_their_prompts():
    mixed, straight = ([4, 1, 2, 0, 3, 5], None)
    one, other = (
        dynamic.grouped(*sampled([MIXED, SOLVED, [0.0, 2.0]], draw=0, order=order), group_size=G)
        for order in (mixed, straight)
    )
    # Rows of a prompt keep their order: here the second sample of prompt 0 stands before the first.
    np.testing.assert_array_equal(one.rollouts.tokens[:, 0], [1, 0, 100, 101, 200, 201])
    np.testing.assert_array_equal(one.reward.outcome, [0.0, 1.0, 1.0, 1.0, 0.0, 2.0])
    np.testing.assert_array_equal(one.informative, other.informative)


def test_places_that_stay_open_hold_refused_groups_that_count_nowhere():
    held, _ = opened(nothing(), i32(0)[0])
    held, _ = gathered(held, *sampled([SOLVED, SOLVED, FAILED], draw=0))
    held, _ = gathered(held, *sampled([FAILED, FAILED, MIXED], draw=3))
    trained, kept, told = closed(held, i32(0)[0])
    assert draws(trained) == [5] and draws(kept) == [] and int(told["filled"]) == 2
    assert trained.reward.valid.tolist() == [True, True, False, False, False, False]
    # They are groups of the last round, so that every place holds prompts that can be read.
    assert trained.rollouts.prompts.draw.tolist() == [5, 3, 4] and trained.rollouts.prompts.length.min() == 1


def test_a_group_that_is_too_old_is_dropped_and_counted():
    full = sampled([MIXED, MIXED, MIXED], draw=0, version=5)
    held, _ = gathered(opened(nothing(), i32(5)[0])[0], *full)
    held, _ = gathered(held, *sampled([MIXED, FAILED, MIXED], draw=3, version=5))
    _, kept, _ = closed(held, i32(5)[0])
    assert draws(kept) == [3, 5]
    for step, max_age, left in ((6, 1, 2), (6, 0, 0), (7, 1, 0), (7, 2, 2), (5, 0, 2)):
        held, told = opened(kept, i32(step)[0], max_age=max_age)
        assert (int(told["informative"]), int(told["expired"])) == (left, 2 - left), (step, max_age)
        assert draws(held) == [3, 5][:left]


def test_what_is_kept_goes_through_the_memory_of_a_state_and_places_without_a_group_hold_nothing():
    held, _ = gathered(opened(nothing(), i32(0)[0])[0], *sampled([MIXED, MIXED, MIXED], draw=4, version=2))
    held, _ = gathered(held, *sampled([FAILED, MIXED, SOLVED], draw=7, version=2))
    _, kept, _ = closed(held, i32(2)[0])
    memory = dynamic.to_memory(kept)
    assert all(name.startswith("dynamic.") for name in memory) and "dynamic.rollouts.prompts.label.kind" in memory
    back = dynamic.from_memory({**memory, "another": i32(0)}, nothing())
    jax.tree.map(np.testing.assert_array_equal, back, kept)
    assert draws(back) == [8] and back.rollouts.prompts.draw.tolist() == [8, 0, 0]
    assert back.rollouts.tokens[2:].sum() == 0 and not back.reward.valid[2:].any()


def test_no_informative_group_is_lost_or_trained_on_twice():
    rng, kept, step = np.random.default_rng(0), nothing(), 0
    sampled_draws: list[int] = []
    trained_draws: list[int] = []
    for step in range(40):
        held, told = opened(kept, i32(step)[0])
        for _ in range(3):
            rewards = rng.integers(0, 2, (P, G)).astype(float).tolist()
            begin = len(sampled_draws)
            sampled_draws += [0 if a == b else 1 for a, b in rewards]
            held, told = gathered(held, *sampled(rewards, draw=begin, version=step))
            if int(told["informative"]) >= P:
                break
        trained, kept, _ = closed(held, i32(step)[0])
        assert int(told["informative"]) < 2 * P and len(draws(kept)) < P
        trained_draws += draws(trained)
    assert trained_draws + draws(kept) == [number for number, good in enumerate(sampled_draws) if good]


def test_choices_of_experts_stay_with_their_rows():
    """Two rounds of rows in another order; the choices are the tokens, and the layer is added."""

    def routed(draw: int, rewards: Sequence[Sequence[float]], order: Sequence[int]) -> Any:
        rollouts, *rest = sampled(rewards, draw=draw, order=order)
        layers = jnp.arange(2, dtype=jnp.int32)[:, None, None, None]
        return rollouts.replace(experts=rollouts.tokens[None, :, :, None] + layers), *rest

    first = routed(0, [MIXED, SOLVED, MIXED], [5, 2, 3, 0, 4, 1])
    kept = dynamic.empty(dynamic.grouped(*first, group_size=G))
    held, _ = opened(kept, i32(0)[0])
    for rows in (first, routed(P, [FAILED, MIXED, MIXED], [1, 0, 3, 2, 5, 4])):
        held, _ = gathered(held, *rows)
    trained, kept, _ = closed(held, i32(0)[0])
    assert (draws(trained), draws(kept)) == ([0, 2, 4], [5])
    for groups in (trained, dynamic.from_memory(dynamic.to_memory(kept), kept)):
        there = np.repeat(np.asarray(groups.informative), G)
        for layer, chosen in enumerate(np.asarray(groups.rollouts.experts)):
            np.testing.assert_array_equal(chosen[there, :, 0], np.asarray(groups.rollouts.tokens)[there] + layer)
        assert there.any()


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"max_age": -1}], ids=["rounds", "max_age"])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"train.dynamic.{name}: got {value}, allowed >= "):
        Dynamic(**wrong)
