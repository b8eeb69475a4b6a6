"""The fast log-probabilities against the plain forward pass of every completion behind its own copy of the prompt."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.models.logprobs import token_statistics
from grpo_jax.types import Prompts, Rollouts

P, G, S, T, V = 3, 4, 5, 6, 11
WANT = ("entropy", "hidden", "sum_pi_squared")
BASE = ModelConfig(
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
)
FAMILY = {
    "base": {},
    "gated, tied, all heads": {"gated": True, "activation": "silu", "tied": True, "kv_heads": 4, "positions": 0},
    "one layer, no rotation, plain": {"layers": 1, "rope_theta": 0.0, "activation": "relu", "backward": "plain"},
}


def rollouts_of(seed=0, prompt_width=S, width=T):
    """Rows of different lengths for prompts of different lengths; whatever pads is a token that no row ends with."""
    rng = np.random.default_rng(seed)
    prompt_length, length = np.array([S, 1, 3]), rng.integers(1, T + 1, P * G)
    tokens, text = rng.integers(0, V, (P, S)), rng.integers(0, V, (P * G, T))
    rows = np.arange(P * G)

    def padded(x, x_length, x_width):
        wide = np.full((len(x), x_width), 97, np.int32)  # no token of the vocabulary
        wide[:, : x.shape[1]] = x
        return jnp.asarray(np.where(np.arange(x_width) < x_length[:, None], wide, 97), jnp.int32)

    filled = jnp.arange(width)[None] < jnp.asarray(length)[:, None]
    return Rollouts(
        prompts=Prompts(
            tokens=padded(tokens, prompt_length, prompt_width),
            length=jnp.asarray(prompt_length, jnp.int32),
            draw=jnp.arange(P),
            row=jnp.arange(P),
        ),
        prompt=jnp.asarray(rows // G, jnp.int32),
        sample=jnp.asarray(rows % G, jnp.int32),
        tokens=padded(text, length, width),
        length=jnp.asarray(length, jnp.int32),
        stopped=jnp.zeros(P * G, bool),
        mask=filled,
        logp=jnp.zeros((P * G, width)),
        logp_full=jnp.zeros((P * G, width)),
        version=jnp.zeros(P * G, jnp.int32),
    )


def take(rollouts, rows):
    """These rows, in this order."""
    rest = {
        f.name: getattr(rollouts, f.name) for f in dataclasses.fields(rollouts) if f.name not in ("prompts", "experts")
    }
    return Rollouts(prompts=rollouts.prompts, **{name: x[jnp.asarray(rows)] for name, x in rest.items()})


def plain_logp(params, config, rollouts, temperature):
    """Log-probabilities f32[N, T, V] by `forward` on prompt + completion, one full softmax."""
    prompts, rows = rollouts.prompts, rollouts.prompt
    start = prompts.length[rows][:, None]
    column = jnp.arange(prompts.tokens.shape[1] + rollouts.tokens.shape[1])[None]
    valid = column < start + rollouts.length[:, None]
    text = jnp.take_along_axis(rollouts.tokens, jnp.clip(column - start, 0, rollouts.tokens.shape[1] - 1), 1)
    question = prompts.tokens[rows][:, jnp.minimum(column[0], prompts.tokens.shape[1] - 1)]
    tokens = jnp.where(column < start, question, text)
    logp = jax.nn.log_softmax(models.forward(params, config, tokens, valid) / temperature, axis=-1)
    at = start - 1 + jnp.arange(rollouts.tokens.shape[1])[None]
    return jnp.take_along_axis(logp, at[:, :, None], axis=1)


def plain(params, config, rollouts, temperature):
    """logp, entropy and sum of squares f32[N, T] of the tokens of the rows."""
    logp = plain_logp(params, config, rollouts, temperature)
    chosen = jnp.take_along_axis(logp, jnp.clip(rollouts.tokens, 0, V - 1)[:, :, None], axis=2)[:, :, 0]
    stats = {
        "logp": chosen,
        "entropy": -jnp.sum(jnp.exp(logp) * logp, 2),
        "sum_pi_squared": jnp.sum(jnp.exp(2 * logp), 2),
    }
    return {name: jnp.where(rollouts.mask, x, 0) for name, x in stats.items()}


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), actual, expected)


def surrogate(stats):
    """Some scalar in which every token of `logp` and `entropy` counts differently."""
    weight = jnp.sin(jnp.arange(stats["logp"].size, dtype=jnp.float32)).reshape(stats["logp"].shape)
    return jnp.sum(weight * stats["logp"]) + jnp.sum(weight[::-1] * stats["entropy"]) / 3


def fast(params, config, rollouts, temperature, **settings):
    stats = models.logprobs(
        params, config, rollouts, temperature=temperature, want=("entropy", "sum_pi_squared"), **settings
    )
    return {"logp": stats.logp, "entropy": stats.entropy, "sum_pi_squared": stats.sum_pi_squared}


@pytest.mark.parametrize("name", FAMILY)
def test_sharing_prompts_changes_neither_value_nor_gradient_of_any_parameter(name):
    """Chunks of 7 tokens do not divide the 72 there are."""
    config = dataclasses.replace(BASE, **FAMILY[name])
    rollouts, params = rollouts_of(), models.init(jax.random.key(0), config)

    def loss(params, path, **settings):
        stats = path(params, config, rollouts, 0.7, **settings)
        return surrogate(stats), stats

    both = jax.jit(lambda p: [jax.grad(loss, has_aux=True)(p, fast, chunk=7), jax.grad(loss, has_aux=True)(p, plain)])
    (gradient, stats), (expected_gradient, expected) = both(params)
    close(stats, expected)
    assert np.count_nonzero(expected["logp"]) == int(jnp.sum(rollouts.length))
    close(gradient, expected_gradient, 3e-5)


@pytest.fixture(scope="module")
def params():
    return models.init(jax.random.key(0), BASE)


@functools.partial(jax.jit, static_argnames=("group_size", "chunk", "want"))
def logprobs(params, rollouts, group_size=None, chunk=None, want=WANT):
    return models.logprobs(params, BASE, rollouts, temperature=0.7, want=want, group_size=group_size, chunk=chunk)


def test_rows_may_come_in_any_order(params):
    order = np.random.default_rng(1).permutation(P * G)
    expected = logprobs(params, rollouts_of())
    close(logprobs(params, take(rollouts_of(), order)), jax.tree.map(lambda x: x[order], expected))


def test_ragged_groups_with_a_capacity_equal_full_ones(params):
    """Prompt 0 keeps one row, prompt 1 four, prompt 2 none: five rows, which no number of prompts divides."""
    rows = [5, 0, 7, 4, 6]
    expected = jax.tree.map(lambda x: x[jnp.asarray(rows)], logprobs(params, rollouts_of()))
    close(logprobs(params, take(rollouts_of(), rows), group_size=G), expected)


def test_a_row_beyond_the_capacity_is_nan_and_disturbs_no_other(params):
    """Two places a prompt; the third and fourth row given are both the third and fourth of prompt 1."""
    rows = [4, 5, 6, 7, 9]
    found = logprobs(params, take(rollouts_of(), rows), group_size=2)
    expected = jax.tree.map(lambda x: x[jnp.asarray(rows)], logprobs(params, rollouts_of()))
    assert np.isnan(found.logp[2:4]).all()
    assert np.isnan(found.hidden[2:4]).all()
    kept = jnp.array([0, 1, 4])
    close(jax.tree.map(lambda x: x[kept], found), jax.tree.map(lambda x: x[kept], expected))


def test_padding_changes_nothing_and_is_zero(params):
    wide = logprobs(params, rollouts_of(prompt_width=S + 3, width=T + 2))
    narrow = logprobs(params, rollouts_of())
    cut = {name: getattr(wide, name)[:, :T] for name in ("logp", "entropy", "sum_pi_squared")}
    close(dataclasses.replace(wide, **cut), narrow)
    assert np.count_nonzero(wide.logp) == int(jnp.sum(rollouts_of().length))


def test_the_size_of_a_chunk_changes_nothing(params):
    whole = logprobs(params, rollouts_of())
    for chunk in (5, 72):
        close(logprobs(params, rollouts_of(), chunk=chunk), whole)


def test_nothing_is_there_that_was_not_asked_for(params):
    stats = logprobs(params, rollouts_of(), want=())
    assert stats.logp.shape == (P * G, T)
    assert len(jax.tree.leaves(stats)) == 1


def test_hidden_is_the_mean_over_the_tokens_of_a_row(params):
    """The row's only token has its own norm: for a row of length 1 the mean square of `hidden` is that of a norm, 1."""
    rollouts = dataclasses.replace(rollouts_of(), length=jnp.ones(P * G, jnp.int32))
    hidden = logprobs(params, rollouts).hidden
    np.testing.assert_allclose(jnp.mean(hidden**2, axis=1), 1, atol=1e-4)


