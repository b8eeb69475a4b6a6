"""Bias and variance of the estimators, exactly: the tables and the figure of docs/estimators.md.

    python experiments/estimators.py               # prints the tables
    python experiments/estimators.py --out docs    # writes them and the figure into the page

The policies are so small that every batch can be listed (`grpo_jax.laboratory`), so means and variances are sums, in
float64; numbers with a ± are averages over batches drawn at random with a fixed seed. The page says what columns mean.
"""

import argparse
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import advantages as a
from grpo_jax import laboratory as lab
from grpo_jax import objectives as o
from grpo_jax.groups import by_prompt, drop_tied
from grpo_jax.report.curves import BLUE, FONT, GREEN, ORANGE, PURPLE, RED
from grpo_jax.report.plot import Axis, Curve, Pen, Scale, panel, text
from grpo_jax.report.saving import replace

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CHANCES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
CAPS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


class Table(NamedTuple):
    """A table of the page."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---", *["--:"] * (len(self.head) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Found(NamedTuple):
    """An estimator measured: its mean loss and update, and how it lies to the truth."""

    loss: float
    ascent: np.ndarray
    variance: float
    factor: float
    aside: float
    error: float

    @property
    def scaled(self) -> float:
        """Variance at the scale of the truth."""
        return self.variance / self.factor**2


def recipe(
    advantage: a.Advantage = a.outcome,
    term: o.Term = o.reinforce,
    aggregation: o.Aggregation = o.sequence_mean_token_sum,
) -> o.Recipe:
    """The estimator to vary: the mean over rows of the advantage times the score of the row."""
    return o.Recipe((o.Part(aggregation, term),), advantage, by_prompt)


@functools.lru_cache
def program(rule: o.Recipe, group_size: int, drawn: int) -> Callable[[lab.World], tuple]:
    """Compiled once a recipe and size."""

    def everything(world: lab.World) -> tuple:
        if drawn:
            found = lab.sampled(world, rule, jax.random.key(0), group_size=group_size, batches=drawn)
        else:
            found = lab.exact(world, rule, group_size=group_size)
        compared = lab.parallel(found.ascent, lab.policy_gradient(world))
        error = found.standard_error / jnp.linalg.norm(found.ascent.ravel())
        return found.loss, found.ascent, found.variance, *compared, error

    return jax.jit(everything, compiler_options=QUICK)


def measure(world: lab.World, rule: o.Recipe, *, group_size: int = 1, drawn: int = 0) -> Found:
    """`rule` in `world`, over all batches, or over `drawn` random ones."""
    loss, ascent, *numbers = program(rule, group_size, drawn)(world)
    return Found(float(loss), np.asarray(ascent), *map(float, numbers))


def number(value: float) -> str:
    """Three digits; what rounding leaves of a zero is a zero."""
    return "0" if abs(value) < 1e-10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def world_of(completions: lab.Completions, seed: int, **fields: np.ndarray) -> lab.World:
    """One prompt with random logits and rewards, but for `fields`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(1, *completions.allowed.shape))
    drawn = {"logits": logits, "reward": rng.normal(1.0, 1.0, (1, completions.length.shape[0]))}
    return lab.World(completions=completions, **{name: jnp.asarray(x) for name, x in (drawn | fields).items()})


