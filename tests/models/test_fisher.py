"""The curvature of the divergence between two policies, against a matrix made by the plain forward pass."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models.fisher import fisher
from grpo_jax.types import Params
from tests.laws import dense, tiny
from tests.laws.tiny import G, T, V

MODEL = dataclasses.replace(dense.MODEL, backward="fast")
PARAMS = models.init(jax.random.key(0), MODEL)
TEMPERATURE = 0.8
ROWS = tiny.rows()
WEIGHT = np.where(ROWS.mask, np.random.default_rng(5).uniform(0.5, 1.5, ROWS.mask.shape), 0).astype(np.float32)


def direction(seed: int) -> Params:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 1, x.shape), x.dtype), PARAMS)


@pytest.fixture(scope="module", name="matrix")
def dense_information() -> np.ndarray:
    """J^T (diag p - p p^T) J of every token, weighted and summed."""
    return dense.information(dense.tokens(PARAMS, ROWS, temperature=TEMPERATURE), WEIGHT)


def product(**changes):
    """Fisher times a vector, jitted; `changes` of the arguments or of the model."""
    model = dataclasses.replace(MODEL, **{k: changes.pop(k) for k in ("backward", "remat") if k in changes})

    def run(params, vector, rows, weight):
        given = {"temperature": TEMPERATURE, "group_size": G, **changes}
        return fisher(params, model, rows, weight, **given)(vector)

    return jax.jit(run, compiler_options=tiny.QUICK)


@pytest.fixture(scope="module", name="times")
def usual_product():
    return product()


@pytest.mark.slow
def test_products_are_those_of_the_dense_information(matrix, times):
    for seed in (1, 2):
        vector = direction(seed)
        expected = matrix @ dense.flat(vector)
        found = dense.flat(times(PARAMS, vector, ROWS, WEIGHT))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_what_stands_where_nothing_is_read_is_not_seen(times):
    vector = direction(1)
    outside = np.arange(T)[None] >= ROWS.length[:, None]
    garbage = ROWS.replace(tokens=np.where(outside, V - 1, ROWS.tokens))
    usual = times(PARAMS, vector, ROWS, WEIGHT)
    found = times(PARAMS, vector, garbage, np.where(outside, np.float32(np.nan), WEIGHT))
    for a, b in tiny.both_leaves(found, usual):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"chunk": 7}, {"backward": "plain", "remat": "full"}], ids=["chunk", "remat"])
def test_what_bounds_memory_changes_no_number(times, changes):
    vector = direction(1)
    usual = times(PARAMS, vector, ROWS, WEIGHT)
    found = product(**changes)(PARAMS, vector, ROWS, WEIGHT)
    for a, b in tiny.both_leaves(found, usual):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-9)


@pytest.mark.slow
def test_it_is_the_curvature_of_the_divergence(times):
    """KL(pi_theta || pi_(theta + h v)) = h^2 v^T F v / 2 + O(h^3); the mean over +h and -h leaves O(h^4)."""
    vector, h, rows = direction(2), 0.01, jax.tree.map(jnp.asarray, ROWS)

    @jax.jit
    def divergence(other: Params) -> jax.Array:
        score = partial(models.logprobs, temperature=TEMPERATURE, want=("kl_full",), group_size=G, reference=other)
        stats = score(PARAMS, MODEL, rows)
        assert stats.kl_full is not None
        return jnp.sum(stats.kl_full * WEIGHT)

    both = [divergence(jax.tree.map(lambda x, v, s=s: x + s * h * v, PARAMS, vector)) for s in (1, -1)]
    curved = dense.flat(vector) @ dense.flat(times(PARAMS, vector, ROWS, WEIGHT))
    np.testing.assert_allclose(np.mean(both), h * h * curved / 2, rtol=2e-2)


@pytest.mark.slow
def test_a_product_costs_a_gradient_and_a_third():
    """In operations of the compiled programs, for rows whose forward pass outweighs their embedding."""
    model = dataclasses.replace(MODEL, width=64, layers=3, heads=4, kv_heads=4, head_width=16, hidden=256)
    params, rows = models.init(jax.random.key(0), model), jax.tree.map(jnp.asarray, ROWS)

    def loss(params: Params) -> jax.Array:
        stats = models.logprobs(params, model, rows, temperature=1.0, want=("entropy",), group_size=G)
        return jnp.sum(stats.logp * WEIGHT)

    def products(params: Params, vector: Params, *, count: int) -> Params:
        times = fisher(params, model, rows, jnp.asarray(WEIGHT), temperature=1.0, group_size=G)
        for _ in range(count):
            vector = times(vector)
        return vector

    def operations(function, *args: Params) -> float:
        counted = jax.jit(function).lower(*args).compile().cost_analysis()
        assert counted is not None
        return counted["flops"]

    gradient = operations(jax.grad(loss), params)
    one, two = (operations(partial(products, count=count), params, params) for count in (1, 2))
    assert 1.1 < (two - one) / gradient < 1.5  # three passes of matrices and one forward, of which a gradient has three
    assert one - (two - one) < 0.5 * gradient  # what is linearised once
