from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import models
from grpo_jax.models import OwnModel
from grpo_jax.sampling import Sampling, generate, row_keys
from grpo_jax.sampling.generate import draw
from grpo_jax.types import Array, Params, Prompts
from tests.models.own_modules import VOCAB, Attention, Sums, SumsAlone

CACHED = models.from_nnx(partial(Sums, width=4), vocab=VOCAB)
REREAD = models.from_nnx(partial(SumsAlone, width=4), vocab=VOCAB)
LINEN = models.from_linen(Attention, vocab=VOCAB)
SAMPLING = Sampling(max_tokens=5, stop=(0, 7), top_k=6)


def prompts(*draws: int) -> Prompts:
    index = jnp.asarray(draws, jnp.int32)
    tokens = jnp.asarray([[1, 2, 3], [4, 9, 9], [5, 6, 9]], jnp.int32)[index % 3]
    return Prompts(tokens=tokens, length=jnp.asarray([3, 1, 2], jnp.int32)[index % 3], draw=index, row=index)


def by_hand(params: Params, config: OwnModel, asked: Prompts, group: int) -> list[list[int]]:
    """Tokens of every row: the sequence grows in Python, and every token is drawn from the logits of all before it."""
    keys, found = row_keys(jax.random.key(3), asked.draw, group), []

    @jax.jit
    def following(tokens: Array, length: Array, key: Array, t: Array) -> Array:
        logits = models.forward(params, config, tokens, jnp.arange(8)[None] < length)[:, length - 1]
        return draw(logits, jax.random.uniform(jax.random.fold_in(key, t))[None], SAMPLING)[0][0]

    for p in range(asked.length.shape[0]):
        for g in range(group):
            row: list[int] = []
            while len(row) < SAMPLING.max_tokens and not set(row) & set(SAMPLING.stop):
                before = [*asked.tokens[p, : asked.length[p]].tolist(), *row]
                padded = np.asarray([before + [0] * (8 - len(before))], np.int32)
                row.append(int(following(padded, len(before), keys[p, g], len(row))))
            found.append(row)
    return found


@pytest.mark.parametrize("config", [CACHED, REREAD, LINEN], ids=["prefill and step", "logits alone", "linen"])
def test_rows_are_those_of_a_loop_in_python_and_have_the_log_probabilities_of_the_trainer(config: OwnModel):
    params, asked = models.init(jax.random.key(1), config), prompts(0, 1, 2)
    sample = jax.jit(partial(generate, config=config, sampling=SAMPLING, group_size=2, version=4))
    found = sample(params, prompts=asked, key=jax.random.key(3))
    rows = [found.tokens[n, : found.length[n]].tolist() for n in range(6)]
    assert rows == by_hand(params, config, asked, 2)
    assert len({tuple(row) for row in rows}) > 3 and len({len(row) for row in rows}) > 1
    assert found.stopped.tolist() == [row[-1] in SAMPLING.stop for row in rows]
    assert found.prompt.tolist() == [0, 0, 1, 1, 2, 2] and found.sample.tolist() == [0, 1] * 3
    assert set(found.version.tolist()) == {4}
    said = jax.jit(partial(models.logprobs, config=config, temperature=1.0))(params, rollouts=found).logp
    np.testing.assert_allclose(np.where(found.mask, said, 0), found.logp_full, atol=3e-6)
    assert bool((found.logp >= found.logp_full - 1e-6).all())  # of the six most likely tokens alone


def test_a_row_comes_out_the_same_in_another_batch():
    params = models.init(jax.random.key(1), CACHED)
    sample = jax.jit(partial(generate, config=CACHED, sampling=SAMPLING, key=jax.random.key(3), group_size=2))
    both, one = (sample(params, prompts=prompts(*draws)) for draws in ((1, 2), (2,)))
    np.testing.assert_array_equal(one.tokens[0], both.tokens[2])


def test_what_cannot_be_sampled_is_refused():
    params = models.init(jax.random.key(1), CACHED)
    with pytest.raises(ValueError, match="group_size is 0"):
        generate(params, CACHED, prompts(0), SAMPLING, jax.random.key(3), group_size=0)
    short = models.from_nnx(Sums, vocab=VOCAB, positions=7)
    with pytest.raises(ValueError, match="allowed >= 8"):
        generate(params, short, prompts(0), SAMPLING, jax.random.key(3), group_size=1)
