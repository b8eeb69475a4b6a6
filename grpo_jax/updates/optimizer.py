"""Settings of the ways to update, and the optax transformation that those of a gradient stand for."""

import typing
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax.models import without_critic
from grpo_jax.models.critic import CRITIC
from grpo_jax.updates.moments import SLOWEST, Moments, adam, mastered, widened

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Optimizer:
    """AdamW after clipping by the global norm, with a learning rate that warms up linearly and then decays.

    After `warmup` updates the rate is `learning_rate`; it then falls along a line or a half cosine, which reaches
    ``final * learning_rate`` when all updates of the run are done. `clip_norm` 0 switches clipping off. Source:
    Loshchilov and Hutter, arXiv:1711.05101.

    The parameters of a critic learn at `critic_rate` times that rate, and are clipped by a norm of their own, as by an
    optimiser of their own; in the first `critic_warmup` updates the policy stays as it is, while its averages of
    gradients begin and the schedule of its rate runs.

    `moments` says in how many bytes averages of gradients are kept (`updates.moments`). With `master` the optimiser has
    the parameters in float32 too, and those of the model, in bfloat16, are their rounding.
    """

    learning_rate: float = 1e-6
    warmup: int = 0
    schedule: str = "constant"
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    critic_rate: float = 1.0
    critic_warmup: int = 0
    moments: Moments = "float32"
    master: bool = False

    def __post_init__(self) -> None:
        _check(self, positive=("learning_rate", "eps"), averages=("b1", "b2"))
        kinds = typing.get_args(Moments)
        if self.moments not in kinds:
            raise ValueError(f"optimizer.moments: got {self.moments!r}, allowed {', '.join(kinds)}: name one of them")
        if self.moments == "bfloat16" and self.b2 > SLOWEST:
            raise ValueError(
                f"optimizer.b2: got {self.b2} with moments in bfloat16, allowed 0 <= b2 <= {SLOWEST}: an average that"
                " falls more slowly is rounded to what it was; lower b2, or set moments to float32 or factored"
            )

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """What turns a clipped gradient into a step, at the learning rate `rate`."""
        direction = adam(self.b1, self.b2, self.eps, self.moments)
        decay = optax.add_decayed_weights(self.weight_decay)
        return widened(optax.chain(direction, decay, optax.scale_by_learning_rate(rate)))


@dataclass(frozen=True)
class SGD:
    """Gradient descent after clipping by the global norm; rate, clipping and the critic as in `Optimizer`.

    With g the clipped gradient and m the momentum, ``v <- g + m v`` and the step is ``-rate v``: at a constant gradient
    it grows to ``rate / (1 - m)`` times that gradient. Unlike the step of Adam it is proportional to the gradient, so
    a constant factor of an objective acts like one of the learning rate.
    """

    learning_rate: float = 1e-2
    warmup: int = 0
    schedule: str = "constant"
    final: float = 0.0
    momentum: float = 0.0
    clip_norm: float = 1.0
    critic_rate: float = 1.0
    critic_warmup: int = 0

    def __post_init__(self) -> None:
        _check(self, positive=("learning_rate",), averages=("momentum",))

    def rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """What turns a clipped gradient into a step, at the learning rate `rate`."""
        return optax.sgd(rate, momentum=self.momentum or None)


@dataclass(frozen=True)
class TrustRegion:
    """A natural gradient whose length a divergence decides and a line search proves: TRPO, no learning rate.

    `delta` bounds the mean over tokens of KL(old || new), in nats. Over the updates of a run it falls along a line to
    ``final * delta``: steps go to the border however small the gradient, and that of a policy which hardly errs is
    mostly chance.

    The direction is what at most `iterations` conjugate gradients find, fewer when their residual falls below
    `tolerance` times the gradient. `damping` is added to the curvature, whose scale is that of a mean over tokens, and
    keeps directions that the policy hardly depends on from becoming long. The line search tries the whole step, then
    `shrink` of it and so on, `backtracks` in all, and takes the first that lowers the loss within `delta`; with
    `backtracks` 0 it is left out and the whole step is taken: the natural gradient (Kakade 2001), whose divergence is
    `delta` only to second order. `fisher_share` is the share of the prompts that the curvature is computed from, which
    is where the time goes; loss and divergence of the line search are always those of all prompts. Source: Schulman et
    al., arXiv 1502.05477, appendix C.
    """

    delta: float = 0.01
    final: float = 1.0
    damping: float = 0.1
    iterations: int = 10
    tolerance: float = 1e-3
    backtracks: int = 10
    shrink: float = 0.5
    fisher_share: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("delta", self.delta > 0, "> 0 nats a token: set 0.01, the usual one"),
            ("final", 0 <= self.final <= 1, "0 <= final <= 1: set 1 for a delta that stays"),
            ("damping", self.damping >= 0, ">= 0: set 0 to add nothing to the curvature"),
            ("iterations", self.iterations >= 1, ">= 1: set 10, the usual number"),
            ("tolerance", 0 <= self.tolerance < 1, "0 <= tolerance < 1: set 0 to spend all iterations"),
            ("backtracks", self.backtracks >= 0, ">= 0: set 0 to take every step whole"),
            ("shrink", 0 < self.shrink < 1, "0 < shrink < 1: set 0.5 to halve a step that failed"),
            ("fisher_share", 0 < self.fisher_share <= 1, "0 < fisher_share <= 1: set 1 to take all prompts"),
        )
        for name, fits, allowed in checks:
            if not fits:
                raise ValueError(f"optimizer.{name}: got {getattr(self, name)}, allowed {allowed}")