def test_no_log_probability_depends_on_a_later_token(params):
    """d logp[t] / d embedding of an input is exactly 0 for the inputs after t, and for no other."""
    rollouts = dataclasses.replace(rollouts_of(), length=jnp.full(P * G, T, jnp.int32))
    tokens = jnp.broadcast_to(jnp.arange(T)[None], (P * G, T))  # a token of its own for every position
    prompts = dataclasses.replace(rollouts.prompts, tokens=jnp.full((P, S), T))
    rollouts = dataclasses.replace(rollouts, tokens=tokens, prompts=prompts)

    def by_position(embed):
        logp = models.logprobs({**params, "embed": embed}, BASE, rollouts, temperature=1.0).logp
        return jnp.sum(logp, axis=0)

    slope = jnp.max(jnp.abs(jax.jit(jax.jacrev(by_position))(params["embed"])), axis=2)  # [T, V]
    for t in range(T):
        np.testing.assert_array_equal(slope[t, t:T], 0)
        assert (slope[t, :t] > 0).all()
        assert slope[t, T] > 0


def test_stacked_layers_and_recomputation_change_no_gradient(params):
    """Three layers, so that the scan has two; the gradient is compared after giving it the other layout."""
    config = dataclasses.replace(BASE, layers=3)
    stacked = dataclasses.replace(config, stacked=True, remat="dots")
    params = models.init(jax.random.key(0), config)

    def loss(params, config):
        stats = models.logprobs(params, config, rollouts_of(), temperature=0.7, want=("entropy",))
        return surrogate({"logp": stats.logp, "entropy": stats.entropy})

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    close(models.unstack(gradient(models.stack(params), stacked)), dict(gradient(params, config)))