def divergences() -> Table:
    """What each estimator of KL(policy || reference) has as value and as gradient."""
    fields = {"logits": np.asarray([[[1.0, 0.0, -1.0]]]), "reference": np.asarray([[[0.0, 0.5, 0.0]]])}
    world = world_of(lab.arms(3), 0, reward=np.zeros((1, 3)), **fields)
    listed, reference = world.completions, world.reference_logits
    forward, slope = jax.value_and_grad(lambda z: lab.divergence(listed, z, reference))(world.logits)
    backward = jax.grad(lambda z: lab.divergence(listed, reference, z))(world.logits)
    in_loss = {
        "`k1` in the loss": partial(o.kl_penalty, estimator=o.k1),
        "`k2` in the loss": partial(o.kl_penalty, estimator=o.k2),
        "`k3` in the loss": partial(o.kl_penalty, estimator=o.k3),
        "`absolute` in the loss": partial(o.kl_penalty, estimator=o.absolute),
        "`straight_through`": partial(o.kl_penalty, estimator=o.straight_through),
        "`k3` by `over_old`": partial(o.kl_penalty, weight=o.over_old),
        "`kl_exact`": o.kl_exact,
    }
    rules = {name: recipe(term=term) for name, term in in_loss.items()}
    for name, kernel in (("k1", o.k1), ("k3", o.k3)):
        paid = partial(o.penalized_outcome, advantage=a.outcome, coef=1.0, estimator=kernel)
        rules[f"`{name}` in the reward"] = recipe(paid)
    rows = []
    for name, rule in rules.items():
        found = measure(world, rule)
        gradient = -found.ascent
        apart = [float(np.linalg.norm(gradient - x) / np.linalg.norm(x)) for x in (slope, backward)]
        value = "" if "reward" in name else number(found.loss / float(forward))
        rows.append([name, value, *map(number, apart), number(found.variance)])
    head = ("estimator", "value / KL(π‖ref)", "off ∇KL(π‖ref)", "off ∇KL(ref‖π)", "variance")
    return Table("divergences", head, rows)


def prompt_weights(size: int, strategies: Mapping[str, a.Advantage]) -> dict[str, np.ndarray]:
    """Strategy -> weight of a prompt by its probability of success, f[CHANCES]."""
    completions, logits, reward = lab.coins(CHANCES)

    def factor(z: jax.Array, rule: o.Recipe) -> jax.Array:
        world = lab.World(completions=completions, logits=z[None], reward=reward[:1])
        return lab.parallel(lab.exact(world, rule, group_size=size).ascent, lab.policy_gradient(world)).factor

    each = {name: partial(factor, rule=recipe(strategy)) for name, strategy in strategies.items()}
    run = jax.jit(lambda z: {name: jax.vmap(f)(z) for name, f in each.items()}, compiler_options=QUICK)
    return {name: np.asarray(x) for name, x in run(logits).items()}


def prompts() -> tuple[Table, dict[str, np.ndarray]]:
    """The weight of a prompt under each advantage."""
    grpo = partial(a.group_standardized, eps=0.0)
    some = {
        "`group_centered`, 8": a.group_centered,
        "`group_standardized`, 8": grpo,
        "`maxrl`, 8": partial(a.maxrl, eps=0.0),
        "`passk`, k = 2, 8": partial(a.passk, k=2, eps=0.0),
        "the same, undivided": partial(a.passk, k=2, eps=1.0, eps_mode="max"),
    }
    found = {f"`group_standardized`, {n}": prompt_weights(n, {"": grpo})[""] for n in (2, 4)} | prompt_weights(8, some)
    rows = [[name, *map(number, values / values[CHANCES.index(0.5)])] for name, values in found.items()]
    return Table("prompts", ("advantage, G", *(f"p = {p}" for p in CHANCES)), rows), found


def dropped() -> Table:
    """What dropping tied groups does to two prompts in one batch."""
    rows = []
    rules = [
        o.Recipe((o.Part(o.token_mean, o.reinforce),), a.group_centered, grouping)
        for grouping in (by_prompt, drop_tied)
    ]
    for chance in ((0.5, 0.5), (0.1, 0.5), (0.02, 0.5), (0.02, 0.98)):
        completions, logits, reward = lab.coins(chance)
        world = lab.World(completions=completions, logits=logits, reward=reward)
        truth = np.asarray(lab.policy_gradient(world))[:, 0, 1]
        kept, fewer = (measure(world, rule, group_size=4).ascent[:, 0, 1] / truth for rule in rules)
        pairs = (" and ".join(map(number, x)) for x in (kept, fewer))
        rows.append([" and ".join(map(str, chance)), *pairs])
    return Table("dropped", ("p of two prompts", "factors, all groups", "factors, `drop_tied`"), rows)


