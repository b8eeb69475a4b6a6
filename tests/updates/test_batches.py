"""Any cut of a batch by prompts gives the same sums, and no row is lost or counted twice on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.types import Batch, Prompts, Reward, Rollouts
from grpo_jax.updates import batches
from tests.laws.tiny import record

PROMPT = np.array([2, 0, 0, 3, 2, 1, 0, 3, 2, 1], np.int32)  # ten rows of four prompts, at most three a prompt
P, G, N, T, L = 4, 3, len(PROMPT), 2, 5
ORDER = [
    1,
    2,
    6,
    5,
    9,
    None,
    0,
    4,
    8,
    3,
    7,
    None,
]  # by prompt, rows of a prompt in their order; prompts 1 and 3 have two


def batch(prompt: np.ndarray = PROMPT, *, levels: int = 0) -> Batch:
    """Rows that carry their own number everywhere."""
    n = len(prompt)
    number, place = np.arange(n, dtype=np.int32), np.arange(n * T, dtype=np.float32).reshape(n, T)
    asked = np.arange(P, dtype=np.int32)
    rollouts = record(
        Rollouts,
        prompts=record(Prompts, tokens=asked[:, None], length=np.ones(P, np.int32), draw=asked, row=asked),
        prompt=prompt,
        sample=number,
        tokens=place.astype(np.int32),
        length=np.full(n, T, np.int32),
        stopped=np.ones(n, bool),
        mask=np.ones((n, T), bool),
        logp=place,
        logp_full=place,
        version=number,
        experts=np.broadcast_to(number[None, :, None, None], (L, n, T, 1)),
    )
    rows = record(
        Batch,
        rollouts=rollouts,
        mask=rollouts.mask,
        weight={"w": place + 1, "v": np.ones((n, T), np.float32)},
        advantage=place,
        logp_old=place,
        logp_behavior=place,
        group=np.stack([prompt, number, number][:levels]) if levels else prompt,
        reward=record(Reward, outcome=number.astype(np.float32), valid=np.ones(n, bool), components={"c": place[:, 0]}),
        select={"s": np.ones((n, T), bool)},
        coef={"beta": np.float32(0.1)},
    )
    return jax.tree.map(jnp.asarray, rows)


def arranged(**kwargs) -> Batch:
    return batches.arrange(batch(**kwargs), G)


def test_rows_stand_by_prompt_in_their_order():
    sample = np.asarray(arranged().rollouts.sample).reshape(-1)
    for place, row in enumerate(ORDER):
        if row is not None:
            assert sample[place] == row


def test_a_place_without_a_row_counts_nowhere():
    rows = arranged(levels=3)
    empty = np.array([row is None for row in ORDER]).reshape(P, G)
    np.testing.assert_array_equal(np.asarray(rows.mask).all(-1), ~empty)
    np.testing.assert_array_equal(np.asarray(rows.rollouts.mask).any(-1), ~empty)
    np.testing.assert_array_equal(rows.reward.valid, ~empty)
    np.testing.assert_array_equal(np.asarray(rows.rollouts.length) == 0, empty)
    for weight in rows.weight.values():
        np.testing.assert_array_equal(np.asarray(weight).any(-1), ~empty)
    np.testing.assert_array_equal((np.asarray(rows.group) == -1).all(-1), empty)


@pytest.mark.parametrize("levels", [0, 3])
def test_flat_again_every_row_is_what_it_was(levels):
    before = batch(levels=levels)
    after = batches.flatten(arranged(levels=levels), levels=levels > 0)
    kept, rows = [k for k, row in enumerate(ORDER) if row is not None], [row for row in ORDER if row is not None]
    for name in ("advantage", "logp_old", "logp_behavior", "mask"):
        np.testing.assert_array_equal(getattr(after, name)[np.array(kept)], getattr(before, name)[np.array(rows)])
    np.testing.assert_array_equal(after.weight["w"][np.array(kept)], before.weight["w"][np.array(rows)])
    np.testing.assert_array_equal(
        after.reward.components["c"][np.array(kept)], before.reward.components["c"][np.array(rows)]
    )
    np.testing.assert_array_equal(after.rollouts.prompt[np.array(kept)], before.rollouts.prompt[np.array(rows)])
    np.testing.assert_array_equal(after.group[..., np.array(kept)], before.group[..., np.array(rows)])
    experts, expected = after.rollouts.experts, before.rollouts.experts
    assert experts is not None and expected is not None and experts.shape == (L, P * G, T, 1)
    np.testing.assert_array_equal(experts[:, np.array(kept)], expected[:, np.array(rows)])
    assert after.coef == before.coef


def test_labels_of_tokens_are_not_levels():
    assert not batches.has_levels(batch())
    assert batches.has_levels(batch(levels=3))
    tokens = batch().replace(group=jnp.zeros((N, T), jnp.int32))
    assert not batches.has_levels(tokens)
    as_many_levels_as_rows = batch().replace(group=jnp.zeros((N, N), jnp.int32))
    assert batches.has_levels(as_many_levels_as_rows)
    labels = batches.flatten(batches.arrange(tokens, G), levels=False).group
    assert labels.shape == (P * G, T)


def test_minibatches_are_whole_prompts_and_sum_to_the_batch():
    rows = arranged()
    pieces = [batches.take(rows, jnp.asarray(index)) for index in ([3, 0], [1, 2])]
    np.testing.assert_array_equal(pieces[0].rollouts.prompts.draw, [3, 0])
    np.testing.assert_array_equal(pieces[0].rollouts.sample[:, :2], [[3, 7], [1, 2]])
    # the weights 1 .. 20 sum to 210, wherever they stand
    assert sum(np.asarray(piece.weight["w"]).sum() for piece in pieces) == 210.0
    assert pieces[1].coef == rows.coef


def test_micro_batches_take_every_kth_prompt():
    parts = batches.split(arranged(), 2)
    np.testing.assert_array_equal(parts.rollouts.prompts.draw, [[0, 2], [1, 3]])
    np.testing.assert_array_equal(parts.rollouts.sample[0, 0], [1, 2, 6])
    assert np.asarray(parts.weight["w"]).sum() == 210.0
    np.testing.assert_array_equal(parts.coef["beta"], np.full(2, 0.1, np.float32))
    part = jax.tree.map(lambda x: x[1], parts)
    flat = batches.flatten(part, levels=False)
    np.testing.assert_array_equal(flat.rollouts.prompt, [0, 0, 0, 1, 1, 1])  # numbered anew
    np.testing.assert_array_equal(flat.rollouts.prompts.draw, [1, 3])


def test_a_row_of_some_weight_without_a_place_spoils_every_weight():
    crowded = np.zeros(N, np.int32)
    crowded[4:] = PROMPT[4:]  # prompt 0 has five rows
    for weight in batches.arrange(batch(crowded), G).weight.values():
        assert np.isnan(weight).all()


@pytest.mark.parametrize("number", [-1, P])
def test_a_row_of_no_weight_needs_no_place(number):
    nobody = np.concatenate([PROMPT, np.full(2, number, np.int32)])
    rows = batch(nobody)
    counts = np.arange(len(nobody)) < N
    rows = rows.replace(weight={name: jnp.where(counts[:, None], w, 0) for name, w in rows.weight.items()})
    rows = batches.arrange(rows, G)
    assert np.asarray(rows.weight["w"]).sum() == 210.0
    assert not set(np.asarray(rows.rollouts.sample)[np.asarray(rows.reward.valid)]) & {N, N + 1}