def test_forward_mode_and_second_derivatives_work_on_the_plain_path():
    """Along one direction: the forward slope is the backward one, the curvature that of a difference of slopes."""
    config = dataclasses.replace(BASE, backward="plain", layers=1)
    params = models.init(jax.random.key(0), config)
    loss = functools.partial(mean_logp, config=config)
    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    products = jax.tree.map(jnp.vdot, jax.jit(jax.grad(loss))(params), direction)

    @jax.jit
    def slopes(params):
        def slope(params):
            return jax.jvp(loss, (params,), (direction,))[1]

        return jax.jvp(slope, (params,), (direction,))

    forward, curvature = slopes(params)
    step = 1e-3
    ahead, behind = (slopes(jax.tree.map(lambda x, d, s=s: x + s * d, params, direction))[0] for s in (step, -step))
    np.testing.assert_allclose(forward, sum(jax.tree.leaves(products)), rtol=1e-4)
    np.testing.assert_allclose(curvature, (ahead - behind) / (2 * step), rtol=0.02)


def mean_logp(params, config):
    return jnp.mean(models.logprobs(params, config, rollouts_of(), temperature=1.0).logp)


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


def test_logits_of_all_tokens_never_exist_forward_or_backward():
    """An array with V and N T = 72 tokens in its shape; V = 1009 is in no other dimension, and chunks have 7 tokens."""
    config = dataclasses.replace(BASE, vocab=1009)
    rollouts = rollouts_of()

    def loss(params, chunk):
        stats = models.logprobs(params, config, rollouts, temperature=1.0, want=("entropy",), chunk=chunk)
        return sum(jnp.sum(x) for x in jax.tree.leaves(stats))

    def largest(chunk):
        jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(models.abstract(config), chunk)
        return max(int(np.prod(shape)) for shape in shapes_in(jaxpr.jaxpr) if 1009 in shape)

    assert largest(72) == 72 * 1009
    assert largest(7) == 16 * 1009  # the embedding and the output matrix themselves


