"""The rules: each reads the history of a run and returns a sentence, or None while there is nothing to say.

A sentence gives what was seen with its numbers, what it means and what to change. A setting stands in it as
in brackets, by its dotted path, which `Alerts` completes by its present value.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from grpo_jax.alerts.history import Evaluated, History, Thresholds, mean

Rule = Callable[[History, Thresholds], str | None]
SPAN = 30
"""Steps that a drift between components of the reward is measured over."""


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.01 or value <= 0 else f"{100 * value:.2g} %"


def _extreme(h: History, t: Thresholds, name: str, pick: Callable[[list[float]], float]) -> tuple[float, float, int]:
    """(highest or lowest level in the window, level now, steps between); nan where there are fewer than 2 steps."""
    levels = h.levels(name, t.window + t.recent, t.recent)[-t.window - 1 :]
    if len(levels) < 2:
        return math.nan, math.nan, 0
    was = pick(levels)
    return was, levels[-1], levels[::-1].index(was)


def _rose(h: History, t: Thresholds, steps: int) -> bool:
    """Whether accuracy rose by `gain` in the last `steps`; where there is none, the reward by as many deviations."""
    name, unit = "reward/accuracy", 1.0
    if not h.values(name, 1):
        name, unit = "reward/mean", max([0.0, *h.values("reward/std", steps + t.recent)])
    levels = h.levels(name, steps + t.recent, t.recent)
    return bool(levels) and levels[-1] - levels[0] > t.gain * unit


def truncated(h: History, t: Thresholds) -> str | None:
    """Completions that are cut off."""
    cut = 1 - h.mean("length/stopped", t.recent)
    if not cut >= t.truncated:
        return None
    return (
        f"{_share(cut)} of completions reach the length limit: no reward can be earned by an answer that is cut off;"
        " raise [sampling.max_tokens] or ask for shorter answers."
    )


def tied(h: History, t: Thresholds) -> str | None:
    """No advantage at all, because every group is tied."""
    if not h.flat(t.recent) or h.accuracy() >= t.solved:
        return None
    return (
        f"no group has two different rewards in {t.recent} steps (mean reward {h.mean('reward/mean', t.recent):.3g}):"
        " every advantage is 0 and nothing is learned; if the reward is low give easier prompts, partial credit or a"
        " longer warm start, if it is high give harder prompts; or raise [train.group_size] or [sampling.temperature]."
    )


def mostly_tied(h: History, t: Thresholds) -> str | None:
    """Few groups teach."""
    share = h.mean("groups/tied", t.window)
    if h.seen < t.window or not t.tied <= share < 1 or h.accuracy() >= t.solved:
        return None
    return (
        f"in {_share(share)} of the groups of the last {t.window} steps all samples earned the same: only the others"
        " teach; raise [train.group_size], choose prompts that are solved now and then, or drop tied groups"
        " (groups.drop_tied)."
    )


def solved(h: History, t: Thresholds) -> str | None:
    """Nothing is left to learn."""
    if not (h.flat(t.finished) and h.accuracy() >= t.solved):
        return None
    return (
        f"no group has two different rewards in {t.finished} steps and {_share(h.accuracy())} of the answers are right:"
        " these prompts are solved, further steps change nothing; stop here or give harder prompts."
    )


def hopeless(h: History, t: Thresholds) -> str | None:
    """Not one right answer: there is nothing to reinforce."""
    values = h.values("reward/accuracy", t.hopeless)
    if len(values) < t.hopeless or any(values):
        return None
    return (
        f"not one answer was right in {t.hopeless} steps: GRPO strengthens what is sampled now and then and cannot find"
        " what never is; give easier prompts, demonstrations (warm_start) or partial credit, or raise"
        " [train.group_size]."
    )


def entropy_fell(h: History, t: Thresholds) -> str | None:
    """Samples hardly differ any more, and not because the task is solved."""
    was, now, steps = _extreme(h, t, "entropy", max)
    if not (was > 0 and 1 - now / was >= t.entropy_fall - 1e-9) or h.accuracy() >= t.solved:
        return None
    return (
        f"entropy fell by {_share(1 - now / was)} in {steps} steps (from {was:.3g} to {now:.3g} nats a token): samples"
        " hardly differ and nothing new is tried; lower [optimizer.learning_rate], raise the upper clip bound of the"
        " surrogate or [sampling.temperature], or add a KL penalty."
    )


def entropy_rose(h: History, t: Thresholds) -> str | None:
    """The policy dissolves into noise."""
    was, now, steps = _extreme(h, t, "entropy", min)
    if not (now >= t.entropy_noise and now >= t.entropy_rise * was) or _rose(h, t, steps):
        return None
    return (
        f"entropy rose from {was:.3g} to {now:.3g} nats a token in {steps} steps and the reward did not: the policy"
        " turns into noise; lower [optimizer.learning_rate], add a KL penalty, or go back to an earlier checkpoint."
    )


def length_fell(h: History, t: Thresholds) -> str | None:
    """The collapse to short answers."""
    was, now, steps = _extreme(h, t, "length/mean", max)
    if not now <= (1 - t.length_fall) * was or _rose(h, t, steps):
        return None
    return (
        f"completions shrank from {was:.3g} to {now:.3g} tokens in {steps} steps while the reward hardly rose: the"
        " policy gives up reasoning for short answers; start from a stronger policy ([warm_start.gate]), lower"
        " [optimizer.learning_rate], or average the loss over a fixed length (aggregation.fixed_length)."
    )


def reward_fell(h: History, t: Thresholds) -> str | None:
    """A collapse of the training reward."""
    was, now, steps = _extreme(h, t, "reward/mean", max)
    deviation, chance = max([0.0, *h.values("reward/std", t.window)]), h.jitter("reward/mean", t.window)
    if not was - now > max(t.reward_fall * deviation, 3 * chance) > 0:
        return None
    return (
        f"reward/mean fell from {was:.3g} to {now:.3g} in {steps} steps: what was learned is being lost; lower"
        " [optimizer.learning_rate] or [train.epochs], add a KL penalty, or go back to an earlier checkpoint."
    )


def zero_loss(h: History, t: Thresholds) -> str | None:
    """A loss of 0, which worries people and is no trouble."""
    loss, norm, moved = (h.mean(name, 1) for name in ("loss", "grad_norm", "kl/old"))
    if not (abs(loss) <= t.zero_loss and norm > 0) or moved > t.zero_loss:
        return None
    return (
        "loss is 0: expected on the first on-policy update of a batch, where every ratio is 1 and advantages have mean"
        f" 0; the gradient is not (grad_norm {norm:.3g}). The loss says nothing about progress: look at reward/mean and"
        " at held-out accuracy."
    )


def clipping(h: History, t: Thresholds) -> str | None:
    """Most of a batch teaches nothing, because its ratios left the bounds."""
    shares = [h.mean(f"clip/{side}", 5) for side in ("low", "high")]
    share = math.fsum(share for share in shares if math.isfinite(share))
    if share < t.clipped:
        return None
    return (
        f"the bounds of the ratio stop the gradient of {_share(share)} of the tokens: the policy moves too far on one"
        " batch; lower [optimizer.learning_rate], [train.epochs] or [train.minibatches], or widen the bounds."
    )


def few_tokens(h: History, t: Thresholds) -> str | None:
    """The update rests on few tokens."""
    share = h.mean("ratio/ess", 5)
    if not share < t.ess:
        return None
    return (
        f"updates are in effect made of {_share(share)} of their tokens (ratio/ess): a few large ratios decide; lower"
        " [optimizer.learning_rate], [train.epochs] or [train.minibatches], or clamp the ratios."
    )


def moved_in_batch(h: History, t: Thresholds) -> str | None:
    """One batch moves the policy far."""
    moved = h.mean("kl/old", 5)
    if not moved >= t.kl_old:
        return None
    return (
        f"kl/old is {moved:.3g} nats a token: within one batch the policy moves so far that its samples no longer speak"
        " for it; lower [optimizer.learning_rate] or [train.epochs], or lower [optimizer.clip_norm]."
    )


def left_reference(h: History, t: Thresholds) -> str | None:
    """The policy is far from the reference and goes on leaving it."""
    was, now, steps = _extreme(h, t, "kl/ref", min)
    if not (now >= t.kl_ref and now >= 1.5 * was):
        return None
    return (
        f"kl/ref grew from {was:.3g} to {now:.3g} nats a token in {steps} steps: the policy leaves its reference and"
        " may leave language; raise beta of the KL penalty or lower [optimizer.learning_rate]."
    )


def gap_grew(h: History, t: Thresholds) -> str | None:
    """Sampler and trainer drift apart."""
    first, now = mean(h.begun["logp_gap/mean"]), h.mean("logp_gap/mean", 5)
    largest, limit = h.mean("logp_gap/max", t.recent), h.number("train.gap_limit")
    grown = h.seen >= 10 and now >= t.gap_floor and now >= t.gap_growth * first
    if not (grown or largest >= t.gap_limit_share * limit):
        return None
    return (
        f"sampler and trainer disagree more and more: logp_gap/mean went from {first:.3g} to {now:.3g} nats, the"
        f" largest gap is {largest:.3g}; the run stops at [train.gap_limit]. Look for a difference in precision,"
        " temperature, positions or parameters, or for log-probabilities that have become extreme."
    )


def norm_jumped(h: History, t: Thresholds) -> str | None:
    """A gradient unlike any before."""
    norms = [value for value in h.values("grad_norm", t.window + 1) if value > 0]
    usual, last = _median(norms[:-1]), h.mean("grad_norm", 1)
    if len(norms) <= t.window // 2 or not last >= max(t.grad_jump * usual, 3 * h.largest_norm):
        return None
    return (
        f"grad_norm jumped to {last:.3g}, {last / usual:.0f} times its median of the last {len(norms) - 1} steps: look"
        " at the samples of this step for a reward or a length out of range; lower [optimizer.clip_norm] or"
        " [optimizer.learning_rate] if it happens again."
    )


def refused(h: History, t: Thresholds) -> str | None:
    """Updates with numbers that are not finite."""
    count = math.fsum(h.values("skipped", t.window))
    if not count:
        return None
    return (
        f"updates refused in the last {min(h.seen, t.window)} steps: {count:.0f}, because a number in them was not"
        " finite; the parameters stayed as they were. Lower [optimizer.learning_rate], clamp log-ratios, or"
        " look for a reward that is not finite; the run stops after [train.skip_limit] in a row."
    )


def _statuses(h: History, steps: int) -> dict[str, float]:
    """Status of a text reward -> share of the scores of the last `steps` steps; all 0 without text rewards."""
    counts = {name: math.fsum(h.values(f"status/{name}", steps)) for name in ("ok", "timeout", "error", "unparsable")}
    return {name: count / max(math.fsum(counts.values()), 1.0) for name, count in counts.items()}


def failed(h: History, t: Thresholds) -> str | None:
    """Rewards that did not come."""
    shares = _statuses(h, t.recent)
    errors, late = shares["error"], shares["timeout"]
    if errors + late < t.failed:
        return None
    return (
        f"{_share(errors + late)} of the rewards failed ({_share(errors)} with an error, {_share(late)} out of time):"
        " their rows teach nothing, and may be the hard ones; see statuses in samples.jsonl, correct the reward or"
        " raise its time limit."
    )


def unparsable(h: History, t: Thresholds) -> str | None:
    """Answers that the reward cannot find."""
    share = _statuses(h, t.window)["unparsable"]
    if h.seen < t.window or share < t.unparsable:
        return None
    return (
        f"{_share(share)} of the scores of the last {t.window} steps are unparsable, no answer was found: policy and"
        " reward expect different forms; compare completions in samples.jsonl with what the reward looks for, or show"
        " the form in the prompt or in demonstrations."
    )


def component_drift(h: History, t: Thresholds) -> str | None:
    """One component of the reward is bought with accuracy."""
    right = _ends(h, "reward/accuracy")
    names = {name for name in h.rows[-1] if name.startswith("reward/")} - {"reward/mean", "reward/std"}
    changes = [(_ends(h, name), name) for name in sorted(names)]
    (was, now), name = max(changes, key=_rise, default=((math.nan, math.nan), ""))
    chance = h.jitter("reward/accuracy", SPAN)  # 1.2 of it: 3 standard errors of the difference of two means of 10
    if not (right[0] - right[1] >= max(t.drift, 1.2 * chance) and now - was >= t.drift):
        return None
    return (
        f"{name} rose from {was:.3g} to {now:.3g} in {SPAN} steps while reward/accuracy fell from {right[0]:.3g} to"
        f" {right[1]:.3g}: the policy earns the one at the cost of the other; lower the weight of"
        f" {name.removeprefix('reward/')!r} or make it depend on a right answer."
    )


def _ends(h: History, name: str) -> tuple[float, float]:
    """Mean over the first and over the last third of the last `SPAN` steps; nan before there are so many."""
    values = h.values(name, SPAN)
    return (mean(values[: SPAN // 3]), mean(values[-SPAN // 3 :])) if len(values) == SPAN else (math.nan, math.nan)


def _rise(change: tuple[tuple[float, float], str]) -> float:
    (was, now), _ = change
    return now - was if math.isfinite(now - was) else -math.inf


def reward_gamed(h: History, t: Thresholds) -> str | None:
    """Held-out accuracy falls beyond chance while the reward does not."""
    found = [_gamed(h, t, name) for name in dict.fromkeys(e.name for e in h.evaluations)]
    return next((sentence for sentence in found if sentence), None)


def _gamed(h: History, t: Thresholds, name: str) -> str | None:
    evaluations = [e for e in h.evaluations if e.name == name]
    best, last = max(evaluations, key=_accuracy), evaluations[-1]
    before = mean(h.begun["reward/mean"]) if math.isnan(best.reward) else best.reward
    if not (best.value - last.value >= t.accuracy_fall and last.high < best.low and last.reward >= before):
        return None
    return (
        f"accuracy/{name} fell from {_interval(best)} at step {best.step} to {_interval(last)} at step {last.step}"
        f" while reward/mean went from {before:.3g} to {last.reward:.3g}: the policy earns reward without solving"
        " problems, or learns the training prompts by heart; read completions, tighten the rewards, add a KL penalty,"
        " and take the checkpoint with the best held-out accuracy."
    )


def _accuracy(evaluated: Evaluated) -> float:
    return evaluated.value


def _interval(e: Evaluated) -> str:
    return f"{100 * e.value:.1f} % ({100 * e.low:.1f} to {100 * e.high:.1f})"


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.__name__: rule
        for rule in (
            truncated,
            refused,
            failed,
            gap_grew,
            tied,
            hopeless,
            reward_fell,
            length_fell,
            entropy_fell,
            entropy_rose,
            reward_gamed,
            component_drift,
            norm_jumped,
            clipping,
            moved_in_batch,
            few_tokens,
            left_reference,
            unparsable,
            mostly_tied,
            solved,
            zero_loss,
        )
    }
)
"""Name -> rule, the most urgent first."""
ONCE = frozenset({"zero_loss", "solved"})
"""Rules that speak once in a run."""
