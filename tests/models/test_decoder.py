"""The plain decoder against a numpy twin, and the laws of a causal model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig

BASE = ModelConfig(
    vocab=11,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    hidden=24,
    positions=12,
    rope_theta=50.0,
    head_std=0.5,
)
FAMILY = {
    "plain": {"activation": "relu"},
    "gated": {"activation": "silu", "gated": True, "rope_theta": 0.0},
    "tied": {"tied": True, "positions": 0},
    "all heads": {"kv_heads": 4, "stacked": True},
}
forward = functools.partial(jax.jit, static_argnums=1)(models.forward)


def numpy_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def numpy_rotate(x, position, theta):
    """Pairs (i, i + C/2) as complex numbers, turned by position * theta^(-2 i / C)."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * position[:, None] * theta ** (-np.arange(half) / half))[:, None]
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def numpy_activation(x, name):
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_forward(params, config, tokens):
    """Logits [T, V] of one sequence, token by token and head by head, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(models.unstack(params)))
    position = np.arange(len(tokens))
    x = p["embed"][tokens] + (p["position"][position] if config.positions else 0)
    for i in range(config.layers):
        layer = p["layers"][str(i)]
        h = numpy_norm(x, layer["attention_norm"], config.norm_eps)
        q, k, v = (np.einsum("td,dhc->thc", h, layer[name]) for name in ("query", "key", "value"))
        if config.rope_theta:
            q, k = numpy_rotate(q, position, config.rope_theta), numpy_rotate(k, position, config.rope_theta)
        found = np.zeros_like(q)
        for t in position:
            for head in range(config.heads):
                j = head // config.repeats
                score = k[: t + 1, j] @ q[t, head] / np.sqrt(config.head_width)
                weight = np.exp(score - score.max())
                found[t, head] = weight @ v[: t + 1, j] / weight.sum()
        x = x + np.einsum("thc,hcd->td", found, layer["output"])
        h = numpy_norm(x, layer["mlp_norm"], config.norm_eps)
        hidden = numpy_activation(h @ layer["gate" if config.gated else "up"], config.activation)
        x = x + (hidden * (h @ layer["up"]) if config.gated else hidden) @ layer["down"]
    return numpy_norm(x, p["norm"], config.norm_eps) @ (p["embed"].T if config.tied else p["head"])


def model(**changes):
    config = dataclasses.replace(BASE, **changes)
    return models.init(jax.random.key(1), config), config


@pytest.mark.parametrize("name", FAMILY)
def test_the_decoder_is_its_numpy_twin(name):
    params, config = model(**FAMILY[name])
    tokens = np.random.default_rng(0).integers(0, 11, (2, 7))
    logits = forward(params, config, jnp.asarray(tokens), jnp.ones((2, 7), bool))
    for row, expected in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, numpy_forward(params, config, expected), atol=2e-5)


def test_padding_on_either_side_changes_nothing():
    params, config = model()
    tokens = jax.random.randint(jax.random.key(2), (1, 5), 0, 11)
    garbage = jnp.full((1, 3), 9)
    valid, invalid = jnp.ones((1, 5), bool), jnp.zeros((1, 3), bool)
    alone = forward(params, config, tokens, valid)
    right = forward(params, config, jnp.concatenate([tokens, garbage], 1), jnp.concatenate([valid, invalid], 1))
    left = forward(params, config, jnp.concatenate([garbage, tokens], 1), jnp.concatenate([invalid, valid], 1))
    np.testing.assert_allclose(right[:, :5], alone, atol=1e-5)
    np.testing.assert_allclose(left[:, 3:], alone, atol=1e-5)


def test_packed_sequences_are_those_alone_and_learned_positions_start_again():
    """Two sequences and padding in a row, and what `valid` says beside the numbers of the sequences."""
    params, config = model()
    a, b = jnp.array([[1, 2, 3, 4]]), jnp.array([[5, 6, 7]])
    row = jnp.array([[5, 9, 6, 7, 9, 9, 1, 2, 3, 4]])
    segment = jnp.array([[3, 3, 3, 3, -1, -1, 0, 0, 0, 0]])
    valid = jnp.array([[True, False, *[True] * 8]])

    @jax.jit
    def three(params):
        alone = [models.forward(params, config, x, jnp.ones_like(x, bool)) for x in (a, b)]
        return models.forward(params, config, row, valid, segment), *alone

    packed, first, second = three(params)
    np.testing.assert_allclose(packed[:, 6:], first, atol=1e-5)
    np.testing.assert_allclose(packed[:, (0, 2, 3)], second, atol=1e-5)


def test_more_tokens_than_learned_positions_are_refused():
    params, config = model()
    with pytest.raises(ValueError, match=r"13 tokens is too long for ModelConfig.positions=12"):
        models.forward(params, config, jnp.zeros((1, 13), jnp.int32), jnp.ones((1, 13), bool))


def test_recomputation_changes_no_gradient():
    tokens, valid = jax.random.randint(jax.random.key(2), (2, 5), 0, 11), jnp.ones((2, 5), bool)

    @jax.jit
    def gradients(params):
        found = {}
        for remat in ("none", "dots", "full"):
            config = dataclasses.replace(BASE, remat=remat)
            found[remat] = jax.grad(lambda p, c=config: jnp.sum(jnp.sin(models.forward(p, c, tokens, valid))))(params)
        return found

    found = gradients(model()[0])
    for remat in ("dots", "full"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), found[remat], found["none"])
