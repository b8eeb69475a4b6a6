"""Optimiser updates by the gradient of an objective: epochs over minibatches of whole prompts, in micro-batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from grpo_jax import metrics, objectives
from grpo_jax.models import AnyModel, join, kind_of, logprobs
from grpo_jax.models.layers import accumulator
from grpo_jax.sharding import global_norm
from grpo_jax.types import Array, Batch, Metrics, Params, TokenStats, TrainState
from grpo_jax.updates import batches
from grpo_jax.updates.optimizer import AnyOptimizer, TrustRegion, build
from grpo_jax.updates.references import AnyReference, Fixed

OF_THE_RECORD = ("logp_old", "logp_ref")
"""What a recipe may want that the record holds: the passes of an update do not compute it."""


@dataclass(frozen=True)
class Gradient:
    """Settings of `update`: what is compiled into it.

    A batch is passed over `epochs` times in `minibatches` pieces of whole prompts, so a batch gives
    ``epochs * minibatches`` optimiser updates; `microbatches` cuts a minibatch further to bound memory and changes no
    number. `updates` is the number of optimiser updates in the run, which the learning rate schedule needs. `reference`
    says how the policy that a penalty compares with moves.
    """

    model: AnyModel
    recipe: objectives.Recipe
    optimizer: AnyOptimizer
    group_size: int
    updates: int
    temperature: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1
    chunk: int | None = None
    reference: AnyReference = Fixed()
    replay_experts: bool = True  # a mixture goes through the experts that the sampler chose; False: its own choices

    def check(self, prompts: int) -> None:
        """Raise a ValueError unless a batch of `prompts` can be cut and the optimiser can train the model."""
        for name in ("epochs", "minibatches", "microbatches", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}: got {getattr(self, name)}, allowed >= 1: set 1 for no split")
        pieces = self.minibatches * self.microbatches
        if prompts % pieces:
            near = sorted({max(prompts // pieces, 1) * pieces, -(-prompts // pieces) * pieces})
            raise ValueError(
                f"train.prompts: got {prompts}, which {self.minibatches} minibatches x {self.microbatches}"
                f" micro-batches do not divide; the nearest valid numbers are {' and '.join(map(str, near))}: change"
                " train.prompts or the splits"
            )
        if isinstance(self.optimizer, TrustRegion) and kind_of(self.model).fisher is None:
            raise ValueError(
                f"optimizer: got TrustRegion for a {type(self.model).__name__}, whose curvature nobody can tell,"
                " allowed are Optimizer and SGD: take one of these, or a ModelConfig"
            )
        if isinstance(self.optimizer, TrustRegion) and self.model.critic is not None:
            raise ValueError(
                f"model.critic: got {self.model.critic!r}, allowed with a TrustRegion is None: the divergence that"
                " bounds a step does not see the critic; train it by another optimizer, or leave it out"
            )


Score = Callable[[Params, Batch], TokenStats]
"""`statistics`, bound to the update."""


class Piece(NamedTuple):
    """What a micro-batch adds: everything in it is a sum over tokens, so pieces add up exactly."""

    loss: Array
    gradient: Params
    sums: dict[str, Array]


Move = Callable[[TrainState, Piece, Batch], tuple[TrainState, dict[str, Array]]]
"""From loss and gradient of a minibatch, which is arranged, to the next state; with metrics, ``skipped`` among them."""


def begin(params: Params, settings: Gradient) -> optax.OptState:
    """What the optimiser keeps of `params` before its first update."""
    return _optimizer(settings).init(params)


def _optimizer(settings: Gradient) -> optax.GradientTransformation:
    taught = None if settings.model.critic is None else "value" in objectives.wants(settings.recipe)
    return build(settings.optimizer, settings.updates, critic=taught)


def update(
    state: TrainState,
    batch: Batch,
    settings: Gradient,
    *,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    reference: Params | None = None,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """`state` after ``epochs * minibatches`` optimiser updates on `batch`, and their mean metrics.

    The loss of minibatch b of M is ``M * sum of weight * term`` over its rows: the mean over minibatches is the loss of
    the batch whatever M. An update whose loss, gradient or step is not finite changes neither parameters nor optimiser
    state and adds one to ``state.skipped``, which a good update sets back to 0. `key` orders the prompts and feeds
    `prepare` steps; `reference` are the parameters of the policy with which a term compares whole distributions. Where
    parameters are `frozen`, those of the state and of the reference are the others, and no gradient is made of them.
    """
    move = partial(_apply, optimizer=_optimizer(settings))
    return rounds(state, batch, settings, move, key=key, mesh=mesh, reference=reference, frozen=frozen)


def rounds(
    state: TrainState,
    batch: Batch,
    settings: Gradient,
    move: Move,
    *,
    key: Array,
    mesh: jax.sharding.Mesh | None = None,
    reference: Params | None = None,
    frozen: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """`update` with `move` in place of the optimiser: the minibatches in their order, loss and gradient of each."""
    score = partial(statistics, settings=settings, mesh=mesh, reference=reference, frozen=frozen)
    arranged = batches.arrange(batch, settings.group_size)
    levels = batches.has_levels(batch)
    order = _order(settings, batch.rollouts.prompts.length.shape[0], key)
    weight = metrics.diagnostic_weight(batch) * settings.minibatches
    newest = jnp.max(batch.rollouts.version)

    def one(state: TrainState, xs: tuple[Array, Array]) -> tuple[TrainState, tuple]:
        index, step_key = xs
        mini = batches.take(arranged, index) if order.shape[0] > 1 else arranged
        mini = _prepared(state.params, mini, settings, step_key, levels, score)
        piece, logp = _accumulate(state.params, mini, settings, weight, levels, score)
        state, extra = move(state, piece, mini)
        gap = jnp.abs(mini.rollouts.logp_full - logp)
        # Also rows that the grouping dropped, but none that earlier parameters sampled: there the two differ.
        fresh = mini.reward.valid & (mini.rollouts.version == newest)
        sampled = mini.rollouts.mask & fresh[:, :, None]
        return state, ({**piece.sums, **extra, "loss": piece.loss}, gap, sampled)

    keys = jax.random.split(jax.random.fold_in(key, 1), order.shape[0])
    if order.shape[0] == 1:
        state, (values, gap, mask) = one(state, (order[0], keys[0]))
    else:
        state, (values, gap, mask) = jax.lax.scan(one, state, (order, keys))
        gap, mask = gap[0], mask[0]  # later updates have moved away from the sampler on purpose
        values = {name: v.sum() if name == "skipped" else v.mean(0) for name, v in values.items()}
    plain = {name: values.pop(name) for name in ("loss", "grad_norm", "skipped")}
    plain["skipped/consecutive"] = state.skipped
    return state, {**plain, **metrics.finalise(values), **metrics.logp_gap(gap, mask)}


def _order(settings: Gradient, prompts: int, key: Array) -> Array:
    """i32[epochs * M, P / M], the prompts of each update: every epoch is a permutation."""
    rounds = settings.epochs * settings.minibatches
    if rounds == 1:
        return jnp.arange(prompts, dtype=jnp.int32)[None]
    keys = jax.random.split(jax.random.fold_in(key, 0), settings.epochs)
    orders = [jax.random.permutation(keys[epoch], prompts) for epoch in range(settings.epochs)]
    return jnp.stack(orders).astype(jnp.int32).reshape(rounds, prompts // settings.minibatches)


def statistics(
    params: Params,
    rows: Batch,
    *,
    settings: Gradient,
    mesh: jax.sharding.Mesh | None = None,
    reference: Params | None = None,
    frozen: Params | None = None,
    want: tuple[str, ...] | None = None,
) -> TokenStats:
    """What the policy of `params`, and of what is `frozen`, says of `rows`: log-probabilities, and `want`.

    None is what the recipe asks for and what every journal has: the entropy, and of a mixture what was replayed.
    """
    if want is None:
        asked = {name for name in objectives.wants(settings.recipe) if name not in OF_THE_RECORD}
        own = ("entropy",) if rows.rollouts.experts is None else ("entropy", "replaced")
        want = tuple(sorted({*asked, *own}))
    return logprobs(
        join(params, frozen),
        settings.model,
        rows.rollouts,
        temperature=settings.temperature,
        want=want,
        group_size=settings.group_size,
        chunk=settings.chunk,
        mesh=mesh,
        reference=None if reference is None else join(reference, frozen),
        replay=settings.replay_experts,
    )


def _prepared(params: Params, mini: Batch, settings: Gradient, key: Array, levels: bool, score: Score) -> Batch:
    """`mini` after the prepare steps of the recipe, which may read every row of the update."""
    if not settings.recipe.prepare:
        return mini
    rows = batches.flatten(mini, levels=levels)
    return batches.arrange(objectives.prepared(settings.recipe, score(params, rows), rows, key), settings.group_size)


def _accumulate(
    params: Params, mini: Batch, settings: Gradient, weight: Array, levels: bool, score: Score
) -> tuple[Piece, Array]:
    """Loss, gradient and diagnostic sums over a minibatch, and its log-probabilities f32[P / M, G, T]."""

    def objective(params: Params, rows: Batch) -> tuple[Array, tuple[dict[str, Array], Array]]:
        stats = score(params, rows)
        value = objectives.loss(settings.recipe.parts, stats, rows) * settings.minibatches
        fixed = jax.lax.stop_gradient(stats)
        sums = {name: weight * total for name, total in metrics.diagnostic_sums(settings.recipe, fixed, rows).items()}
        return value, (sums, fixed.logp)

    def piece(part: Batch) -> tuple[Piece, Array]:
        rows = batches.flatten(part, levels=levels)
        (value, (sums, logp)), gradient = jax.value_and_grad(objective, has_aux=True)(params, rows)
        return Piece(value, gradient, sums), logp.reshape(part.mask.shape)

    if settings.microbatches == 1:
        return piece(mini)
    parts = batches.split(mini, settings.microbatches)
    shape = jax.eval_shape(piece, jax.tree.map(lambda x: x[0], parts))[0]
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, accumulator(s.dtype)), shape)

    def add(total: Piece, part: Batch) -> tuple[Piece, Array]:
        more, logp = piece(part)
        return jax.tree.map(lambda t, m: t + m.astype(t.dtype), total, more), logp

    total, logp = jax.lax.scan(add, zero, parts)
    return total, jnp.swapaxes(logp, 0, 1).reshape(mini.mask.shape)


def _apply(
    state: TrainState, piece: Piece, mini: Batch, *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update, refused as a whole when anything in it is not finite."""
    del mini
    norm = global_norm(piece.gradient)
    step, opt_state = optimizer.update(piece.gradient, state.opt_state, state.params)
    finite = jnp.isfinite(piece.loss) & jnp.isfinite(norm) & jnp.isfinite(global_norm(step))

    def guarded(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    with jax.numpy_dtype_promotion("standard"):
        params = optax.apply_updates(state.params, step)
    state = state.replace(
        params=jax.tree.map(guarded, params, state.params),
        opt_state=jax.tree.map(guarded, opt_state, state.opt_state),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )
    return state, {"grad_norm": norm, "skipped": (~finite).astype(jnp.int32)}
