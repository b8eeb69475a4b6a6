"""Prompts drawn by difficulty: how often each class of problems was solved decides how often it is drawn.

A *class* is what a success rate is remembered of: a line of a file (`Jsonl`), a part of a mixture (`Mixture`); a task
says which there are by the methods of `Classed`. The class of draw k is found where a uniform number, hashed from
(seed, k), falls among the cumulated probabilities of the classes, so it is a function of the seed, k and the rates of
that step and of nothing else. The rates are part of the state of a run and of every checkpoint.

A *rule* ``(rate f64[C], share f64[C]) -> weight f64[C]`` makes of the rates, and of the shares that the classes would
have otherwise, weights above 0: every class can be drawn, whatever its rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from grpo_jax.data.counter import hashed, unit
from grpo_jax.types import Prompts

PREFIX = "difficulty."
"""Of the names in `TrainState.memory` that hold the rates."""
_STREAM = -2  # of the choice of a class; apart from what tasks hash
Rates = Mapping[str, np.ndarray]
"""``{"difficulty.rate": f32[C], "difficulty.seen": i32[C]}``: success rate, and in how many steps it was measured."""
Rule = Callable[..., np.ndarray]


@runtime_checkable
class Classed(Protocol):
    """A task whose training problems are of finitely many classes, each of which can be asked for."""

    def class_shares(self) -> np.ndarray:
        """f64[C] above 0 that sum to 1: the shares of the classes where nothing is known of their difficulty."""
        ...

    def class_of(self, row: np.ndarray) -> np.ndarray:
        """i64[P], the class of every training prompt, from its `Prompts.row` i32[P]."""
        ...

    def draw_class(self, seed: int, draws: np.ndarray, classes: np.ndarray) -> Prompts:
        """A training problem of class ``classes[i]`` for every draw; a function of the seed, the draw and the class."""
        ...

    def drawable(self, seed: int, draws: np.ndarray) -> Prompts:
        """Every problem that `draw_class` gives for one of these draws and any class."""
        ...


def by_variance(rate: np.ndarray, share: np.ndarray, *, floor: float = 0.05) -> np.ndarray:
    """``share * (rate * (1 - rate) + floor)``: the variance of a success, largest for what is solved every other time.

    The gradient of a prompt solved always, or never, is 0; `floor` above 0 has it tried again nevertheless.
    """
    if not floor > 0:
        raise ValueError(f"by_variance.floor: got {floor}, allowed > 0: every prompt has to have a chance; raise it")
    return share * (rate * (1.0 - rate) + floor)


def in_pools(
    rate: np.ndarray,
    share: np.ndarray,
    *,
    low: float = 0.2,
    high: float = 0.8,
    hard: float = 0.25,
    medium: float = 0.5,
    easy: float = 0.25,
) -> np.ndarray:
    """Three pools by rate (hard: at most `low`; easy: at least `high`; medium: between), each with a share of its own.

    Within a pool the classes are drawn by their `share`; the share of a pool without classes goes to the others.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"in_pools: got low={low}, high={high}, allowed 0 <= low < high <= 1: change them")
    given = {"hard": hard, "medium": medium, "easy": easy}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"in_pools.{name}: got {value}, allowed > 0: every prompt has to have a chance; raise it")
    pool = np.where(rate <= low, 0, np.where(rate >= high, 2, 1))
    sizes = np.bincount(pool, weights=share, minlength=3)
    return share * (np.array(list(given.values())) / np.where(sizes > 0, sizes, 1.0))[pool]


@dataclass(frozen=True)
class Difficulty:
    """Settings: the prompts of a step are drawn by how often problems of their class were solved.

    A row is a success where its `component` is at least `success`. After a step the rate of a class moves to
    ``decay * rate + (1 - decay) * (successes / rows of the step)``; its first measurement takes the place of `prior`.
    """

    rule: Rule = by_variance
    component: str = "accuracy"
    success: float = 1.0
    decay: float = 0.7
    prior: float = 0.5

    def __post_init__(self) -> None:
        for name, fits, allowed in (
            ("decay", 0 <= self.decay < 1, "0 up to, not including, 1"),
            ("prior", 0 <= self.prior <= 1, "0 to 1, a rate"),
        ):
            if not fits:
                raise ValueError(
                    f"train.difficulty.{name}: got {getattr(self, name)}, allowed {allowed}: change it to a number in"
                    " that range"
                )


def initial(settings: Difficulty, shares: np.ndarray) -> Rates:
    """The rates of a run that has seen nothing."""
    count = len(shares)
    return {
        f"{PREFIX}rate": np.full(count, settings.prior, np.float32),
        f"{PREFIX}seen": np.zeros(count, np.int32),
    }


def probabilities(settings: Difficulty, rates: Rates, shares: np.ndarray) -> np.ndarray:
    """f64[C], the probability of every class under the rule.

    Raises ValueError where the rule gives something else than finite weights above 0.
    """
    weight = np.asarray(settings.rule(rates[f"{PREFIX}rate"].astype(np.float64), shares), np.float64)
    if weight.shape != shares.shape or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(
            f"train.difficulty.rule: got weights of shape {weight.shape}, the smallest {weight.min(initial=np.inf)};"
            f" allowed are {len(shares)} finite ones above 0, so that every class can be drawn: add a constant to them"
        )
    return weight / np.cumsum(weight)[-1]  # summed in order, so that it is the same everywhere


def chosen(seed: int, draws: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """i64[n], the class of every draw."""
    bounds = np.cumsum(probability)[:-1]
    return np.searchsorted(bounds, unit(hashed(_STREAM, seed, draws)), side="right").astype(np.int64)


def measured(settings: Difficulty, rates: Rates, classes: np.ndarray, won: np.ndarray, counted: np.ndarray) -> Rates:
    """`rates` after a step with rows of `classes` i64[N], of which those `counted` bool[N] count and `won` are solved.

    A class without a counted row keeps its rate.
    """
    count = len(rates[f"{PREFIX}rate"])
    rows = np.bincount(classes[counted], minlength=count)
    wins = np.bincount(classes[counted & won], minlength=count)
    there = rows > 0
    mean = wins / np.maximum(rows, 1)
    old, seen = rates[f"{PREFIX}rate"].astype(np.float64), rates[f"{PREFIX}seen"]
    moved = np.where(seen == 0, mean, settings.decay * old + (1.0 - settings.decay) * mean)
    return {
        f"{PREFIX}rate": np.where(there, moved, old).astype(np.float32),
        f"{PREFIX}seen": (seen + there).astype(np.int32),
    }


def told(rates: Rates, probability: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """What there is to tell of a step that drew `classes` with `probability` and left `rates`.

    ``difficulty/success`` is the mean rate of the classes seen so far (0 before), ``difficulty/seen`` their share,
    ``difficulty/entropy`` that of the draws, in nats, ``difficulty/classes`` how many were drawn at this step.
    """
    rate, seen = rates[f"{PREFIX}rate"].astype(np.float64), rates[f"{PREFIX}seen"] > 0
    return {
        "difficulty/success": float(np.cumsum(rate[seen])[-1] / seen.sum()) if seen.any() else 0.0,
        "difficulty/seen": float(seen.mean()),
        "difficulty/entropy": float(-np.cumsum(probability * np.log(probability))[-1]),
        "difficulty/classes": float(len(np.unique(classes))),
    }
