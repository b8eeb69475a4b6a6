"""What was recorded reaches its layer, its row and its token, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import arrange, experts, replay
from grpo_jax.models.table import is_unstacked
from grpo_jax.types import Array
from tests.laws import tiny

L, P, G, T, K = 2, 3, 2, 4, 2
CONFIG = dataclasses.replace(tiny.MODEL, gated=True, experts=4, experts_per_token=K, expert_hidden=6)
RECORDED = np.arange(L * P * G * T * K, dtype=np.int32).reshape(L, P, G, T, K)


@pytest.mark.parametrize("stacked", [False, True])
def test_every_layer_finds_its_own_behind_the_tokens_of_its_prompts(stacked):
    params = {"layers": {"query": jnp.zeros((L, 1))} if stacked else {str(i): {"query": i} for i in range(L)}}
    found = replay.attach(params, jnp.asarray(RECORDED), 3)["layers"]
    assert is_unstacked(found) is not stacked
    for layer in range(L):
        own = found[replay.RECORDED][layer] if stacked else found[str(layer)][replay.RECORDED]
        own = np.asarray(own).reshape(P, 3 + G * T, K)
        assert (own[:, :3] == experts.NONE).all()
        np.testing.assert_array_equal(own[:, 3:], RECORDED[layer].reshape(P, G * T, K))
    assert replay.attach(params, None, 3) is params


def test_rows_are_brought_into_the_order_of_prompts():
    """Rows of two layers; the second prompt has one row only, in whose second place nothing is recorded."""
    rollouts = tiny.rows().replace(experts=np.array([[[[7]], [[8]], [[9]]], [[[4]], [[5]], [[6]]]], np.int32))
    places = arrange.arrange(jnp.array([1, 0, 0], jnp.int32), 2, 2)
    found = replay.placed(rollouts, places)
    assert found is not None
    np.testing.assert_array_equal(found[..., 0, 0], [[[8, 9], [7, -1]], [[5, 6], [4, -1]]])
    assert replay.placed(tiny.rows(), places) is None


def test_choices_are_compared_as_sets():
    own = jnp.array([[0, 1], [0, 1], [0, 1], [0, 1]])
    recorded = jnp.array([[1, 0], [1, 2], [2, 3], [-1, -1]])
    np.testing.assert_array_equal(replay.differing(own, recorded), [0, 1, 2, 0])
    total = jnp.array([5.0, 5.0, 5.0, 5.0])
    np.testing.assert_array_equal(replay.counted(total, own, recorded), [5, 6, 7, 5])
    assert replay.counted(total, None, recorded) is total and replay.counted(None, own, recorded) is None


def test_a_share_is_that_of_the_choices_in_layers_with_experts():
    config = dataclasses.replace(CONFIG, layers=3, dense_layers=(1,))
    found = replay.share(jnp.array([0.0, 1.0, 4.0]), config, (3, 1))
    np.testing.assert_array_equal(found, [[0], [1 / 4], [1]])  # two layers of two choices
    assert replay.share(None, config, (3, 1)) is None


def test_a_policy_says_how_many_choices_it_would_have_made_otherwise():
    """The recorded choices are the policy's own but for one of 2 * 2 at one token of row 5."""
    params = jax.jit(lambda: models.init(jax.random.key(0), CONFIG))()
    rollouts = jax.tree.map(jnp.asarray, tiny.rows())
    nothing = np.full((L, *rollouts.tokens.shape, K), experts.NONE, np.int32)

    def share(recorded: Array) -> Array | None:
        rows = rollouts.replace(experts=recorded)
        given = {"temperature": 1.0, "want": ("replaced",), "replay": False}
        return models.logprobs(params, CONFIG, rows, **given).replaced

    run = jax.jit(share)
    np.testing.assert_array_equal(run(nothing), 0)
    # Whichever two of four it chooses: of all pairs {0, e} some have both, some one and some none of them.
    found = []
    for e in (1, 2, 3):
        one = nothing.copy()
        one[1, 5, 0] = [0, e]
        found.append(np.asarray(run(one)))
        assert set(np.unique(np.delete(found[-1], 5, axis=0))) == {0.0}
        assert not found[-1][5, 1:].any()
    values = sorted(x[5, 0] for x in found)
    assert values in ([0.0, 0.25, 0.25], [0.25, 0.25, 0.5])
