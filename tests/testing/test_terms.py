"""`check_term` accepts what the library has, and names the law that a bad function breaks."""

from functools import partial

import jax.numpy as jnp
import pytest

from grpo_jax.metrics import DIAGNOSTICS
from grpo_jax.objectives import (
    RECIPES,
    add,
    k2,
    kl_penalty,
    log_ratio,
    negative_entropy,
    negative_log_likelihood,
    ppo_clip,
    reinforce,
    reweight,
    scale,
    where,
)
from grpo_jax.testing import check_term
from grpo_jax.types import Array, Batch, TokenStats


def scalar(stats: TokenStats, batch: Batch) -> Array:
    return jnp.sum(stats.logp * batch.advantage)


def halved(stats: TokenStats, batch: Batch) -> Array:
    return reinforce(stats, batch).astype(jnp.float16)


def centred_over_the_batch(stats: TokenStats, batch: Batch) -> Array:
    return -stats.logp * (batch.advantage - jnp.mean(batch.advantage))


def reads_padding(stats: TokenStats, batch: Batch) -> Array:
    return stats.logp * jnp.sum(batch.rollouts.logp, axis=1, keepdims=True)


def mean_over_the_width(stats: TokenStats, batch: Batch) -> Array:
    return stats.logp * jnp.mean(batch.advantage, axis=1, keepdims=True)


def plain_ratio(stats: TokenStats, batch: Batch) -> Array:
    return -batch.advantage * jnp.exp(log_ratio(stats, batch))


def not_a_number(stats: TokenStats, batch: Batch) -> Array:
    return jnp.log(stats.logp) * batch.advantage


TERMS = {
    "reinforce": reinforce,
    "ppo_clip": ppo_clip,
    "dual clip": partial(ppo_clip, low=0.1, high=0.3, dual=3.0),
    "nll": negative_log_likelihood,
    "entropy": negative_entropy,
    "k2": partial(kl_penalty, estimator=k2, clamp_output=10.0),
    "added": add(reinforce, scale(negative_entropy, by=0.1), scale(kl_penalty, by="beta")),
    "chosen": where("mine", ppo_clip, reinforce),
    "reweighted": reweight(reinforce, DIAGNOSTICS["ratio/first"]),
}


SELECTIONS = ("kl_cov", "clip_cov", "top_entropy", "off_policy")
COEFFICIENTS = ("beta", "beta_old", "entropy_bonus")


@pytest.mark.parametrize("name", TERMS)
def test_the_terms_of_the_library_obey_the_laws(name: str):
    check_term(TERMS[name], select=("mine",), coef=("beta",))


@pytest.mark.parametrize("name", RECIPES)
def test_the_terms_of_every_recipe_obey_the_laws(name: str):
    for part in RECIPES[name].parts:
        check_term(part.term, select=SELECTIONS, coef=COEFFICIENTS)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_obey_the_laws_of_terms(name: str):
    check_term(DIAGNOSTICS[name])


@pytest.mark.parametrize(
    ("term", "law"),
    [
        (scalar, "one number a token"),
        (halved, "keep the input's dtype"),
        (not_a_number, "ordinary input"),
        (centred_over_the_batch, "row-local"),
        (reads_padding, "nan outside the mask"),
        (mean_over_the_width, "width of the padding"),
        (plain_ratio, "clip it before exp"),
    ],
)
def test_a_term_that_breaks_a_law_is_told_which(term, law: str):
    with pytest.raises(AssertionError, match=law):
        check_term(term)


def test_the_name_of_the_term_is_in_the_message():
    with pytest.raises(AssertionError, match="plain_ratio is not finite"):
        check_term(plain_ratio)


def test_a_select_or_coefficient_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Batch\.select has no 'mine'"):
        check_term(TERMS["chosen"])
    with pytest.raises(ValueError, match=r"Batch\.coef has no 'beta'; there are: alpha"):
        check_term(TERMS["added"], coef=("alpha",))
