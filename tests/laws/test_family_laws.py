"""What holds for the decoder of every family, whatever its options: one definition, faster paths that compute it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import ModelConfig, attention
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import make_mesh, place, place_rows
from grpo_jax.types import Array, Params, Rollouts
from tests.laws import families, tiny
from tests.laws.families import FAMILIES, G, P, S, T

SAMPLING = Sampling(max_tokens=T, stop=(), temperature=1.0, cache_chunk=T)
every_family = pytest.mark.parametrize("name", FAMILIES)
quick = functools.partial(jax.jit, compiler_options=tiny.QUICK)


def doubled(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)


def scored(params: Params, config: ModelConfig, rollouts: Rollouts, **settings) -> Array:
    return models.logprobs(params, config, rollouts, temperature=1.0, **settings).logp


def in_two_parts(params: Params, config: ModelConfig, rollouts: Rollouts) -> Array:
    """`scored` by the attention that reads a prefix once, which these short ones do not get by themselves."""
    with mock.patch.object(attention, "_JOIN", 0):
        return scored(params, config, rollouts)


def in_pairs(params: Params, config: ModelConfig, rollouts: Rollouts) -> Array:
    """Log-probabilities f[N, T] by `forward` of two completions a row, packed, each behind a copy of its prompt."""
    tokens, valid = families.lines(rollouts)
    number = jnp.arange(P * G, dtype=jnp.int32)[:, None] % 2 + 3
    tokens, segment = (x.reshape(P * G // 2, -1) for x in (tokens, jnp.where(valid, number, -1)))
    logits = models.forward(params, config, tokens, jnp.ones_like(segment, bool), segment)
    return families.chosen(logits.reshape(P * G, S + T, -1), rollouts)


FAST = ("qwen2", "qwen3", "llama3", "gemma2", "gemma3", "mistral", "qwen3_moe")
"""One of every kind of layer: what the others have beside them are other numbers."""


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_completions_that_share_a_prompt_score_as_if_packed_behind_copies_of_it(name):
    config = FAMILIES[name]
    params, rollouts = families.perturbed(config), families.rows(config)
    shared, packed = quick(lambda p: (scored(p, config, rollouts), in_pairs(p, config, rollouts)))(params)
    assert float(jnp.abs(packed).max()) > 1
    np.testing.assert_allclose(shared, packed, atol=1e-5)


@pytest.mark.parametrize("name", [n if n == "gemma3" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_the_sampler_says_of_its_tokens_what_the_trainer_and_the_plain_pass_say(name):
    """A cache that grows once, tokens of temperature 1."""
    config = FAMILIES[name]
    sampling = dataclasses.replace(SAMPLING, cache_chunk=4)

    def all_three(params: Params) -> tuple[Array, Array, Array]:
        rollouts = generate(params, config, families.prompts(config), sampling, jax.random.key(0), group_size=G)
        plain = families.repeated(params, config, rollouts)
        return rollouts.logp_full, scored(params, config, rollouts), plain

    sampled, shared, plain = quick(all_three)(families.perturbed(config))
    np.testing.assert_allclose(sampled, plain, atol=2e-5)
    np.testing.assert_allclose(shared, plain, atol=2e-5)


@pytest.mark.slow
@every_family
def test_a_logit_depends_on_the_tokens_before_it_that_windows_let_through_and_on_no_others(name):
    """The derivative of a logit at t with respect to the embedding of the token at s; every token is another one.

    Through layers with windows w, w', ... a token reaches w - 1 + w' - 1 + ... tokens back; with a layer without, all.
    """
    config, width = FAMILIES[name], 9
    tokens = jnp.arange(width, dtype=jnp.int32)[None]
    unused = config.vocab - 1
    params = families.perturbed(config)

    def logit(embed: Array) -> Array:
        logits = models.forward({**params, "embed": embed}, config, tokens, jnp.ones((1, width), bool))
        return logits[0, :, unused]

    slope = np.abs(quick(jax.jacrev(logit))(params["embed"])).max(axis=2)[:, :width]
    ago = np.arange(width)[:, None] - np.arange(width)[None]
    windows = [config.window(i) for i in range(config.layers)]
    reach = width if 0 in windows else sum(w - 1 for w in windows)
    seen = (ago >= 0) & (ago <= reach)
    np.testing.assert_array_equal(slope[~seen], 0)
    assert (slope[seen] > 0).all()
    assert name != "mistral" or not seen[8, 2 - 1]  # 3 + 3 = 6 tokens back: the law can fail


def texts(config: ModelConfig) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, config.vocab, n).astype(np.int32) for n in (9, 4)]


def layouts(config: ModelConfig) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None, list]]:
    """Two texts alone and in batches: tokens, valid, segment, and per text (row, first column)."""
    a, b = texts(config)
    waste = np.full(5, config.vocab - 1, np.int32)
    on, off = np.ones(20, bool), np.zeros(5, bool)
    packed = np.concatenate([waste[:2], b, waste[:1], a])[None]
    segment = np.concatenate([np.full(2, -7), np.full(4, 9), [-1], np.full(9, 2)])[None].astype(np.int32)
    return {
        "alone": (a[None], on[None, :9], None, [(0, 0), None]),
        "alone, shorter": (b[None], on[None, :4], None, [None, (0, 0)]),
        "right": (np.stack([a, np.r_[b, waste]]), np.stack([on[:9], np.r_[on[:4], off]]), None, [(0, 0), (1, 0)]),
        "left": (np.stack([np.r_[waste, b], a]), np.stack([np.r_[off, on[:4]], on[:9]]), None, [(1, 0), (0, 5)]),
        "packed": (packed, np.ones(packed.shape, bool), segment, [(0, 7), (0, 2)]),
    }


@pytest.mark.slow
@every_family
def test_neither_padding_nor_other_rows_nor_packing_change_a_logit(name):
    config = FAMILIES[name]
    cases = layouts(config)
    with jax.enable_x64(True):

        def logits(params: Params) -> dict[str, Array]:
            return {case: models.forward(params, config, *map_some(given)) for case, (*given, _) in cases.items()}

        found = jax.device_get(quick(logits)(doubled(families.perturbed(config))))
    expected = found["alone"][0], found["alone, shorter"][0]
    for case, (*_, places) in cases.items():
        for text, where in zip(expected, places, strict=True):
            if where is not None:
                row, first = where
                np.testing.assert_allclose(found[case][row, first : first + len(text)], text, atol=1e-12, err_msg=case)


def map_some(given: list) -> list:
    return [None if x is None else jnp.asarray(x) for x in given]


def gradients(config: ModelConfig, score: Callable[[Params, ModelConfig, Rollouts], Array]) -> Callable:
    """``params -> (loss and gradient)`` of a sum in which every token counts differently."""
    rollouts = families.rows(config)
    weight = np.sin(np.arange(P * G * T)).reshape(P * G, T)

    def loss(params: Params) -> Array:
        return jnp.sum(score(params, config, rollouts) * jnp.asarray(weight))

    return jax.value_and_grad(loss)


@pytest.mark.slow
@every_family
def test_gradients_of_every_way_to_compute_the_scores_are_those_of_the_plain_pass(name):
    """Shared prompts with gradients written out, derived, recomputed and of stacked layers, in float64."""
    config = dataclasses.replace(FAMILIES[name], backward="plain")
    ways = {
        "plain": (config, families.repeated),
        "derived": (config, scored),
        "written out": (FAMILIES[name], scored),
        "in two parts": (FAMILIES[name], in_two_parts),
        "recomputed": (dataclasses.replace(FAMILIES[name], remat="full"), scored),
    }
    with jax.enable_x64(True):
        params = doubled(families.perturbed(config))
        run = quick(lambda p: {way: gradients(c, score)(p) for way, (c, score) in ways.items()})
        found = run(params)
        if not config.dense_layers:
            stacked = dataclasses.replace(FAMILIES[name], stacked=True)
            both = quick(lambda p: (gradients(stacked, scored)(p), gradients(stacked, families.repeated)(p)))
            for way, result in zip(("stacked", "stacked, plain"), both(models.stack(params)), strict=True):
                found[way] = (result[0], models.unstack(result[1]))
        found = jax.device_get(found)
    for way, result in found.items():
        same(result, found["plain"], way)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["plain"][1]))


def same(found: object, expected: object, what: str, atol: float = 1e-10) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=atol, err_msg=what), found, expected)


@pytest.mark.slow
@every_family
def test_eight_devices_sample_and_score_as_one(name):
    config = FAMILIES[name]
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params, asked = families.perturbed(config), families.prompts(config)

    def both(params: Params, asked, mesh=None) -> Mapping[str, object]:
        rollouts = generate(params, config, asked, SAMPLING, jax.random.key(0), mesh, group_size=G)
        score = functools.partial(scored, mesh=mesh)
        return {"rows": rollouts, "logp": score(params, config, rollouts), "slope": gradients(config, score)(params)}

    expected = jax.device_get(quick(both)(params, asked))
    placed = place(params, mesh, models.axes(config)), place_rows(asked, mesh)
    found = jax.device_get(quick(functools.partial(both, mesh=mesh))(*placed))
    same(found, expected, name, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
def test_the_tower_of_a_critic_has_the_options_of_its_policy(name):
    config = dataclasses.replace(FAMILIES[name], critic="tower")
    params, rollouts = families.perturbed(config), families.rows(config)

    def value(params: Params, config: ModelConfig, rollouts: Rollouts) -> Array:
        found = models.values(params, config, *families.lines(rollouts))
        return jnp.where(rollouts.mask, families.at_completions(found, rollouts), 0)

    def both(params: Params) -> tuple[Array | None, Array]:
        stats = models.logprobs(params, config, rollouts, temperature=1.0, want=("value",))
        return stats.value, value(params, config, rollouts)

    shared, plain = quick(both)(params)
    assert float(jnp.abs(plain).max()) > 0.1
    np.testing.assert_allclose(shared, plain, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2"])
def test_a_product_with_the_fisher_information_knows_caps_norms_and_windows(name):
    """``v F v`` is the second difference of the divergence along v."""
    config = dataclasses.replace(FAMILIES[name], backward="plain")
    rollouts = families.rows(config)
    weight = np.where(rollouts.mask, 1 + np.cos(np.arange(P * G * T)).reshape(P * G, T), 0)
    with jax.enable_x64(True):
        params = doubled(families.perturbed(config))
        vector = doubled(families.perturbed(config, seed=1))
        wanted = quick(lambda p, v: models.fisher(p, config, rollouts, jnp.asarray(weight), temperature=1.0)(v))
        pairs = both_leaves(jax.device_get(wanted(params, vector)), jax.device_get(vector))
        product = sum(float((a * b).sum()) for a, b in pairs)

        def divergence(step: Array) -> Array:
            moved = jax.tree.map(lambda p, v: p + step * v, params, vector)
            stats = models.logprobs(
                jax.lax.stop_gradient(params), config, rollouts, temperature=1.0, want=("kl_full",), reference=moved
            )
            return jnp.sum(jnp.asarray(weight) * jnp.asarray(stats.kl_full))

        step = 1e-4
        both = quick(lambda: divergence(jnp.asarray(step)) + divergence(jnp.asarray(-step)))()
        difference = float(both) / step**2
    np.testing.assert_allclose(product, difference, rtol=1e-3)


def both_leaves(a: object, b: object) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
