"""Rotations in both forms of config.json."""

from typing import Any

import pytest

from grpo_jax.models import RopeScaling
from grpo_jax.models.fields import Fields
from grpo_jax.models.rope_fields import read_one, read_two, write_one


def one(context: int = 64, **content: Any) -> dict[str, Any]:
    fields = Fields(content, where="config.json")
    found = read_one(fields, theta=1e4, context=context)
    fields.close()
    return found


def two(**content: Any) -> dict[str, Any]:
    fields = Fields(content, where="config.json")
    found = read_two(fields, theta=1e6, local_theta=1e4, context=64)
    fields.close()
    return found


def test_a_base_is_read_where_it_stands():
    plain = {"rope_theta": 1e4, "rope_scaling": None}
    assert one() == one(rope_scaling=None) == one(rope_parameters={"rope_type": "default"}) == plain
    other = {"rope_theta": 5e5, "rope_scaling": None}
    assert one(rope_theta=500000) == one(rope_parameters={"rope_theta": 5e5}) == other
    assert one(rope_theta=5e5, rope_scaling={"type": "default"}) == other


LINEAR = RopeScaling(kind="linear", factor=4.0)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_positions=32, low_frequency=1.0, high_frequency=4.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_positions=16)
RULES: dict[str, tuple[dict[str, Any], RopeScaling]] = {
    "linear": ({"type": "linear", "factor": 4}, LINEAR),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 2.0},  # from the longest sequence on, which is 64
        RopeScaling(kind="dynamic", factor=2.0, original_positions=64),
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        LLAMA3,
    ),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, YARN),
    "yarn_without_a_factor": (
        {"type": "yarn", "factor": None, "original_max_position_embeddings": 16},  # 64 / 16
        YARN,
    ),
    "yarn_in_full": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.5,
            "mscale_all_dim": 0.7,
            "attention_factor": 1.2,
            "truncate": False,
        },
        RopeScaling(
            kind="yarn",
            factor=4.0,
            original_positions=16,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.5,
            mscale_all_dim=0.7,
            attention_factor=1.2,
            truncate=False,
        ),
    ),
    "longrope": (
        {"type": "longrope", "short_factor": [1, 1.5], "long_factor": [2.0, 3], "original_max_position_embeddings": 8},
        RopeScaling(kind="longrope", factor=8.0, original_positions=8, short_factor=(1.0, 1.5), long_factor=(2.0, 3.0)),
    ),
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_read_in_both_forms_and_written_in_the_newer_one(name: str):
    content, wanted = RULES[name]
    assert one(rope_theta=7.0, rope_scaling=content) == {"rope_theta": 7.0, "rope_scaling": wanted}
    assert one(rope_parameters={**content, "rope_theta": 7.0}) == {"rope_theta": 7.0, "rope_scaling": wanted}
    assert one(rope_parameters=write_one(7.0, wanted)) == {"rope_theta": 7.0, "rope_scaling": wanted}


def test_layers_with_a_window_have_a_base_of_their_own():
    wanted = {"rope_theta": 1e6, "rope_scaling": LINEAR, "local_rope_theta": 5.0}
    scaled = {"rope_type": "linear", "factor": 4.0}
    assert two(rope_scaling=scaled, rope_local_base_freq=5.0) == wanted
    both = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}}
    assert two(rope_parameters=both) == wanted
    assert two() == {"rope_theta": 1e6, "rope_scaling": None, "local_rope_theta": 1e4}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown_rule": ({"rope_scaling": {"type": "su", "factor": 2}}, "rope_scaling.type: got 'su', allowed default,"),
    "no_factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: got None"),
    "short_factor": ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5; allowed is 1 or more"),
    "unread": ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast: got 3"),
    "sections": ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section: got"),
    "partial": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: got 0.5"),
    "bases": ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta: got 2.0, allowed 1.0"),
    "two_names": ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2}}, "what rope_type says"),
    "no_object": ({"rope_scaling": "linear"}, "rope_scaling: got 'linear', allowed an object"),
    "no_list": ({"rope_scaling": {"type": "longrope", "short_factor": 1, "long_factor": [1]}}, "short_factor: got 1"),
    "by_layer": ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention: got"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_rule_that_is_not_known_exactly_is_refused(name: str):
    content, message = BAD[name]
    with pytest.raises(ValueError, match=r"config.json") as caught:
        one(**content)
    assert message in str(caught.value)


def test_rules_of_two_kinds_of_layers_are_checked():
    with pytest.raises(ValueError, match="rotations without scaling"):
        two(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}})
    with pytest.raises(ValueError, match=r"rope_parameters.rope_theta: got 5.0"):
        two(rope_parameters={"rope_theta": 5.0})