_WORDS = ("schedule", "moments", "master")
"""Settings that are no numbers."""
AnyOptimizer = Optimizer | SGD | TrustRegion


def _check(settings: Optimizer | SGD, *, positive: tuple[str, ...], averages: tuple[str, ...]) -> None:
    if settings.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule: got {settings.schedule!r}, allowed {', '.join(SCHEDULES)}: name one of them"
        )
    for name in positive:
        if not getattr(settings, name) > 0:
            raise ValueError(f"optimizer.{name}: got {getattr(settings, name)}, allowed > 0: set a positive number")
    for name in averages:
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(
                f"optimizer.{name}: got {getattr(settings, name)}, allowed 0 <= {name} < 1: set 0 for no average over"
                " updates"
            )
    for name in {field.name for field in fields(settings)} - {*positive, *averages, *_WORDS}:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"optimizer.{name}: got {getattr(settings, name)}, allowed >= 0: set 0 to switch it off")


def learning_rate(settings: Optimizer | SGD, updates: int) -> optax.Schedule:
    """Rate as a function of the number of updates done; `updates` is the number in the whole run."""
    peak = settings.learning_rate
    rest = max(updates - settings.warmup, 1)
    if settings.schedule == "linear":
        main = optax.linear_schedule(peak, peak * settings.final, rest)
    elif settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=settings.final)
    else:
        main = optax.constant_schedule(peak)
    if not settings.warmup:
        return main
    rise = optax.linear_schedule(peak / (settings.warmup + 1), peak, settings.warmup)
    return optax.join_schedules([rise, main], [settings.warmup])


def build(settings: AnyOptimizer, updates: int, *, critic: bool | None = None) -> optax.GradientTransformation:
    """The transformation for a run of `updates` optimiser updates. ValueError for a method that is none.

    `critic` None is for parameters without a critic. With one it says whether the objective teaches it: a critic that
    nobody teaches stays as it is, whatever the weight decay.
    """
    if isinstance(settings, TrustRegion):
        raise ValueError("optimizer: got TrustRegion, allowed Optimizer, SGD: its step is no function of the gradient")
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    rule = settings.rule(learning_rate(settings, updates))
    whole = optax.chain(clip, rule)
    if critic is not None:
        whole = optax.chain(_apart(clip), rule, _roles(settings, taught=critic))
    return _promoting(mastered(whole) if isinstance(settings, Optimizer) and settings.master else whole)


def _apart(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, which keeps no state, on the critic and on all other parameters, each by themselves."""

    def update(updates: Any, state: optax.OptState, params: optax.Params | None = None) -> tuple:
        del params
        policy: Any = inner.update(without_critic(updates), state)[0]
        if CRITIC not in updates:  # it is frozen
            return policy, state
        return {**policy, CRITIC: inner.update(updates[CRITIC], state)[0]}, state

    return optax.GradientTransformation(inner.init, update)


def _roles(settings: Optimizer | SGD, *, taught: bool) -> optax.GradientTransformation:
    """Steps of the critic times its rate, or 0 where it is not `taught`; steps of the policy 0 while that waits."""
    rate, wait = (settings.critic_rate, settings.critic_warmup) if taught else (0.0, 0)

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: optax.Params | None = None) -> tuple:
        del params
        moves = state.count >= wait
        policy = jax.tree.map(lambda step: jnp.where(moves, step, jnp.zeros_like(step)), without_critic(updates))
        critic = {CRITIC: jax.tree.map(lambda step: step * rate, updates[CRITIC])} if CRITIC in updates else {}
        return {**policy, **critic}, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` under the standard promotion of dtypes, on which optax relies, so that callers may use the strict one."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