def test_statistics_of_logits_by_hand():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2)."""
    p, q = jnp.log(jnp.asarray([2.0, 1.0, 1.0])), jnp.log(jnp.asarray([1.0, 1.0, 2.0])) + 5.0
    want = ("entropy", "kl_full", "sum_pi_squared")
    got = token_statistics(p, jnp.asarray(1), want=want, reference=q)
    log2 = np.log(2.0)
    expected = {"logp": -2 * log2, "entropy": 1.5 * log2, "kl_full": log2 / 2 - log2 / 4, "sum_pi_squared": 3 / 8}
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert token_statistics(p, jnp.asarray(0), temperature=1e6)["logp"] == pytest.approx(-np.log(3.0), rel=1e-4)


def test_the_exact_divergence_is_that_of_two_full_softmaxes_in_chunks_too(params):
    """Value and gradient: the derivative of sum p (log p - log q) goes through p alone."""
    rollouts = rollouts_of()
    reference = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    weight = jnp.sin(jnp.arange(rollouts.tokens.size, dtype=jnp.float32)).reshape(rollouts.tokens.shape)

    def chunked(params, reference, chunk=None):
        ask = functools.partial(models.logprobs, temperature=0.7, want=("kl_full",), chunk=chunk)
        found = ask(params, BASE, rollouts, reference=reference).kl_full
        assert found is not None
        return jnp.sum(weight * found)

    def whole(params, reference):
        return jnp.sum(weight * plain_divergence(params, reference, rollouts, 0.7))

    both = jax.jit(jax.value_and_grad(functools.partial(chunked, chunk=7), argnums=(0, 1)))(params, reference)
    expected = jax.jit(jax.value_and_grad(whole))(params, reference)
    close((both[0], both[1][0]), expected, 2e-4)
    assert not any(np.any(x) for x in jax.tree.leaves(both[1][1]))
    assert float(jax.jit(chunked)(params, params)) == pytest.approx(0.0, abs=1e-5)


def plain_divergence(params, reference, rollouts, temperature):
    """sum p (log p - log q) f32[N, T], from two full softmaxes of `plain_logp`."""
    p, q = (plain_logp(each, BASE, rollouts, temperature) for each in (params, reference))
    return jnp.where(rollouts.mask, jnp.sum(jnp.exp(p) * (p - q), axis=2), 0)


def test_what_it_cannot_do_is_refused(params):
    rollouts = rollouts_of()
    ask = functools.partial(models.logprobs, params, BASE, rollouts)
    with pytest.raises(ValueError, match=r"want has worth, .* entropy, .*, replaced, sum_pi_squared, value"):
        ask(temperature=1.0, want=("worth",))
    with pytest.raises(ValueError, match="want has kl_full but reference is None"):
        ask(temperature=1.0, want=("kl_full",))
    with pytest.raises(ValueError, match="temperature is 0"):
        ask(temperature=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        ask(temperature=1.0, chunk=0)
    with pytest.raises(ValueError, match="give the largest number of rows of a prompt as group_size"):
        models.logprobs(params, BASE, take(rollouts, range(5)), temperature=1.0)
    with pytest.raises(ValueError, match=r"22 tokens is too long for ModelConfig.positions=20"):
        models.logprobs(params, BASE, rollouts_of(width=18), temperature=1.0)


def test_statistics_are_computed_in_the_dtype_of_the_logits_and_recorded_in_float32():
    """Logits 3 and 0 in bfloat16: ln(1 + e^-3) = 0.0486, and 3 + 0.0486 is 3.046875, the nearest of steps of 1/64."""
    logits = jnp.array([[3.0, 0.0]], jnp.bfloat16)
    found = jax.jit(lambda x: token_statistics(x, jnp.array([0]), want=("entropy",)))(logits)
    assert all(x.dtype == jnp.float32 for x in found.values())
    np.testing.assert_array_equal(found["logp"], -0.046875)
