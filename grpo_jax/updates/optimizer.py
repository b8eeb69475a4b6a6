"""Settings of the optimiser, and the optax transformation they stand for."""

from dataclasses import dataclass

import jax
import optax

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Optimizer:
    """AdamW after clipping by the global norm, with a learning rate that warms up linearly and then decays.

    After `warmup` updates the rate is `learning_rate`; it then falls along a line or a half cosine, which reaches
    ``final * learning_rate`` when all updates of the run are done. `clip_norm` 0 switches clipping off. Source:
    Loshchilov and Hutter, arXiv:1711.05101.
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

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"optimizer.schedule: got {self.schedule!r}, allowed {', '.join(SCHEDULES)}: name one of them"
            )
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}: got {getattr(self, name)}, allowed > 0: set a positive number")
        for name in ("warmup", "final", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name}: got {getattr(self, name)}, allowed >= 0: set 0 to switch it off")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name}: got {getattr(self, name)}, allowed 0 <= {name} < 1: set 0 for no average over"
                    " updates"
                )


def learning_rate(settings: Optimizer, updates: int) -> optax.Schedule:
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


def build(settings: Optimizer, updates: int) -> optax.GradientTransformation:
    """The transformation for a run of `updates` optimiser updates."""
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    adamw = optax.adamw(
        learning_rate(settings, updates),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    return _promoting(optax.chain(clip, adamw))


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` under the standard promotion of dtypes, on which optax relies, so that callers may use the strict one."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
