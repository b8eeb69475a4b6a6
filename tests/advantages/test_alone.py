"""Which strategies can learn from one completion of a prompt."""

from functools import partial

import pytest

from grpo_jax import advantages as a

TOGETHER = (
    "group_standardized group_centered group_leave_one_out opo gpg maxrl passk passk_max_minus_second"
    " weighted_components gdpo reinforce_pp_baseline optimal_token_baseline"
).split()
"""They compare the completions of a prompt with each other."""
BY_ROLE = "role_baseline"  # reads a label that no row has to have


@pytest.mark.parametrize("name", sorted(a.ADVANTAGES))
def test_an_advantage_of_comparisons_within_a_group_learns_nothing_from_one_row(name: str):
    assert a.learns_alone(a.ADVANTAGES[name]) == (name not in TOGETHER)


def test_a_convention_for_groups_of_one_counts():
    assert a.learns_alone(partial(a.group_leave_one_out, singleton="raw"))
    assert not a.learns_alone(partial(a.whitened, advantage=a.group_centered))


def divided(collected, labels, memory):
    """What is no number in a group of one."""
    value, memory = a.group_centered(collected, labels, memory)
    return value / value, memory


def test_what_is_no_number_is_nothing_to_learn_from():
    assert not a.learns_alone(divided)
