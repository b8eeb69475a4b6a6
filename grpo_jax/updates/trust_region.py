"""Updates by the natural gradient within a trust region: TRPO (Schulman et al. 2015, arXiv 1502.05477).

With L the loss of the recipe, theta the parameters and D the mean over the scored tokens of the divergence over the
whole vocabulary, an update is

    minimise L(theta + s)  subject to  D(theta, theta + s) <= delta,    D = mean KL(pi_theta || pi_(theta + s))

solved to first order in L and second order in D. With g the gradient of L and F the Fisher information, the Hessian of
D at theta, conjugate gradients find ``(F + damping) x = g``, and

    s = -sqrt(2 delta / x^T (F + damping) x) x

is the step that goes to the border. A line search then shortens it until what was only approximated holds: L is lower
and D is at most `delta`. The divergence is taken of the old policy from the new one, as in the paper: its tokens are
those that the old policy sampled, so that the mean over them is an estimate without bias of the expectation over the
states it visits. (The Hessian does not depend on the direction.)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from grpo_jax import masked, objectives
from grpo_jax.models import fisher, join, logprobs
from grpo_jax.sharding import BATCH_AXES, global_norm
from grpo_jax.types import Array, Batch, Metrics, Params, TrainState
from grpo_jax.updates import batches, gradient
from grpo_jax.updates.conjugate_gradient import add_scaled, inner, solve
from grpo_jax.updates.gradient import Gradient, Piece, Score
from grpo_jax.updates.optimizer import TrustRegion

Trial = Callable[[Params], tuple[Array, Array]]
"""Parameters -> loss and mean divergence of the old policy from them, f32[] each."""


class Counts(struct.PyTreeNode):
    """What a trust region keeps between updates (``TrainState.opt_state``)."""

    done: Array  # i32[], updates so far, but for those that were skipped
    rollbacks: Array  # i32[], steps of which the line search accepted no part


class _Search(NamedTuple):
    tried: Array  # i32[]
    accepted: Array  # bool[]
    fraction: Array  # f32[], of the step to the border
    params: Params
    loss: Array
    kl: Array


def begin(params: Params, settings: Gradient) -> Counts:
    """Counts, which is all that the method keeps: every update begins anew."""
    del params, settings
    return Counts(done=jnp.zeros((), jnp.int32), rollbacks=jnp.zeros((), jnp.int32))


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
    """`state` after ``epochs * minibatches`` steps, each within a trust region around where it begins; mean metrics.

    The loss is that of `gradient.update`. A step of which no tried part lowers the loss within the region leaves the
    parameters as they are: a rollback, which is counted in ``state.opt_state`` and is no failure. An update in which
    loss, gradient, solution or step is not finite leaves them too and adds one to ``state.skipped``, which any other
    update sets back to 0.

    Metrics beside those of `gradient.update`, which describe the policy before the step: ``trust/kl``, D of the step
    taken, nats, and ``trust/delta``, its bound; ``trust/improvement`` of the loss by it, and
    ``trust/expected_improvement``, ``-g^T s`` of the whole step; ``trust/step_fraction``, the part of it that was
    taken; ``trust/accepted``, the share of updates that took one; ``trust/cg_residual``,
    ``|g - (F + damping) x| / |g|``; ``trust/cg_products`` computed; ``trust/rollbacks`` so far.

    Raises ValueError when ``settings.optimizer`` is no `TrustRegion`.
    """
    region = settings.optimizer
    if not isinstance(region, TrustRegion):
        raise ValueError(
            f"optimizer: got {type(region).__name__}, allowed TrustRegion: call updates.update, it chooses"
        )
    given = {"mesh": mesh, "reference": reference, "frozen": frozen}
    score = partial(gradient.statistics, settings=settings, **given)
    view = _View(settings, region, batches.has_levels(batch), score, mesh, frozen)
    state, metrics = gradient.rounds(state, batch, settings, partial(_move, view=view), key=key, **given)
    return state, {**metrics, "trust/rollbacks": state.opt_state.rollbacks}


class _View(NamedTuple):
    """How an update looks at a minibatch."""

    settings: Gradient
    region: TrustRegion
    levels: bool
    score: Score
    mesh: jax.sharding.Mesh | None
    frozen: Params | None


def _move(state: TrainState, piece: Piece, mini: Batch, *, view: _View) -> tuple[TrainState, dict[str, Array]]:
    """One step on a minibatch of which `piece` is loss and gradient."""
    old, region = state.params, view.region
    trial = partial(_trial, old=old, mini=mini, view=view)
    delta = radius(region, state.opt_state.done, view.settings.updates).astype(piece.loss.dtype)
    curved = _curvature(old, mini, view)
    params, finite, extra = step(old, piece.loss, piece.gradient, curved, trial, region=region, delta=delta)
    back = finite & (extra["trust/accepted"] == 0)
    counts = Counts(
        done=state.opt_state.done + finite.astype(jnp.int32),
        rollbacks=state.opt_state.rollbacks + back.astype(jnp.int32),
    )
    state = state.replace(params=params, opt_state=counts, skipped=jnp.where(finite, 0, state.skipped + 1))
    return state, {**extra, "trust/delta": delta, "skipped": (~finite).astype(jnp.int32)}


def radius(region: TrustRegion, done: Array, updates: int) -> Array:
    """The bound on the divergence after `done` i32[] of the `updates` of a run, f32[]: a line that ends at `final`."""
    part = jnp.minimum(done.astype(jnp.float32) / max(updates, 1), 1)
    return region.delta * (1 - (1 - region.final) * part)


def step(
    params: Params,
    loss: Array,
    slope: Params,
    product: Callable[[Params], Params],
    trial: Trial,
    *,
    region: TrustRegion,
    delta: Array,
) -> tuple[Params, Array, dict[str, Array]]:
    """The step of the module's docstring from `params`: new parameters, bool[] whether all was finite, and metrics.

    `loss` f32[] and its gradient `slope` are those at `params`, `product` is ``v -> F v`` on trees with the dtypes of
    the parameters, `trial` tells loss and divergence at other parameters, and `delta` f32[] is the border. A constant
    factor of the loss changes no step; neither does a linear change of coordinates, where conjugate gradients converge
    and nothing damps them.
    """
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), slope)

    def damped(vector: Params) -> Params:
        image = product(jax.tree.map(lambda v, x: v.astype(x.dtype), vector, params))
        return jax.tree.map(lambda v, f: f.astype(v.dtype) + region.damping * v, vector, image)

    found = solve(damped, wide, iterations=region.iterations, tolerance=region.tolerance)
    still = found.quadratic <= 0  # no gradient, or none that rounding leaves; nan goes on
    one = jnp.ones_like(found.quadratic)
    length = jnp.where(still, 0, jnp.sqrt(2 * delta / jnp.where(still, one, found.quadratic)))
    norm = global_norm(slope)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(length * global_norm(found.x))
    end = _search(params, found.x, -length, loss, trial, region=region, delta=jnp.where(finite, delta, -1))
    if region.backtracks == 0:
        finite &= end.accepted
    taken = {"kl": end.kl, "improvement": loss - end.loss, "step_fraction": end.fraction}
    extra = {f"trust/{name}": jnp.where(end.accepted, value, 0) for name, value in taken.items()}
    return (
        jax.tree.map(lambda new, old: jnp.where(end.accepted, new, old), end.params, params),
        finite,
        {
            **extra,
            "grad_norm": norm,
            "trust/accepted": end.accepted.astype(loss.dtype),
            "trust/expected_improvement": length * inner(wide, found.x),
            "trust/cg_residual": found.residual,
            "trust/cg_products": found.products.astype(loss.dtype),
        },
    )


def _search(
    params: Params, x: Params, length: Array, loss: Array, trial: Trial, *, region: TrustRegion, delta: Array
) -> _Search:
    """The longest of the steps ``shrink^k length x``, k = 0, 1, ..., that is acceptable; none for a negative `delta`.

    Without backtracking the first one is taken as it is, if it leads to finite numbers.
    """
    limit = max(region.backtracks, 1)

    def unfinished(now: _Search) -> Array:
        return (now.tried < limit) & ~now.accepted

    def attempt(now: _Search) -> _Search:
        fraction = jnp.power(jnp.asarray(region.shrink, loss.dtype), now.tried.astype(loss.dtype))
        moved = add_scaled(params, fraction * length, x)
        moved = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, params)
        new_loss, kl = trial(moved)
        accepted = jnp.isfinite(new_loss) & jnp.isfinite(kl)
        if region.backtracks:
            accepted &= (new_loss < loss) & (kl <= delta)
        return _Search(now.tried + 1, accepted, fraction, moved, new_loss, kl)

    nothing = jnp.zeros_like(loss)
    tried = jnp.where(delta < 0, limit, 0).astype(jnp.int32)
    start = _Search(tried, jnp.zeros((), bool), nothing, params, nothing, nothing)
    return jax.lax.while_loop(unfinished, attempt, start)


def _trial(params: Params, *, old: Params, mini: Batch, view: _View) -> tuple[Array, Array]:
    """Loss of the minibatch at `params`, and the mean over its scored tokens of KL(pi_old || pi_params)."""
    settings = view.settings
    share = 1 / jnp.maximum(masked.count(mini.mask, dtype=mini.advantage.dtype), 1)

    def look(part: Batch) -> tuple[Array, Array]:
        rows = batches.flatten(part, levels=view.levels)
        loss = objectives.loss(settings.recipe.parts, view.score(params, rows), rows) * settings.minibatches
        stats = logprobs(
            join(old, view.frozen),
            settings.model,
            rows.rollouts,
            temperature=settings.temperature,
            want=("kl_full",),
            group_size=settings.group_size,
            chunk=settings.chunk,
            mesh=view.mesh,
            reference=join(params, view.frozen),
            replay=settings.replay_experts,
            replay_reference=settings.replay_experts,
        )
        assert stats.kl_full is not None
        return loss, share * masked.total(stats.kl_full, rows.mask)

    if settings.microbatches == 1:
        return look(mini)
    seen = jax.lax.map(look, batches.split(mini, settings.microbatches))
    return jnp.sum(seen[0]), jnp.sum(seen[1])


def _curvature(params: Params, mini: Batch, view: _View) -> Callable[[Params], Params]:
    """``v -> F v`` of the mean divergence over the scored tokens of `fisher_share` of the minibatch."""
    settings, count = view.settings, mini.mask.shape[0]
    shards = 1 if view.mesh is None else math.prod(view.mesh.shape[axis] for axis in BATCH_AXES)
    index, counts = chosen(count, view.region.fisher_share, shards)
    rows = mini if len(index) == count else batches.take(mini, jnp.asarray(index))
    mask = rows.mask & jnp.asarray(counts)[:, None, None]
    share = 1 / jnp.maximum(masked.count(mask, dtype=mini.advantage.dtype), 1)
    rows = rows.replace(mask=mask)

    def product(part: Batch) -> Callable[[Params], Params]:
        flat = batches.flatten(part, levels=view.levels)
        return fisher(
            params,
            settings.model,
            flat.rollouts,
            jnp.where(flat.mask, share, 0),
            temperature=settings.temperature,
            group_size=settings.group_size,
            chunk=settings.chunk,
            mesh=view.mesh,
            frozen=view.frozen,
            replay=settings.replay_experts,
        )

    cut = pieces(len(index), most=count // settings.microbatches, unit=shards)
    if cut == 1:
        return product(rows)
    parts = batches.split(rows, cut)

    def total(vector: Params) -> Params:
        def add(so_far: Params, part: Batch) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, so_far, product(part)(vector)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)[0]

    return total


def chosen(prompts: int, share: float, shards: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Which of `prompts` the curvature is computed from: numbers i64[Q], and bool[Q] whether a prompt counts.

    ``ceil(share * prompts)`` count, spread evenly. Others fill the number up to a multiple of `shards`, so that the
    curvature does not depend on it.
    """
    count = math.ceil(share * prompts - 1e-9)
    counted = np.arange(count) * prompts // count
    rest = np.setdiff1d(np.arange(prompts), counted)[: -count % shards]
    index = np.sort(np.concatenate([counted, rest]))
    return index, np.isin(index, counted)


def pieces(prompts: int, *, most: int, unit: int = 1) -> int:
    """The smallest number of equal pieces of `prompts` with at most `most` in each, a multiple of `unit`."""
    fitting = (cut for cut in range(1, prompts + 1) if prompts % cut == 0 and prompts // cut <= most)
    return next(cut for cut in fitting if prompts // cut % unit == 0)
