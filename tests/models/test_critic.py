"""Values of states: by hand, against the plain pass, in every layout, and what a critic leaves alone."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig, critic
from grpo_jax.types import Prompts, Rollouts

P, G, S, T, V = 3, 4, 5, 6, 11
HEAD = ModelConfig(
    vocab=V,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    hidden=24,
    positions=20,
    rope_theta=50.0,
    head_std=0.5,
    critic="head",
)
TOWER = dataclasses.replace(HEAD, critic="tower")
KINDS = {"head": HEAD, "tower": TOWER}
KEY = jax.random.key(0)
init = functools.partial(jax.jit, static_argnums=1)(models.init)


def moved(config: ModelConfig) -> dict:
    """Parameters in which the critic is no longer at its beginning, and its tower not the policy."""
    rng = np.random.default_rng(1)
    params = dict(init(KEY, config))
    params["critic"] = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params["critic"])
    return params


def rollouts_of(order: np.ndarray | None = None) -> Rollouts:
    """Rows of all lengths for prompts of lengths 5, 1 and 3, in this order."""
    rng = np.random.default_rng(0)
    rows = np.arange(P * G) if order is None else order
    length, tokens = rng.integers(1, T + 1, P * G)[rows], rng.integers(0, V, (P * G, T))[rows]
    prompts = Prompts(
        tokens=jnp.asarray(rng.integers(0, V, (P, S)), jnp.int32),
        length=jnp.asarray([S, 1, 3]),
        draw=jnp.arange(P),
        row=jnp.arange(P),
    )
    return Rollouts(
        prompts=prompts,
        prompt=jnp.asarray(rows // G, jnp.int32),
        sample=jnp.asarray(rows % G, jnp.int32),
        tokens=jnp.asarray(tokens, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        stopped=jnp.zeros(len(rows), bool),
        mask=jnp.arange(T)[None] < jnp.asarray(length)[:, None],
        logp=jnp.zeros((len(rows), T)),
        logp_full=jnp.zeros((len(rows), T)),
        version=jnp.zeros(len(rows), jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("config", "chunk", "want"))
def stats_of(params, config, rollouts, chunk=None, want=("value",)):
    return models.logprobs(params, config, rollouts, temperature=0.7, want=want, group_size=G, chunk=chunk)


def plain(params, config, rollouts):
    """Values f32[N, T] by the plain pass over every completion behind its own copy of the prompt."""
    start = rollouts.prompts.length[rollouts.prompt][:, None]
    column = jnp.arange(S + T)[None]
    text = jnp.take_along_axis(rollouts.tokens, jnp.clip(column - start, 0, T - 1), 1)
    question = rollouts.prompts.tokens[rollouts.prompt][:, jnp.minimum(column[0], S - 1)]
    tokens = jnp.where(column < start, question, text)
    found = models.values(params, config, tokens, column < start + rollouts.length[:, None])
    # The state before token t is the one behind the token before it, the last of the prompt for t = 0.
    found = jnp.take_along_axis(found, start - 1 + jnp.arange(T)[None], axis=1)
    return jnp.where(rollouts.mask, found, 0)


def test_a_value_by_hand():
    """x = (3, -3, 3, -3) has mean square 9, so the norm turns it into (1, -1, 1, -1), times the scale 2."""
    config = ModelConfig(vocab=2, width=4, layers=1, heads=1, kv_heads=1, head_width=4, hidden=4, norm_eps=0.0)
    params = {"norm": jnp.full(4, 2.0), "critic": {"weight": jnp.array([1.0, 2.0, 3.0, 5.0]), "bias": jnp.array(0.5)}}
    found = critic.value(params, jnp.array([[3.0, -3.0, 3.0, -3.0]]), config)
    np.testing.assert_allclose(found, [2 * (1 - 2 + 3 - 5) + 0.5])


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_their_gradient_are_those_of_the_plain_pass(kind):
    config, rollouts = KINDS[kind], rollouts_of()
    params = moved(config)
    weight = jnp.sin(jnp.arange(P * G * T, dtype=jnp.float32)).reshape(P * G, T)

    def loss(params, of):
        found = of(params)
        return jnp.sum(weight * found), found

    def fast(params):
        return models.logprobs(params, config, rollouts, temperature=0.7, want=("value",), chunk=7).value

    def twin(params):
        return plain(params, config, rollouts)

    both = jax.jit(lambda params: [jax.grad(loss, has_aux=True)(params, of) for of in (fast, twin)])
    (gradient, found), (expected_gradient, expected) = both(params)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.count_nonzero(expected) == int(rollouts.length.sum())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-5), gradient, expected_gradient)
    policy = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(models.without_critic(gradient)))
    assert policy > 0.1 if kind == "head" else policy == 0.0  # a tower shares nothing with the policy
    assert float(jnp.abs(gradient["critic"]["bias"] - weight[rollouts.mask].sum())) < 1e-4


def test_a_detached_head_learns_and_leaves_the_policy_alone():
    config = dataclasses.replace(HEAD, critic_detached=True)
    params = moved(HEAD)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(stats_of(p, config, rollouts_of()).value)))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(models.without_critic(gradient)))
    assert np.all(np.asarray(gradient["critic"]["weight"]) != 0)
    np.testing.assert_array_equal(
        stats_of(params, config, rollouts_of()).value, stats_of(params, HEAD, rollouts_of()).value
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_rows_the_chunk_and_other_wants_change_no_value(kind):
    config, order = KINDS[kind], np.random.default_rng(2).permutation(P * G)
    params = moved(config)
    expected = stats_of(params, config, rollouts_of()).value
    np.testing.assert_allclose(stats_of(params, config, rollouts_of(order)).value, expected[order], atol=1e-5)
    other = stats_of(params, config, rollouts_of(), chunk=5, want=("entropy", "value"))
    np.testing.assert_allclose(other.value, expected, atol=1e-5)
    without = dataclasses.replace(config, critic=None)
    bare = stats_of(models.without_critic(params), without, rollouts_of(), want=("entropy",))
    np.testing.assert_allclose(other.logp, bare.logp, atol=1e-5)


def test_values_alone_make_no_logits():
    """25 columns stand for the vocabulary and for nothing else."""
    config = dataclasses.replace(TOWER, vocab=25)
    params = jax.eval_shape(lambda: models.init(KEY, config))

    def text(name):
        values = jax.jit(lambda p, r: getattr(stats_of(p, config, r), name)).lower(params, rollouts_of())
        return values.compile().as_text() or ""

    made = re.compile(r"f32\[[\d,]*\b25\](?:\{[\d,]*\})? (?:dot|custom-call|fusion)\(")
    assert made.search(text("logp")) and not made.search(text("value"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_describes_the_critic_too(kind):
    config = dataclasses.replace(KINDS[kind], tied=True, param_dtype="bfloat16")
    for layout in (config, dataclasses.replace(config, stacked=True)):
        abstract = models.abstract(layout)
        made = jax.eval_shape(functools.partial(models.init, config=layout), KEY)
        assert jax.tree.structure(made) == jax.tree.structure(abstract)
        assert jax.tree.leaves(made) == jax.tree.leaves(abstract)
        ranks = jax.tree.map(lambda leaf, axes: leaf.ndim == len(axes), abstract, models.axes(layout))
        assert all(jax.tree.leaves(ranks))


def test_the_policy_is_the_one_without_a_critic_and_a_tower_begins_as_its_copy():
    bare = models.flat(init(KEY, dataclasses.replace(HEAD, critic=None)))
    for config in (HEAD, TOWER):
        params = models.flat(init(KEY, config))
        for name, leaf in bare.items():
            np.testing.assert_array_equal(params[name], leaf)
        added = set(params) - set(bare)
        np.testing.assert_array_equal(params["critic/weight"], 0)
        np.testing.assert_array_equal(params["critic/bias"], 0)
        if config is HEAD:
            assert added == {"critic/weight", "critic/bias"}
    assert added == {"critic/weight", "critic/bias"} | {f"critic/{name}" for name in bare if name != "head"}
    for name in added - {"critic/weight", "critic/bias"}:
        np.testing.assert_array_equal(params[name], bare[name.removeprefix("critic/")])


def test_a_tower_follows_the_policy_only_when_asked_and_in_buffers_of_its_own():
    params = moved(TOWER)
    begun = models.from_policy(params)
    np.testing.assert_array_equal(begun["critic"]["layers"]["1"]["up"], params["layers"]["1"]["up"])
    np.testing.assert_array_equal(begun["critic"]["weight"], params["critic"]["weight"])
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(begun)]
    assert len(set(pointers)) == len(pointers)
    head = moved(HEAD)
    assert models.from_policy(head) is head


def test_both_layouts_of_a_tower_have_the_same_values_and_names():
    stacked = dataclasses.replace(TOWER, stacked=True)
    params = moved(TOWER)
    together = models.stack(params)
    assert together["critic"]["layers"]["query"].shape == (2, 16, 4, 4)
    jax.tree.map(np.testing.assert_array_equal, dict(models.unstack(together)), params)
    assert set(models.flat(together)) == set(models.flat(params))
    np.testing.assert_allclose(
        stats_of(together, stacked, rollouts_of()).value, stats_of(params, TOWER, rollouts_of()).value, atol=1e-5
    )


def test_what_has_no_critic_tells_no_value():
    config = dataclasses.replace(HEAD, critic=None)
    with pytest.raises(ValueError, match=r"ModelConfig.critic is None; allowed are head, tower: give the model one"):
        models.logprobs(init(KEY, config), config, rollouts_of(), temperature=1.0, want=("value",))


def test_what_describes_no_critic_is_refused():
    with pytest.raises(ValueError, match=r"critic is 'body'; allowed are None, head, tower"):
        dataclasses.replace(HEAD, critic="body")
    with pytest.raises(ValueError, match=r"critic_detached is True and critic 'tower'"):
        dataclasses.replace(TOWER, critic_detached=True)
