"""Which variants should coincide, and why: algebra on recipes, not names.

The gradient of a recipe is a sum over parts of coefficient x aggregation x term, made from one advantage. Each rule of
this module rewrites one of these into another with the same gradient, or with one that is a constant times it, under a
condition that is checked on the experiment; what it cannot decide it leaves alone. Variants whose forms agree then have
proportional gradients. Whether that makes their runs agree is decided by the optimiser: AdamW without clipping does not
see a constant factor (but for its epsilon), gradient descent sees it as one of its learning rate.

Terms, aggregations, advantages and groupings of users are opaque: equal only to themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import expm1
from typing import Any, NamedTuple, cast

from grpo_jax.advantages import group_centered, group_leave_one_out, group_standardized
from grpo_jax.experiment import Experiment, settings
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.objectives import (
    ESTIMATORS,
    Recipe,
    Term,
    add,
    describe,
    fixed_length,
    functions,
    kl_penalty,
    log_ratio,
    negative_entropy,
    negative_log_likelihood,
    over_behavior,
    over_itself,
    over_old,
    ppo_clip,
    reinforce,
    reweight,
    scale,
    sequence_mean_token_sum,
)
from grpo_jax.objectives.ratios import interval, log_ratio_behavior
from grpo_jax.updates import SGD, AnyOptimizer, Optimizer, TrustRegion

_ADDED, _SCALED, _REWEIGHTED = (
    cast(partial, made).func for made in (add(), scale(reinforce, by=1.0), reweight(reinforce, reinforce))
)
DEGREES: Mapping[Callable, int] = {
    reinforce: 1,
    ppo_clip: 1,
    negative_log_likelihood: 0,
    negative_entropy: 0,
    kl_penalty: 0,
    over_old: 0,
    over_behavior: 0,
    over_itself: 0,
}
"""What the value of a term is multiplied by when all advantages are multiplied by c > 0: c to this power."""
RATIOS = (log_ratio, log_ratio_behavior)
"""Log-ratios that read no advantage."""


class Atom(NamedTuple):
    """A summand of the gradient: coefficient, term, its degree (None: unknown), whether it is finite for certain."""

    coefficient: float
    term: str
    degree: int | None
    finite: bool


@dataclass(frozen=True)
class Form:
    """The gradient of a recipe as far as this module understands it: `scale` times what the rest says."""

    atoms: tuple[tuple[str, str, float], ...]  # aggregation, term, coefficient relative to the first
    advantage: str
    grouping: str
    prepare: str
    scale: float
    used: tuple[str, ...]  # sentences of the rules that were used, in their order


@dataclass(frozen=True)
class Setting:
    """What rules have to know beside the recipe."""

    group_size: int
    rows: int
    updates: int  # optimiser updates from one batch
    gap: float  # nats; the largest difference that sampler and trainer may have on a token
    own_rollouts: bool = True  # whether a variant trains on what its own policy sampled

    @classmethod
    def of(cls, experiment: Experiment, *, own_rollouts: bool = True) -> "Setting":
        """That of an experiment."""
        train = experiment.train
        return cls(
            group_size=train.group_size,
            rows=train.prompts * train.group_size,
            updates=train.epochs * train.minibatches,
            gap=train.gap_limit,
            own_rollouts=own_rollouts,
        )


@dataclass(frozen=True)
class Claim:
    """Variants that should coincide, how closely, and the reasons."""

    names: tuple[str, ...]
    closeness: str
    reasons: tuple[str, ...]

    def sentence(self) -> str:
        """The claim for people."""
        together = f"{', '.join(self.names[:-1])} and {self.names[-1]} should coincide {self.closeness}"
        return f"{together}: {'; '.join(self.reasons)}."


def claims(variants: Mapping[str, Experiment], *, own_rollouts: bool = True) -> list[Claim]:
    """Every set of `variants` that should coincide, in the order of their names; empty where nothing is certain."""
    classes: dict[tuple, list[tuple[str, Form, AnyOptimizer]]] = {}
    for name, experiment in variants.items():
        searched = isinstance(experiment.optimizer, TrustRegion)  # by the values of the loss, not by its gradient alone
        setting = Setting.of(experiment, own_rollouts=own_rollouts)
        form = _opaque(experiment.recipe) if searched else canonical(experiment.recipe, setting)
        rest = tuple(sorted(_others(experiment).items()))
        key = (rest, form.atoms, form.advantage, form.grouping, form.prepare, effective(experiment.optimizer, form))
        classes.setdefault(key, []).append((name, form, experiment.optimizer))
    return [_claim(members) for members in classes.values() if len(members) > 1]


def _others(experiment: Experiment) -> dict[str, str]:
    """The settings that are neither a name nor part of recipe or optimiser."""
    apart = ("recipe", "optimizer", "name")
    return {path: text for path, text in settings(experiment).items() if path.split(".")[0] not in apart}


def _claim(members: Sequence[tuple[str, Form, AnyOptimizer]]) -> Claim:
    used = [form.used for _, form, _ in members]
    reasons = [
        step
        for step in dict.fromkeys(step for steps in used for step in steps)
        if not all(step in steps for steps in used)
    ]
    scales = [form.scale for _, form, _ in members]
    factor, optimizer = max(scales) / min(scales), members[0][2]
    closeness = "up to rounding" if reasons else "exactly"
    if _text(factor) != "1":
        reasons += _factor_reasons(factor, optimizer)
        closeness = (
            f"up to Adam's epsilon ({optimizer.eps:g})" if isinstance(optimizer, Optimizer) else "up to rounding"
        )
    names = tuple(name for name, _, _ in members)
    return Claim(names, closeness, tuple(reasons) or ("their recipes, optimisers and settings are the same",))


def _factor_reasons(factor: float, optimizer: AnyOptimizer) -> list[str]:
    reasons = [f"their gradients differ by the constant factor {factor:.6g}"]
    if isinstance(optimizer, SGD):
        return [*reasons, "their learning rates make up for it"]
    if isinstance(optimizer, Optimizer) and optimizer.clip_norm:
        return [*reasons, "their norms are clipped in the same proportion, and AdamW cancels a constant factor"]
    return [*reasons, "AdamW without clipping of the gradient's norm cancels it"]


def effective(optimizer: AnyOptimizer, form: Form) -> tuple[str, ...]:
    """Text that is equal where equal forms, whatever their scales, make equal steps (Adam: but for its epsilon)."""
    rest = [(f.name, getattr(optimizer, f.name)) for f in fields(optimizer)]
    if isinstance(optimizer, TrustRegion):
        return (type(optimizer).__name__, *(f"{name}={value!r}" for name, value in rest))
    clip = _text(optimizer.clip_norm / form.scale)
    rate = []
    if isinstance(optimizer, SGD):
        rest = [(name, value) for name, value in rest if name != "learning_rate"]
        rate = [_text(optimizer.learning_rate * form.scale)]
    return (type(optimizer).__name__, clip, *rate, *(f"{n}={v!r}" for n, v in rest if n != "clip_norm"))


def _opaque(recipe: Recipe) -> Form:
    """The form of a recipe that is equal only to itself."""
    return Form((("", describe(recipe), 1.0),), "", "", "", 1.0, ())


def _text(x: float) -> str:
    """A factor as text in which rounding does not show."""
    return f"{x:.9g}"


def canonical(recipe: Recipe, setting: Setting) -> Form:
    """The form of `recipe` after every rule whose condition holds.

    Coefficients that change after each step may read anything: a recipe with some is equal only to itself.
    """
    if recipe.coefficients:
        return _opaque(recipe)
    used: list[str] = []
    parts = [(part.aggregation, atom) for part in recipe.parts for atom in _terms(part.term, recipe, setting, used)]
    grouping = _grouping(recipe, [aggregation for aggregation, _ in parts], [atom for _, atom in parts], used)
    advantage, factor = _advantage(recipe, grouping, [atom for _, atom in parts], setting, used)
    total: dict[tuple[str, str], float] = {}
    for aggregation, atom in parts:
        averaged, by = _aggregation(aggregation, grouping, setting, used)
        value = atom.coefficient * by * (factor if atom.degree else 1.0)
        total[averaged, atom.term] = total.get((averaged, atom.term), 0.0) + value
    ordered = sorted((key, value) for key, value in total.items() if value != 0)
    size = abs(ordered[0][1]) if ordered else 1.0
    atoms = tuple((*key, float(_text(value / size))) for key, value in ordered)
    return Form(atoms, advantage, grouping, describe(recipe.prepare), size, tuple(used))


# Terms


def _terms(term: Term, recipe: Recipe, setting: Setting, used: list[str]) -> list[Atom]:
    """The summands of `term`."""
    function, keywords = next(functions(term))
    if function is _ADDED:
        return [atom for inner in keywords["terms"] for atom in _terms(inner, recipe, setting, used)]
    if function is _SCALED and isinstance(keywords["by"], str):
        name = keywords["by"]
        return [
            atom._replace(term=f"coef {name!r} x {atom.term}")
            for atom in _terms(keywords["term"], recipe, setting, used)
        ]
    if function is _SCALED:
        return _scaled(keywords["term"], float(keywords["by"]), recipe, setting, used)
    if function is _REWEIGHTED:
        weight, free = keywords["weight"], _degree(keywords["weight"]) == 0
        return [
            atom._replace(
                term=f"({atom.term}) x {describe(weight)}",
                degree=atom.degree if free else None,
                finite=atom.finite and _finite(weight),
            )
            for atom in _terms(keywords["term"], recipe, setting, used)
        ]
    if function is ppo_clip and not recipe.prepare and _inside(keywords, setting):
        used.append(
            "with one update a batch every ratio is 1, where clipping does nothing and the gradient of ppo_clip is"
            " that of reinforce"
        )
        return [Atom(1.0, describe(reinforce), 1, True)]
    return [Atom(1.0, describe(term), _degree(term), _finite(term))]


def _scaled(term: Term, by: float, recipe: Recipe, setting: Setting, used: list[str]) -> list[Atom]:
    if by == 0 and _finite(term):
        used.append(f"{next(functions(term))[0].__name__} has weight 0")
        return []
    inner: list[str] = []
    atoms = _terms(term, recipe, setting, inner)
    if by == 0:  # 0 times what may be infinite: left as it stands
        return [Atom(1.0, describe(scale(term, by=by)), None, False)]
    used += inner
    return [atom._replace(coefficient=atom.coefficient * by) for atom in atoms]


def _degree(term: Any) -> int | None:
    """The degree of a term of the library; None where a function that it is given might read the advantage."""
    function, keywords = next(functions(term))
    given = {name: value for name, value in keywords.items() if callable(value)}
    ratio, weight = given.pop("ratio", log_ratio), given.pop("weight", None)
    given.pop("estimator", None)  # a kernel: it sees log-ratios alone
    free = not given and next(functions(ratio))[0] in RATIOS and (weight is None or _degree(weight) == 0)
    return DEGREES.get(function) if free else None


def _finite(term: Any) -> bool:
    """Whether value and gradient of a term of the library are finite wherever log-probabilities are."""
    function, keywords = next(functions(term))
    clamped = keywords.get("clamp_log_ratio", 0.0) is not None and keywords.get("clamp", 0.0) is not None
    known = keywords.get("estimator") in (None, *ESTIMATORS.values()) and keywords.get("weight") is None
    plain = next(functions(keywords.get("ratio", log_ratio)))[0] is log_ratio
    return function in DEGREES and clamped and known and plain


def _inside(keywords: Mapping[str, Any], setting: Setting) -> bool:
    """Whether every ratio is inside all bounds of a `ppo_clip`: one update, on what its own policy sampled."""
    lower, upper = interval(keywords["low"], keywords["high"], keywords["bounds"])
    dual, clamp = keywords["dual"], keywords["clamp_log_ratio"]
    away = expm1(setting.gap)  # |r - 1| is at most this, or the run has stopped
    return (
        setting.updates == 1
        and setting.own_rollouts
        and keywords["ratio"] is log_ratio
        and (lower is None or lower < 1 - away)
        and (upper is None or upper > 1 + away)
        and (dual is None or dual > 1 + away)
        and (clamp is None or clamp > setting.gap)
    )


# Grouping, advantage, aggregation


def _grouping(recipe: Recipe, aggregations: Sequence[Callable], atoms: Sequence[Atom], used: list[str]) -> str:
    """Text of the grouping; `drop_tied` over prompts becomes `by_prompt` where tied groups are worth nothing anyway."""
    function, keywords = next(functions(recipe.grouping))
    estimator, how = next(functions(recipe.advantage))
    averaged = [next(functions(aggregation)) for aggregation in aggregations]
    zero_if_tied = (
        estimator in (group_centered, group_leave_one_out, group_standardized)
        and how["singleton"] == "zero"
        and how.get("scope", "group") in ("group", "others")
    )
    if (
        function is drop_tied
        and keywords["grouping"] is by_prompt
        and keywords["component"] is None
        and not recipe.prepare
        and zero_if_tied
        and all(f is fixed_length and k["rows"] == "none" for f, k in averaged)
        and all(atom.degree == 1 and atom.finite for atom in atoms)
    ):
        used.append(
            "groups of equal rewards have advantage 0 and no denominator counts their rows, so that leaving them out"
            " changes no gradient"
        )
        return describe(by_prompt)
    return describe(recipe.grouping)


def _advantage(
    recipe: Recipe, grouping: str, atoms: Sequence[Atom], setting: Setting, used: list[str]
) -> tuple[str, float]:
    """Text of the advantage, and the factor by which that of the recipe is larger."""
    function, keywords = next(functions(recipe.advantage))
    divided = keywords.get("std", "none") != "none"
    if function is group_standardized and not divided:
        used.append("standardised without a deviation is the deviation from the group's mean")
        return describe(partial(group_centered, singleton=keywords["singleton"])), 1.0
    whole = grouping in (describe(by_prompt), describe(drop_tied))
    proportional = not recipe.prepare and all(atom.degree is not None for atom in atoms)
    size = setting.group_size
    if function is group_leave_one_out and not divided and size > 1 and whole and proportional:
        used.append(
            f"leave-one-out advantages are the deviations from the group's mean times G / (G - 1) = {size}/{size - 1},"
            " where every completion could be scored"
        )
        return describe(partial(group_centered, singleton=keywords["singleton"])), size / (size - 1)
    return describe(recipe.advantage), 1.0


def _aggregation(aggregation: Callable, grouping: str, setting: Setting, used: list[str]) -> tuple[str, float]:
    """Text of the aggregation, and the factor by which that of the recipe is larger."""
    function, keywords = next(functions(aggregation))
    if function is not fixed_length:
        return describe(aggregation), 1.0
    constant, rows = float(keywords["constant"]), keywords["rows"]
    used.append(f"fixed_length with constant {constant:g} is the sum over tokens divided by that number")
    if rows != "none":
        empty = {"all": "count", "nonempty": "skip"}[rows]
        return describe(partial(sequence_mean_token_sum, empty=empty)), 1.0 / constant
    if grouping == describe(by_prompt):
        used.append(f"a sum over all rows is {setting.rows} times their mean, where every completion could be scored")
        return describe(sequence_mean_token_sum), setting.rows / constant
    return describe(partial(fixed_length, constant=1.0, rows="none")), 1.0 / constant
