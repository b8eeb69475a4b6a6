"""Parameters in two parts: nothing is lost, copied or in both, and patterns that do nothing are refused."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import parts
from tests.laws.tiny import MODEL

TREE = {"embed": 1, "layers": {"0": {"query": 2, "query_bias": 3}, "1": {"query": 4}}}
STACKED = dataclasses.replace(MODEL, stacked=True)


def test_a_tree_is_divided_by_names_and_joined_again():
    some, others = models.divide(TREE, {"layers/0/query", "layers/1/query"}.__contains__)
    assert some == {"layers": {"0": {"query": 2}, "1": {"query": 4}}}
    assert others == {"embed": 1, "layers": {"0": {"query_bias": 3}}}
    assert models.join(some, others) == models.join(others, some) == TREE
    assert models.join({}, TREE) == TREE and models.join(TREE, None) is TREE


def test_joining_copies_no_array():
    params = models.init(jax.random.key(0), MODEL)
    joined = models.join(*models.divide(params, models.trained(MODEL, ("embed", "layers/1/*"))))
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True))


def test_an_array_in_both_parts_is_refused():
    with pytest.raises(ValueError, match="got layers/0/query in the trained part and in the frozen one"):
        models.join({"layers": {"0": {"query": 1}}}, {"layers": {"0": {"query": 2}}})


def test_a_star_stands_for_any_characters_and_a_name_has_to_match_whole():
    trained = models.trained(MODEL, ("layers/*/query", "head"))
    names = parts.names(models.abstract(MODEL))
    assert sorted(name for name in names if not trained(name)) == ["head", "layers/0/query", "layers/1/query"]


@pytest.mark.parametrize("frozen", [("layers/*/query",), ("layers/[01]/up", "embed")])
def test_names_are_the_same_for_stacked_layers(frozen: tuple[str, ...]):
    apart, stacked = (
        models.divide(models.init(jax.random.key(0), config), models.trained(config, frozen))
        for config in (MODEL, STACKED)
    )
    for one, other in zip(apart, stacked, strict=True):
        assert set(parts.names(one)) == set(parts.names(other))
    joined = models.stack(models.join(*apart))
    jax.tree.map(np.testing.assert_array_equal, joined, models.join(*stacked))


def test_a_pattern_that_splits_a_stack_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"got layers/1/query to train and other layers .* set model.stacked=False"):
        models.trained(STACKED, ("layers/0/query",))
    models.trained(MODEL, ("layers/0/query",))


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(ValueError, match=re.escape("'layers/*/qeury', which matches no parameter")) as refused:
        models.trained(MODEL, ("layers/*/qeury",))
    assert re.search("the nearest name is layers/[01]/query:", str(refused.value))


def test_a_policy_of_which_nothing_is_trained_is_refused():
    with pytest.raises(ValueError, match="leaves nothing of the policy to train"):
        models.trained(dataclasses.replace(MODEL, critic="head"), ("embed", "norm", "head", "layers/*"))


def test_the_like_of_a_part_is_what_a_tree_has_at_its_places():
    some, _ = models.divide(models.init(jax.random.key(0), MODEL), models.trained(MODEL, ("layers/*",)))
    axes = models.like(models.axes(MODEL), some)
    assert axes == {"embed": ("vocab", "embed"), "norm": ("embed",), "head": ("embed", "vocab")}