def answers(right: float) -> lab.World:
    """Right with the first token or wrong; then filler up to the stop token, or four tokens in all."""
    listed = lab.sentences(vocab=3, length=4, grammar={(): (1, 2), (1,): (0, 1), (2,): (0, 2)})
    logits = np.zeros((1, 3, 3))
    logits[0, 0, 1] = np.log(right / (1 - right))
    logits[0, 1:, 1:] = 1.0
    reward = (np.asarray(listed.tokens[:, 0]) == 1).astype(float)[None]
    return world_of(listed, 0, logits=logits, reward=reward)


def length_slope(world: lab.World, rows: jax.Array) -> jax.Array:
    """The gradient of the mean length of the completions that `rows` f[P,C] weighs."""
    length = world.completions.length.astype(world.logits.dtype)[None]

    def mean(logits: jax.Array) -> jax.Array:
        chance = lab.probability(lab.log_probs(world.completions, logits)) * rows
        return jnp.sum(chance * length) / jnp.sum(chance)

    return jax.grad(mean)(world.logits)


MEANS = {
    "`sequence_mean_token_mean`": o.sequence_mean_token_mean,
    "`token_mean`": o.token_mean,
    "`fixed_length`": partial(o.fixed_length, constant=4.0),
}


def lengths() -> tuple[Table, dict[tuple[str, float], list[float]]]:
    """How each mean changes the lengths, to first order, for an update as long as the one of `fixed_length`."""
    rows, found = [], {}
    rules = {name: recipe(a.group_leave_one_out, aggregation=mean) for name, mean in MEANS.items()}
    slope = jax.jit(length_slope)
    for chance in (0.1, 0.3, 0.5, 0.7, 0.9):
        world = answers(chance)
        right = world.reward
        slopes = [np.asarray(slope(world, x)) for x in (right, 1.0 - right, jnp.ones_like(right))]
        for name, rule in rules.items():
            one = measure(world, rule, group_size=3)
            found[name, chance] = [float(np.sum(x * one.ascent)) / one.factor for x in slopes]
            if chance in (0.1, 0.5, 0.9):
                rows.append([name, str(chance), *map(number, found[name, chance]), number(one.aside)])
    head = ("mean", "p", "length of right ones", "of wrong ones", "of all", "aside")
    return Table("lengths", head, rows), found


def ratio_bias() -> Table:
    """The bias of a mean with a random denominator, by the size of the group."""
    world, rows = answers(0.5), []
    for size, drawn in ((2, 0), (3, 0), (4, 0), (16, 10_000)):
        found = [
            measure(world, recipe(a.group_leave_one_out, aggregation=mean), group_size=size, drawn=drawn)
            for mean in (o.sequence_mean_token_mean, o.token_mean, o.sequence_mean_token_sum)
        ]
        rows.append([str(size), *(number(x.aside) + (f" ± {x.error:.1g}" if drawn else "") for x in found)])
    head = ("G", "aside, `sequence_mean_token_mean`", "`token_mean`", "`sequence_mean_token_sum`")
    return Table("ratio_bias", head, rows)


def truncations() -> Table:
    """A sampler that truncates: the kept mass, the mean weight, and the gradient with and without weights."""
    world, rows = world_of(lab.arms(6), 1), []
    cuts: Sequence[dict[str, Any]] = ({"top_p": 0.8}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.4})
    policy = lab.probability(lab.log_probs(world.completions, world.logits))
    rules = [recipe(term=o.importance), recipe(term=o.reweight(o.reinforce, o.importance)), recipe()]
    for how in cuts:
        cut = world.replace(behavior=lab.truncated(world.completions, world.logits, **how))
        kept = float(jnp.sum(jnp.where(jnp.isfinite(cut.sampled_from[..., 0]), policy, 0.0)))
        weight, weighted, plain = (measure(cut, rule) for rule in rules)
        ((name, value),) = how.items()
        apart = [number(x) for x in (weighted.factor, weighted.aside, plain.factor, plain.aside)]
        rows.append([f"`{name}` {value}", number(kept), number(weight.loss), *apart])
    head = ("sampler", "kept mass", "mean weight", "factor, weighted", "aside", "factor, unweighted", "aside")
    return Table("truncations", head, rows)


