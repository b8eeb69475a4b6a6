from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import OwnModel
from grpo_jax.models.own_logprobs import whole
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.types import Params, Prompts, Rollouts
from tests.models.own_modules import VOCAB, Sums, SumsAlone

BOTH = models.from_nnx(partial(Sums, width=4), vocab=VOCAB)
HOW: dict[str, Any] = {"temperature": 1.0, "want": ("kl_full",)}
ALONE = models.from_nnx(partial(SumsAlone, width=4), vocab=VOCAB)


def record(rows: int = 6) -> Rollouts:
    """Rows of two prompts of 3 and 1 tokens, with up to 4 tokens each."""
    draw = np.random.default_rng(0)
    index, row = jnp.arange(2, dtype=jnp.int32), jnp.arange(rows, dtype=jnp.int32)
    prompts = Prompts(
        tokens=jnp.asarray([[1, 2, 3], [4, 9, 9]], jnp.int32),  # what stands behind a prompt says nothing
        length=jnp.asarray([3, 1], jnp.int32),
        draw=index,
        row=index,
    )
    length = jnp.asarray(draw.integers(0, 5, rows), jnp.int32).at[0].set(4)
    mask = jnp.arange(4)[None] < length[:, None]
    nothing = jnp.zeros((rows, 4))
    return Rollouts(
        prompts=prompts,
        prompt=row % 2,
        sample=row // 2,
        tokens=jnp.asarray(draw.integers(0, VOCAB, (rows, 4)), jnp.int32),
        length=length,
        stopped=jnp.ones(rows, bool),
        mask=mask,
        logp=nothing,
        logp_full=nothing,
        version=jnp.zeros(rows, jnp.int32),
    )


def by_hand(params: Params, config: OwnModel, rollouts: Rollouts, temperature: float) -> dict[str, np.ndarray]:
    """Row by row and token by token, in NumPy, from logits of the sequence up to that token, and nothing behind it."""
    shape = rollouts.tokens.shape
    say = jax.jit(lambda tokens, valid: models.forward(params, config, tokens, valid))
    found = {name: np.zeros(shape) for name in ("logp", "entropy", "sum_pi_squared")}
    for n in range(shape[0]):
        p = int(rollouts.prompt[n])
        prompt = np.asarray(rollouts.prompts.tokens[p, : rollouts.prompts.length[p]])
        for t in range(int(rollouts.length[n])):
            before = np.concatenate([prompt, np.asarray(rollouts.tokens[n, :t])]).astype(np.int32)
            padded = np.pad(before, (0, 7 - len(before)))[None]
            logits = say(padded, np.arange(7)[None] < len(before))[0, len(before) - 1]
            z = np.asarray(logits, np.float64) / temperature
            probability = np.exp(z) / np.exp(z).sum()
            found["logp"][n, t] = np.log(probability[rollouts.tokens[n, t]])
            found["entropy"][n, t] = -(probability * np.log(probability)).sum()
            found["sum_pi_squared"][n, t] = (probability**2).sum()
    return found


def test_a_row_is_its_prompt_and_behind_it_its_completion():
    tokens, valid, begin = whole(record(2))
    first, second = (record(2).tokens[n].tolist() for n in (0, 1))
    size = int(record(2).length[1])
    assert tokens.tolist()[0] == [1, 2, 3, *first]
    assert tokens.tolist()[1] == [4, *second[:size], *[0] * (6 - size)]
    assert valid.sum(axis=1).tolist() == [7, 1 + size] and begin.tolist() == [2, 0]


@pytest.mark.parametrize("config", [BOTH, ALONE], ids=["hidden and head", "logits alone"])
def test_every_token_has_the_numbers_of_its_own_logits_whatever_the_chunk(config: OwnModel):
    params, rollouts = models.init(jax.random.key(1), config), record()
    wanted = by_hand(params, config, rollouts, 0.7)
    score = jax.jit(models.logprobs, static_argnames=("config", "want", "chunk"))
    for chunk in (None, 15):
        stats = score(params, config, rollouts, temperature=0.7, want=("entropy", "sum_pi_squared"), chunk=chunk)
        for name, value in wanted.items():
            np.testing.assert_allclose(getattr(stats, name), value, atol=2e-6, err_msg=f"{name}, {chunk}")


def test_the_divergence_from_another_policy_is_the_same_with_and_without_hidden_states():
    mine, other = (models.init(jax.random.key(n), BOTH) for n in (1, 2))

    def divergence(params: Params, reference: Params) -> Any:
        return models.logprobs(params, BOTH, record(), reference=reference, **HOW).kl_full

    def inside(params: Params, reference: Params) -> Any:
        params, reference = ({"module": {"inside": p["module"]}} for p in (params, reference))
        return models.logprobs(params, ALONE, record(), reference=reference, chunk=9, **HOW).kl_full

    found = jax.jit(divergence)(mine, other)
    np.testing.assert_allclose(found, jax.jit(inside)(mine, other), atol=2e-6)
    assert float(found.max()) > 1e-3
    np.testing.assert_allclose(jax.jit(divergence)(mine, mine), 0, atol=2e-6)


def test_a_mesh_changes_no_number():
    params, rollouts, mesh = models.init(jax.random.key(1), ALONE), record(8), make_mesh({"data": 2}, jax.devices()[:2])
    score = jax.jit(partial(models.logprobs, config=ALONE, temperature=1.0, chunk=9), static_argnames="mesh")
    plain = score(params, rollouts=rollouts).logp
    np.testing.assert_allclose(score(params, rollouts=place_rows(rollouts, mesh), mesh=mesh).logp, plain, atol=1e-6)


def test_what_a_module_cannot_tell_is_refused():
    params = models.init(jax.random.key(1), BOTH)
    with pytest.raises(ValueError, match="value, which a module of one's own cannot tell; allowed are entropy"):
        models.logprobs(params, BOTH, record(), temperature=1.0, want=("value",))
    with pytest.raises(ValueError, match="reference is None"):
        models.logprobs(params, BOTH, record(), temperature=1.0, want=("kl_full",))
    short = models.from_nnx(Sums, vocab=VOCAB, positions=6)
    with pytest.raises(ValueError, match="allowed >= 7"):
        models.logprobs(params, short, record(), temperature=1.0)
