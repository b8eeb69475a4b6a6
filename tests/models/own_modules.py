"""Modules as a user writes them, for the tests of `own`: each in a form that is as short as it can be."""

from typing import Any

import jax.numpy as jnp
from flax import linen, nnx

from grpo_jax.types import Array

VOCAB = 11


class Attention(linen.Module):
    """flax.linen, logits alone."""

    vocab: int = VOCAB
    width: int = 8

    @linen.compact
    def __call__(self, tokens: Array, valid: Array) -> Array:
        x = linen.Embed(self.vocab, self.width)(tokens)
        attend = linen.MultiHeadDotProductAttention(num_heads=2)
        x = x + attend(linen.LayerNorm()(x), mask=linen.make_causal_mask(tokens))
        return linen.Dense(self.vocab)(x)


class Sums(nnx.Module):
    """flax.nnx with all that a module may have: what a token says depends on the sum of those before it."""

    def __init__(self, *, vocab: int = VOCAB, width: int = 6, layers: int = 2, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocab, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])
        self.out = nnx.Linear(width, vocab, rngs=rngs)

    def deep(self, x: Array) -> Array:
        for layer in self.layers:
            x = x + nnx.tanh(layer(x))
        return x

    def hidden(self, tokens: Array, valid: Array) -> Array:
        return self.deep(jnp.cumsum(self.embed(tokens), axis=1))

    def head(self, x: Array) -> Array:
        return self.out(x)

    def __call__(self, tokens: Array, valid: Array) -> Array:
        return self.head(self.hidden(tokens, valid))

    def prefill(self, tokens: Array, valid: Array, room: int) -> dict[str, Array]:
        return {"sum": jnp.sum(jnp.where(valid[..., None], self.embed(tokens), 0), axis=1)}

    def step(self, cache: dict[str, Array], token: Array, position: Array) -> tuple[Array, dict[str, Array]]:
        total = cache["sum"] + self.embed(token)
        return self.head(self.deep(total)), {"sum": total}


class SumsAlone(nnx.Module):
    """The same network without the methods that save work."""

    def __init__(self, *, width: int = 6, rngs: nnx.Rngs):
        self.inside = Sums(width=width, rngs=rngs)

    def __call__(self, tokens: Array, valid: Array) -> Array:
        return self.inside(tokens, valid)


class Dropping(nnx.Module):
    """Has a state beside its parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCAB, VOCAB, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, tokens: Array, valid: Array) -> Array:
        return self.drop(self.embed(tokens))


class Running(linen.Module):
    """The same in flax.linen."""

    @linen.compact
    def __call__(self, tokens: Array, valid: Array) -> Array:
        return linen.BatchNorm(use_running_average=False)(linen.Embed(VOCAB, VOCAB)(tokens))


class Half(nnx.Module):
    """Has one method of a pair."""

    def __init__(self, *, rngs: nnx.Rngs):
        del rngs

    def hidden(self, tokens: Array, valid: Array) -> Any:
        return tokens