def caps() -> tuple[Table, dict[str, list[tuple[float, float]]]]:
    """Truncated and masked weights by their bound, under a sampler that prefers what the policy avoids."""
    logits, reward = np.asarray([[[0.0, 0.5, 1.0, 1.5]]]), np.asarray([[1.0, 0.2, 0.6, 1.4]])
    world, found = world_of(lab.arms(4), 0, logits=logits, reward=reward), {}
    world = world.replace(old=world.logits, behavior=lab.log_probs(world.completions, -world.logits))
    forms = {"truncated": o.truncated, "masked": partial(o.masked_importance, lower=None)}
    truth = np.asarray(lab.policy_gradient(world))

    def pair(term: o.Term) -> tuple[float, float]:
        x = measure(world, recipe(term=term))
        return float(np.linalg.norm(x.ascent - truth) / np.linalg.norm(truth)), x.variance

    for name, form in forms.items():
        found[name] = [pair(o.reweight(o.reinforce, partial(form, upper=cap))) for cap in CAPS]
    rows = [[number(cap), *(number(x) for name in forms for x in found[name][place])] for place, cap in enumerate(CAPS)]
    rows.append(["no weight", *map(number, pair(o.reinforce)), "", ""])
    head = ("C", "bias, `truncated`", "variance", "bias, `masked_importance`", "variance")
    return Table("caps", head, rows), found


def baselines() -> Table:
    """Baselines in a language model of three tokens and at most three positions."""
    world = world_of(lab.sentences(vocab=3, length=3), 0)
    value = lab.state_values(world.completions, world.logits, world.reward)
    mean = lab.expected(world.completions, world.logits, world.reward)
    world = world.replace(value=value, greedy=mean)
    strategies = {
        "none: `outcome`": a.outcome,
        "the true mean: `remax`": a.remax,
        "mean of the group: `group_centered`": a.group_centered,
        "mean of the others: `group_leave_one_out`": a.group_leave_one_out,
        "mean by length: `opo`": a.opo,
        "`optimal_token_baseline`": a.optimal_token_baseline,
        "over the deviation: `group_standardized`": a.group_standardized,
        "over that of the batch: `reinforce_pp`": a.reinforce_pp,
        **{f"true values, λ = {lam}: `gae`": partial(a.gae, lam=lam) for lam in (1.0, 0.95, 0.5, 0.0)},
    }
    found = {name: measure(world, recipe(strategy), group_size=3) for name, strategy in strategies.items()}
    rows = [[name, number(x.factor), number(x.aside), number(x.scaled)] for name, x in found.items()]
    wrong = world.replace(value=value + jnp.where(world.completions.state % 2 == 0, 0.5, -0.5)[None])
    for lam in (1.0, 0.95, 0.5, 0.0):
        x = measure(wrong, recipe(partial(a.gae, lam=lam)), group_size=3)
        rows.append([f"values off by 0.5, λ = {lam}: `gae`", number(x.factor), number(x.aside), number(x.scaled)])
    return Table("baselines", ("baseline", "factor", "aside", "variance"), rows)


def ratios() -> Table:
    """Importance ratios of tokens and of rows, as the policy leaves the one that sampled."""
    policy, rows = world_of(lab.sentences(vocab=3, length=3), 2), []
    away = world_of(policy.completions, 7).logits
    of_row = partial(o.sequence_log_ratio, reduction="sum", cap=None)
    rules = {
        "of the row, product": recipe(term=partial(o.unclipped, ratio=of_row), aggregation=o.sequence_mean_token_mean),
        "of tokens": recipe(term=o.unclipped),
        "of tokens, clipped at 0.2": recipe(term=o.ppo_clip),
        "of the row, geometric mean": recipe(term=partial(o.unclipped, ratio=o.sequence_log_ratio)),
    }
    for name, rule in rules.items():
        line = [name]
        for drift in (0.0, 0.3, 0.6):
            x = measure(policy.replace(old=policy.logits + drift * away), rule)
            line += [number(x.aside), number(x.scaled)]
        rows.append(line)
    head = ["ratio"] + [f"{word}, drift {x}" for x in (0, 0.3, 0.6) for word in ("aside", "variance")]
    return Table("ratios", head, rows)


