"""What strategies declare: the optional fields that they read and what they remember."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax import advantages as a
from grpo_jax.advantages.strategy import counted, given, to_tokens
from grpo_jax.objectives.description import wants
from grpo_jax.testing.rows import NOWHERE, ROWS, tiny_collected, tiny_labels


def test_what_is_read_is_found_through_every_binding():
    assert a.fields_read(a.group_standardized) == ()
    inner = partial(a.whitened, advantage=partial(a.gae, rewards="token"))
    assert a.fields_read(partial(a.penalized_tokens, advantage=inner)) == ("logp_ref", "value_old")
    assert a.fields_read(a.weighted_components) == ("components",)
    with pytest.raises(ValueError, match="reads: got 'values', allowed components, greedy"):
        a.reads("values")


def test_a_reference_is_asked_for_as_a_term_asks_for_it():
    assert wants(partial(a.penalized_tokens, advantage=a.gae)) == ("logp_ref",)
    assert wants(a.gae) == ()


def test_memory_begins_with_the_settings_that_are_bound():
    assert a.initial_memory(a.gae) == {}
    memory = a.initial_memory(partial(a.whitened, advantage=partial(partial(a.role_baseline, roles=5), decay=0.5)))
    assert {name: (x.shape, x.dtype) for name, x in memory.items()} == {"role_baseline": ((5,), jnp.float32)}
    assert a.initial_memory(a.role_baseline)["role_baseline"].shape == (2,)


def needless(collected, labels, memory):
    return a.group_centered(collected, labels, memory)


def test_every_entry_that_lacks_a_field_says_which_and_what_to_do():
    collected = tiny_collected()
    rollouts = collected.rollouts.replace(prompts=collected.rollouts.prompts.replace(label={}))
    reward = collected.reward.replace(token=None, components={}, step_end=None, greedy=None)
    bare = collected.replace(rollouts=rollouts, reward=reward, value_old=None, logp_ref=None, sum_pi_squared=None)
    needy = {name: f for name, f in a.ADVANTAGES.items() if a.fields_read(f)}
    needy["penalized_tokens"] = partial(a.penalized_tokens, advantage=needless)
    assert len(needy) == 9
    for name, strategy in needy.items():
        with pytest.raises(ValueError, match=r"got .*allowed .*:"):
            strategy(bare, tiny_labels(), a.initial_memory(strategy))
        assert a.fields_read(strategy), name
    for name in a.ADVANTAGES.keys() - needy.keys():
        assert a.ADVANTAGES[name](bare, tiny_labels(), {})[0].shape == bare.rollouts.mask.shape


def test_the_number_of_a_row_stands_on_its_trained_tokens():
    collected = tiny_collected()
    got = to_tokens(jnp.arange(12.0), collected)
    np.testing.assert_array_equal(got, np.where(collected.rollouts.mask, np.arange(12.0)[:, None], 0.0))
    expected = np.asarray(collected.rollouts.mask) & ~np.asarray(NOWHERE)[:, None]
    np.testing.assert_array_equal(counted(collected, tiny_labels()), expected)


def test_a_field_that_is_there_is_handed_on():
    array = jnp.ones(3)
    assert given(array, "Reward.greedy", "mine", "sample greedily") is array
    with pytest.raises(ValueError, match=r"Reward\.greedy: got None, which mine reads; .*sample greedily"):
        given(None, "Reward.greedy", "mine", "sample greedily")


@pytest.mark.slow
def test_rows_on_several_devices_get_the_numbers_of_one():
    """Every entry, on rows that four devices share; tied rewards are exactly 0 there too."""
    collected = tiny_collected(labels=("role",))
    strategies = {**a.ADVANTAGES, "role_baseline": partial(a.role_baseline, roles=8)}
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",))

    def shared(x):
        spec = P("rows") if x.ndim and x.shape[0] == ROWS else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    @jax.jit
    def answers(collected, labels):
        return {name: f(collected, labels, a.initial_memory(f))[0] for name, f in strategies.items()}

    one = answers(collected, tiny_labels())
    four = answers(jax.tree.map(shared, collected), shared(tiny_labels()))
    for name in strategies:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-5, atol=1e-6, err_msg=name)
    tied = np.asarray(tiny_labels()) == 3
    for name in ("group_standardized", "group_leave_one_out", "opo", "gdpo", "maxrl", "optimal_token_baseline"):
        np.testing.assert_array_equal(np.asarray(four[name])[tied], 0.0, err_msg=name)
