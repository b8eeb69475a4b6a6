"""A Flax module of one's own in place of the library's decoder, on the task and with the settings of the quickstart.

    grpo-jax train experiments/own_model.py                      # a causal convolution, flax.linen
    grpo-jax train experiments/own_model.py --variant nnx        # a recurrent network, flax.nnx

The first one is as little as a module has to be: a function of tokens and which of them are no padding to logits. What
samples from it reads the whole sequence for every token. The second one also says how to go on by one token (`prefill`,
`step`) and keeps its logits apart from its states (`hidden`, `head`), so that sampling reads every token once and
training never makes an array of all logits. Neither is a good language model; both learn the same way that one does.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen, nnx

from grpo_jax import cli
from grpo_jax.experiment import Experiment
from grpo_jax.models import from_linen, from_nnx
from grpo_jax.types import Array

_FILE = cli.load(Path(__file__).with_name("quickstart.py"))
QUICKSTART: Experiment = _FILE.EXPERIMENT
TASK = _FILE.TASK
VOCAB: int = TASK.tokenizer.vocab_size


class Convolution(linen.Module):
    """Layers that each look at the last `reach` tokens before them."""

    width: int
    reach: int
    layers: int

    @linen.compact
    def __call__(self, tokens: Array, valid: Array) -> Array:
        del valid  # padding stands behind the tokens, where no layer looks
        x = linen.Embed(VOCAB, self.width)(tokens)
        for _ in range(self.layers):
            near = linen.Conv(2 * self.width, (self.reach,), padding="CAUSAL")(linen.LayerNorm()(x))
            x = x + linen.Dense(self.width)(linen.gelu(near))
        return linen.Dense(VOCAB)(linen.LayerNorm()(x))


class Recurrent(nnx.Module):
    """A state that every token changes, by a gate."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.width = width
        self.embed = nnx.Embed(VOCAB, width, rngs=rngs)
        self.gate = nnx.Linear(2 * width, width, rngs=rngs)
        self.new = nnx.Linear(2 * width, width, rngs=rngs)
        self.out = nnx.Linear(width, VOCAB, rngs=rngs)

    def after(self, state: Array, token: Array) -> Array:
        """The state [B, D] behind token i32[B]."""
        both = jnp.concatenate([self.embed(token), state], axis=-1)
        gate = nnx.sigmoid(self.gate(both))
        return (1 - gate) * state + gate * nnx.tanh(self.new(both))

    def hidden(self, tokens: Array, valid: Array) -> Array:
        def read(state: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
            token, there = column
            state = jnp.where(there[:, None], self.after(state, token), state)
            return state, state

        begin = jnp.zeros((tokens.shape[0], self.width))
        return jax.lax.scan(read, begin, (tokens.T, valid.T))[1].swapaxes(0, 1)

    def head(self, x: Array) -> Array:
        return self.out(x)

    def __call__(self, tokens: Array, valid: Array) -> Array:
        return self.head(self.hidden(tokens, valid))

    def prefill(self, tokens: Array, valid: Array, room: int) -> Array:
        del room  # a state is as wide whatever it has read
        return self.hidden(tokens, valid)[:, -1]

    def step(self, cache: Array, token: Array, position: Array) -> tuple[Array, Array]:
        del position
        cache = self.after(cache, token)
        return self.head(cache), cache


EXPERIMENT = replace(
    QUICKSTART,
    name="own-linen",
    model=from_linen(Convolution(width=64, reach=6, layers=4), vocab=VOCAB),
)
VARIANTS = {
    "nnx": replace(QUICKSTART, name="own-nnx", model=from_nnx(partial(Recurrent, width=128), vocab=VOCAB)),
}

if __name__ == "__main__":
    cli.main_for(__file__)