def figure(weights: Mapping[str, np.ndarray], drift: Mapping, bounds: Mapping) -> str:
    """Four panels as SVG."""
    wide, high = 430, 200

    def curve(label: str, colour: str, x: Sequence[float], y: Sequence[float]) -> Curve:
        return Curve(label, colour, list(zip(x, y, strict=True)), points=True)

    some = {"mean-only": ("`group_centered`, 8", BLUE), "standardized": ("`group_standardized`, 8", ORANGE)}
    some["MaxRL"] = ("`maxrl`, 8", GREEN)
    by_chance = [
        curve(label, colour, CHANCES, weights[key] / weights[key][CHANCES.index(0.5)])
        for label, (key, colour) in some.items()
    ]
    row = {p: values for (name, p), values in drift.items() if name == "`sequence_mean_token_mean`"}
    by_length = [
        curve(label, colour, list(row), [values[place] for values in row.values()])
        for place, (label, colour) in enumerate((("right", GREEN), ("wrong", RED), ("all", BLUE)))
    ]
    by_cap = [
        [
            curve(name, colour, [c / CAPS[-1] for c in CAPS], [pair[place] for pair in bounds[name]])
            for name, colour in (("truncated", BLUE), ("masked", PURPLE))
        ]
        for place in (0, 1)
    ]
    chance, cap = Pen(Axis(0.0, 1.0, 0.0)), Pen(Axis(0.0, CAPS[-1], 0.0))
    panels = [
        (Scale("Weight of a prompt by p, G = 8"), by_chance, chance),
        (Scale("Change of lengths by p, row mean", low=None), by_length, chance),
        (Scale("Bias by the cap C"), by_cap[0], cap),
        (Scale("Variance by the cap C"), by_cap[1], cap),
    ]
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="460" viewBox="0 0 900 460" role="img" '
        f'font-family="{FONT}">',
        "<title>Bias and variance of estimators, computed exactly</title>",
        f'<rect width="900" height="460" rx="6" fill="{chance.theme.paper}"/>',
        text(20, 28, "Exact, by listing every batch", size=16, colour=chance.theme.ink, more=' font-weight="700"'),
    ]
    for place, (scale, curves, pen) in enumerate(panels):
        corner = (16 + (place % 2) * (wide + 8), 40 + (place // 2) * (high + 8))
        body += panel(scale, curves, pen, corner=corner, size=(wide, high))
    return "\n".join([line for line in body if line] + ["</svg>", ""])


def everything() -> tuple[list[Table], str]:
    """All tables, in the order of the page, and the figure."""
    with jax.enable_x64(True):
        (weights, by_chance), (drift, by_length), (bounds, by_cap) = prompts(), lengths(), caps()
        first = [divergences(), baselines(), weights, dropped()]
        return [*first, drift, ratio_bias(), truncations(), bounds, ratios()], figure(by_chance, by_length, by_cap)


def filled(page: str, tables: Sequence[Table]) -> str:
    """`page` with each table between its marks, ``<!-- table NAME -->`` and ``<!-- end -->``."""
    for table in tables:
        block = f"<!-- table {table.name} -->\n{table}\n<!-- end -->"
        page = re.sub(rf"<!-- table {table.name} -->\n.*?<!-- end -->", lambda _, x=block: x, page, flags=re.DOTALL)
    return page


def main() -> None:
    """Prints the tables; with ``--out`` brings the page of that folder up to date."""
    parser = argparse.ArgumentParser(description="Tables and figure of docs/estimators.md.")
    parser.add_argument("--out", type=Path, help="folder with estimators.md, whose tables and figure are written anew")
    out = parser.parse_args().out
    tables, svg = everything()
    print("\n\n".join(f"{table.name}\n\n{table}" for table in tables))
    if out is not None:
        replace(out / "estimators.svg", svg)
        replace(out / "estimators.md", filled((out / "estimators.md").read_text(encoding="utf-8"), tables))


if __name__ == "__main__":
    main()
