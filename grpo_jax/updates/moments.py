"""What Adam remembers of gradients, in fewer bytes: half of them, or a row and a column for each matrix.

==========  ===============================================================================  ====================
moments     kept of a parameter, beside it                                                   bytes a number
==========  ===============================================================================  ====================
float32     first and second moment                                                          8
bfloat16    the same, rounded; all arithmetic is in float32                                  4
factored    first moment where b1 is not 0; of the second, means over rows and columns       4, or next to none
==========  ===============================================================================  ====================

Factored is the second moment of Adafactor (Shazeer and Stern, arXiv:1804.04235): with R and C the averages of ``g^2``
over the columns and over the rows of a matrix, its estimate is ``R C / mean(R)``; of an array with more dimensions the
two largest are taken, and one whose second largest is below `SMALL` is kept whole. Averages fall by `b2` and are
corrected for their beginning as those of Adam are; a step whose root mean square in an array exceeds 1 is scaled down
to it, as there. The first moment, too, is as there: of what is left after the division.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from grpo_jax.models.layers import accumulator
from grpo_jax.types import Array

Moments = Literal["float32", "bfloat16", "factored"]
SMALL = 16
"""Arrays with fewer than two dimensions of this size are not factored."""
SLOWEST = 0.99
"""The largest b2 of a second moment in bfloat16: at 0.998 and above a fall by one step is rounded away."""


def adam(b1: float, b2: float, eps: float, moments: Moments) -> optax.GradientTransformation:
    """The direction of Adam's step for gradients in float32 at least."""
    if moments == "factored":
        second = optax.scale_by_factored_rms(
            decay_rate=b2, decay_rate_fn=_corrected, min_dim_size_to_factor=SMALL, epsilon=eps**2
        )
        first = optax.ema(b1, debias=True) if b1 else optax.identity()
        return optax.chain(second, optax.clip_by_block_rms(1.0), first)
    rule = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    return _rounded(rule, jnp.bfloat16) if moments == "bfloat16" else rule


def _corrected(done: Any, decay: Any) -> Any:
    """The share that is kept of an average after `done` others, so that it is one from its beginning."""
    return decay * (1 - decay**done) / (1 - decay ** (done + 1))


def _rounded(inner: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """`inner`, whose numbers are kept in `dtype` between its steps."""

    def down(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def init(params: optax.Params) -> optax.OptState:
        return jax.tree.map(down, inner.init(params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple:
        step, state = inner.update(updates, jax.tree.map(_wide, state), params)
        return step, jax.tree.map(down, state)

    return optax.GradientTransformation(init, update)


def widened(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on gradients and parameters in float32 at least, whatever they come in."""

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(jax.tree.map(_wide, params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple:
        return inner.update(jax.tree.map(_wide, updates), state, jax.tree.map(_wide, params))

    return optax.GradientTransformation(init, update)


class Mastered(NamedTuple):
    """What an optimiser with master weights keeps."""

    master: Any  # the parameters in float32
    inner: optax.OptState


def mastered(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a copy of the parameters in float32, whose rounding the parameters are after every update.

    A step that is small beside its parameter then adds up over updates instead of being rounded away (Micikevicius et
    al., arXiv:1710.03740, section 3.1).
    """

    def init(params: optax.Params) -> Mastered:
        master = jax.tree.map(_wide, params)
        return Mastered(master, inner.init(master))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple:
        step, kept = inner.update(updates, state.inner, state.master)
        master = optax.apply_updates(state.master, step)
        # Between two numbers of few digits the difference is exact, and so is what comes of adding it.
        step = jax.tree.map(lambda m, p: _wide(m.astype(p.dtype)) - _wide(p), master, params)
        return step, Mastered(master, kept)

    return optax.GradientTransformation(init, update)


def _wide(x: Array) -> Array:
    return x.astype(accumulator(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
