"""What is sampled, with which log-probabilities, and that a completion belongs to its identity alone."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models, sharding
from grpo_jax.models import ModelConfig
from grpo_jax.sampling import Sampling, generate
from grpo_jax.types import Prompts

P, G, S, T, V = 3, 4, 5, 7, 11
STOP = (0, 3)
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
OTHER = dataclasses.replace(
    BASE, gated=True, activation="silu", tied=True, kv_heads=4, positions=0, stacked=True, embed_std=0.2
)
SAMPLING = Sampling(max_tokens=T, stop=STOP, temperature=0.8, cache_chunk=3)
KEY = jax.random.key(9)


def prompts_of(width=S):
    rng = np.random.default_rng(0)
    tokens = np.full((P, width), 97, np.int32)  # no token of the vocabulary
    for row, length in enumerate((S, 1, 3)):
        tokens[row, :length] = rng.integers(0, V, length)
    number = jnp.arange(P, dtype=jnp.int32)
    return Prompts(tokens=jnp.asarray(tokens), length=jnp.array([S, 1, 3]), draw=number + 40, row=number)


def take(prompts, rows):
    return jax.tree.map(lambda x: x[jnp.asarray(rows)], prompts)


@functools.partial(jax.jit, static_argnames=("config", "group_size", "static"))
def _sampled(params, config, prompts, sampling, key, group_size, static):
    sampling = sampling if static is None else dataclasses.replace(sampling, temperature=static)
    return generate(params, config, prompts, sampling, key, group_size=group_size, version=5)


def sampled(params, prompts=None, sampling=SAMPLING, group_size=G, config=BASE, traced=False):
    """The temperature is a number of the program, or an argument of it when `traced`."""
    prompts = prompts_of() if prompts is None else prompts
    return _sampled(params, config, prompts, sampling, KEY, group_size, None if traced else sampling.temperature)


@pytest.fixture(scope="module")
def params():
    return models.init(jax.random.key(0), BASE)


@pytest.fixture(scope="module")
def rollouts(params):
    return sampled(params)


def test_rows_end_with_their_first_stop_token_and_hold_nothing_after_it(rollouts):
    ended = {True: 0, False: 0}
    for n in range(P * G):
        tokens, length = np.asarray(rollouts.tokens[n]), int(rollouts.length[n])
        stops = np.isin(tokens[:length], STOP)
        assert not stops[:-1].any()
        assert bool(rollouts.stopped[n]) == bool(stops[-1])
        assert bool(rollouts.stopped[n]) or length == T
        np.testing.assert_array_equal(rollouts.mask[n], np.arange(T) < length)
        for x in (rollouts.tokens, rollouts.logp, rollouts.logp_full):
            np.testing.assert_array_equal(x[n, length:], 0)
        ended[bool(stops[-1])] += 1
    assert min(ended.values()) > 0  # both kinds were there
    np.testing.assert_array_equal(rollouts.prompt, np.arange(P * G) // G)
    np.testing.assert_array_equal(rollouts.sample, np.arange(P * G) % G)
    np.testing.assert_array_equal(rollouts.version, 5)


@pytest.mark.parametrize("config", [BASE, OTHER], ids=["base", "gated, tied, stacked"])
def test_the_sampler_and_the_trainer_agree_on_every_token(config):
    params = models.init(jax.random.key(0), config)
    rollouts = sampled(params, config=config)
    stats = jax.jit(lambda p: models.logprobs(p, config, rollouts, temperature=SAMPLING.temperature))(params)
    assert int(rollouts.length.sum()) > P * G
    np.testing.assert_allclose(rollouts.logp_full, stats.logp, atol=1e-5)
    np.testing.assert_array_equal(rollouts.logp, rollouts.logp_full)


@pytest.mark.slow
def test_bfloat16_is_near_and_keeps_master_parameters_and_statistics_in_float32(params):
    """Eight bits of mantissa: the sampler and the trainer differ by rounding, a few hundredths of a nat, not more."""
    config = dataclasses.replace(BASE, compute_dtype="bfloat16")
    rollouts = sampled(params, config=config)

    def total(params):
        logp = models.logprobs(params, config, rollouts, temperature=SAMPLING.temperature).logp
        return jnp.sum(logp), logp

    gradient, logp = jax.jit(jax.grad(total, has_aux=True))(params)
    assert logp.dtype == rollouts.logp.dtype == jnp.float32
    np.testing.assert_allclose(logp, rollouts.logp_full, atol=0.1)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_log_probabilities_of_a_narrow_dtype_are_those_of_the_trainer_within_a_step_of_it(params):
    """Between 2 and 4 bfloat16 has steps of 1/64, between 4 and 8 of 1/32: logits, their sum and their difference."""
    config = dataclasses.replace(BASE, logprob_dtype="bfloat16")
    rollouts = sampled(params, config=config)
    stats = jax.jit(lambda p: models.logprobs(p, config, rollouts, temperature=SAMPLING.temperature))(params)
    assert stats.logp.dtype == rollouts.logp_full.dtype == jnp.float32
    np.testing.assert_allclose(stats.logp, rollouts.logp_full, atol=3 / 32)
    plain = models.logprobs(params, BASE, rollouts, temperature=SAMPLING.temperature).logp
    assert float(jnp.abs(stats.logp - plain).max()) > 1 / 256  # float32 would be nearer


def test_greedy_decoding_is_the_argmax_of_the_plain_forward_pass(params):
    """Every token of every row; `logp` is 0 as nothing was drawn, `logp_full` that of temperature 1."""
    greedy = dataclasses.replace(SAMPLING, temperature=0.0, stop=())
    rollouts = sampled(params, sampling=greedy)
    traced = sampled(params, sampling=greedy, traced=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), traced, rollouts)
    for n in range(0, P * G, G):
        length = int(rollouts.prompts.length[n // G])
        tokens = jnp.concatenate([rollouts.prompts.tokens[n // G, :length], rollouts.tokens[n]])[None]
        tokens = jnp.pad(tokens, ((0, 0), (0, S + T - tokens.shape[1])))  # causal: padding at the end is not seen
        logits = models.forward(params, BASE, tokens, jnp.ones_like(tokens, bool))[0, length - 1 : length - 1 + T]
        np.testing.assert_array_equal(rollouts.tokens[n], jnp.argmax(logits, axis=1))
        np.testing.assert_allclose(rollouts.logp_full[n], jnp.max(jax.nn.log_softmax(logits), axis=1), atol=1e-5)
        np.testing.assert_array_equal(rollouts.tokens[n : n + G], np.broadcast_to(rollouts.tokens[n], (G, T)))
    np.testing.assert_array_equal(rollouts.logp, 0)


def test_a_traced_temperature_samples_the_same_tokens(params, rollouts):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), sampled(params, traced=True), rollouts)


def test_a_completion_belongs_to_its_seed_draw_and_sample_alone(params, rollouts):
    """Alone, in another order, behind wider padding, with fewer samples, in caches of another size."""
    again = {
        "alone": (sampled(params, take(prompts_of(), [1])), [(1, 0)]),
        "another order": (sampled(params, take(prompts_of(), [2, 0])), [(2, 0), (0, 1)]),
        "wider": (sampled(params, prompts_of(S + 3), dataclasses.replace(SAMPLING, cache_chunk=T)), [(2, 2)]),
        "two samples": (sampled(params, group_size=2), [(1, 1)]),
    }
    for name, (other, pairs) in again.items():
        group = other.tokens.shape[0] // other.prompts.tokens.shape[0]
        for here, there in pairs:
            ours, theirs = slice(here * G, here * G + group), slice(there * group, there * group + group)
            np.testing.assert_array_equal(other.tokens[theirs], rollouts.tokens[ours], err_msg=name)
            np.testing.assert_allclose(other.logp_full[theirs], rollouts.logp_full[ours], atol=1e-5, err_msg=name)
    assert len({tuple(row) for row in np.asarray(rollouts.tokens).tolist()}) > P * G // 2


def test_another_draw_of_the_same_prompt_is_another_completion(params, rollouts):
    prompts = prompts_of()
    other = sampled(params, dataclasses.replace(prompts, draw=prompts.draw + P))
    assert (np.asarray(other.tokens) != np.asarray(rollouts.tokens)).any(axis=1).mean() > 0.5


def test_truncation_renormalises_what_is_left(params):
    """top_k = 2: every token is one of the two likeliest, and the two kept probabilities add up to 1."""
    rollouts = sampled(params, sampling=dataclasses.replace(SAMPLING, top_k=2, stop=()))
    stats = jax.jit(lambda p: models.logprobs(p, BASE, rollouts, temperature=SAMPLING.temperature))(params)
    np.testing.assert_allclose(rollouts.logp_full, stats.logp, atol=1e-5)
    width = S + T
    for n in range(P * G):
        length = int(rollouts.prompts.length[n // G])
        tokens = jnp.concatenate([rollouts.prompts.tokens[n // G, :length], rollouts.tokens[n]])[None]
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
        logits = models.forward(params, BASE, tokens, jnp.ones_like(tokens, bool))[0, length - 1 : length - 1 + T]
        best = np.sort(np.asarray(jax.nn.log_softmax(logits / SAMPLING.temperature)), axis=1)[:, -2:]
        np.testing.assert_allclose(rollouts.logp[n], rollouts.logp_full[n] - np.logaddexp(*best.T), atol=1e-5)


def test_decoding_stops_when_every_row_has(params):
    """Every token stops: one turn of the loop. A key cache that grew further would have cost nothing but time."""
    rollouts = sampled(params, sampling=dataclasses.replace(SAMPLING, stop=tuple(range(V))))
    np.testing.assert_array_equal(rollouts.length, 1)
    assert rollouts.stopped.all()
    np.testing.assert_array_equal(rollouts.tokens[:, 1:], 0)


def loop_computations(text):
    """The computations of a compiled program that run inside a while loop, from its text."""
    parts = {m.group(1): m.group(0) for m in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^}", text, re.M | re.S)}
    inside, waiting = set(), re.findall(r"(?:body|condition)=%?([\w.\-]+)", text)
    while waiting:
        name = waiting.pop()
        if name in parts and name not in inside:
            inside.add(name)
            waiting += re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)", parts[name])
    return "\n".join(parts[name] for name in inside)


def test_a_mesh_changes_no_token_and_no_weight_is_gathered_while_decoding(params):
    """With parameters in parts over fsdp and tensor: gathered over fsdp before the loop, kept apart over tensor."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    prompts = take(prompts_of(), [0, 1, 2, 1])
    expected = sampled(params, prompts)
    placed = sharding.place(params, mesh, models.axes(BASE))
    decode = jax.jit(lambda p, x: generate(p, BASE, x, SAMPLING, KEY, mesh, group_size=G, version=5))
    compiled = decode.lower(placed, sharding.place_rows(prompts, mesh)).compile()
    found = compiled(placed, sharding.place_rows(prompts, mesh))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    stats = jax.jit(lambda p, r: models.logprobs(p, BASE, r, temperature=0.8, chunk=5, mesh=mesh))(placed, found)
    np.testing.assert_allclose(stats.logp, expected.logp_full, atol=1e-5)
    text = str(compiled.as_text())
    assert "all-gather" in text  # the weights are gathered, once, before the loop
    assert re.findall(r"= (\w+\[[\d,]*\])\S* all-gather", loop_computations(text)) == []


def test_what_cannot_be_sampled_is_refused(params):
    with pytest.raises(ValueError, match="group_size is 0"):
        generate(params, BASE, prompts_of(), SAMPLING, KEY, group_size=0)
    with pytest.raises(ValueError, match=r"21 tokens is too long for ModelConfig.positions=20"):
        generate(params, BASE, prompts_of(S + 10), SAMPLING, KEY, group_size=G)
