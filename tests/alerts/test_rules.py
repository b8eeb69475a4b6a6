"""Every alert is said once about a series that has its trouble, with its numbers; a healthy run hears nothing."""

import inspect
import math
import re
from collections.abc import Callable

import pytest

from experiments.quickstart import EXPERIMENT
from grpo_jax import groups, objectives
from grpo_jax.alerts import RULES, Alerts, History, Thresholds, rules, said
from grpo_jax.experiment import settings

Row = dict[str, float | str | None]
NOW = {"sampling.max_tokens": "11", "train.gap_limit": "0.001", "optimizer.learning_rate": "0.0004"}


def healthy(step: int) -> Row:
    """A run as it should be: accuracy from 0.34 to nearly 1 while entropy falls from 0.52, with some unrest."""
    left, unrest = math.exp(-step / 8), 0.01 * (-1) ** step
    accuracy = 1 - 0.66 * left + unrest * left
    return {
        "phase": "grpo",
        "step": step,
        "clip/high": 0.004 * left,
        "clip/low": 0.02 * left,
        "entropy": 0.012 + 0.51 * left,
        "grad_norm": 0.08 + 0.3 * left + 3 * abs(unrest),
        "groups/count": 32.0,
        "groups/size": 8.0,
        "groups/tied": 0.9 - 0.9 * left,
        "kl/old": 0.003 * left,
        "kl/ref": 0.3 - 0.3 * left,
        "length/mean": 10 - 2.8 * left,
        "length/stopped": 0.998,
        "logp_gap/max": 2e-6,
        "logp_gap/mean": 1e-8,
        "loss": -0.011 * left - 1e-4,
        "ratio/ess": 0.997,
        "reward/accuracy": accuracy,
        "reward/format": 1 - 0.28 * left,
        "reward/mean": accuracy + 0.2 * (1 - 0.28 * left),
        "reward/std": 0.06 + 0.44 * left,
        "skipped": 0.0,
        "status/ok": 512.0,
        "status/error": 0.0,
        "status/timeout": 0.0,
        "status/unparsable": 0.0,
    }


# What was recorded by a run that went well, every fifth of its steps, rounded.
NAMES = (
    "reward/mean reward/accuracy reward/format length/mean entropy kl/old clip/low ratio/ess groups/tied grad_norm loss"
)
WENT_WELL = """
0.499 0.344 0.777 7.21 0.521 6.5e-4 0.0022 0.999 0.03 0.361 -0.00512
0.820 0.664 0.781 8.84 0.251 1.1e-3 0.0097 0.998 0.03 0.287 -0.00701
0.970 0.785 0.922 9.75 0.116 2.3e-3 0.0060 0.993 0.06 0.271 -0.00465
1.120 0.926 0.961 9.94 0.061 2.5e-4 0.0024 0.999 0.47 0.174 -0.00218
1.120 0.922 0.977 9.96 0.049 4.6e-4 0.0031 0.999 0.63 0.149 -0.00147
1.150 0.957 0.988 9.94 0.036 2.3e-4 0.0016 1.000 0.72 0.159 -0.00102
1.150 0.957 0.980 9.95 0.030 2.7e-4 0.0010 1.000 0.69 0.336 -0.00164
1.170 0.973 1.000 10.0 0.025 4.4e-4 0.0012 0.999 0.84 0.104 -0.00050
1.170 0.969 0.992 10.0 0.024 2.2e-4 0.0018 1.000 0.72 0.161 -0.00111
1.180 0.980 0.988 9.97 0.022 8.8e-5 0.0004 1.000 0.81 0.117 -0.00052
1.190 0.992 0.996 10.0 0.014 2.9e-5 0.0004 1.000 0.91 0.058 -0.00022
1.200 1.000 1.000 9.98 0.012 2.4e-8 0.0000 1.000 1.00 0.000 0.00000
1.190 0.988 1.000 10.0 0.014 1.4e-6 0.0000 1.000 0.91 0.156 -0.00010
"""


def evaluation(accuracy: float, margin: float = 0.01) -> Row:
    return {
        "accuracy/heldout": accuracy,
        "accuracy/heldout/low": accuracy - margin,
        "accuracy/heldout/high": accuracy + margin,
        "accuracy/heldout/hard": 0.0,
    }


def middling(step: int) -> Row:
    """Half of the answers are right and nothing moves: only what a case changes can be seen."""
    steady: Row = {
        "entropy": 0.5,
        "length/mean": 10.0,
        "loss": -0.01,
        "groups/tied": 0.3,
        "grad_norm": 0.2,
        "kl/ref": 0.1,
    }
    return {**healthy(0), **steady, "reward/accuracy": 0.5, "reward/mean": 0.6, "reward/std": 0.5, "step": step}


def from_step(begin: int, before: float, after: float) -> Callable[[int], float]:
    return lambda step: before if step < begin else after


def line(begin: int, end: int, before: float, after: float) -> Callable[[int], float]:
    """`before` up to step `begin`, `after` from step `end` on, straight in between."""
    return lambda step: before + (after - before) * min(max((step - begin) / (end - begin), 0.0), 1.0)


# Name of the rule -> what changes in `middling`, by step, and what the sentence has to say.
TROUBLE: dict[str, tuple[dict[str, Callable[[int], float] | float], list[str]]] = {
    "truncated": (
        {"length/stopped": 0.03},
        ["97 % of completions reach the length limit: no reward can be earned", "sampling.max_tokens (now 11)"],
    ),
    "tied": (
        {"groups/tied": 1.0, "reward/mean": 0.02, "reward/std": 0.0, "reward/accuracy": 0.02},
        ["no group has two different rewards in 3 steps (mean reward 0.02)", "train.group_size"],
    ),
    "mostly_tied": ({"groups/tied": 0.85}, ["in 85 % of the groups of the last 20 steps", "groups.drop_tied"]),
    "hopeless": ({"reward/accuracy": from_step(5, 0.1, 0.0)}, ["not one answer was right in 10 steps"]),
    # The mean of 3 steps is 1.2 up to step 19, and 0.12 from step 22 on.
    "entropy_fell": ({"entropy": from_step(20, 1.2, 0.12)}, ["entropy fell by 90 % in 3 steps (from 1.2 to 0.12 nats"]),
    "entropy_rose": ({"entropy": line(10, 20, 0.4, 4.0)}, ["entropy rose from 0.4 to 1.48 nats", "noise"]),
    "length_fell": ({"length/mean": from_step(12, 40.0, 10.0)}, ["shrank from 40 to 20 tokens", "reward hardly rose"]),
    "reward_fell": ({"reward/mean": line(10, 15, 1.0, 0.2)}, ["reward/mean fell from 1 to ", "what was learned"]),
    "zero_loss": (
        {"loss": 1e-9, "kl/old": 0.0},
        ["loss is 0: expected on the first on-policy update", "look at reward/mean"],
    ),
    "clipping": ({"clip/low": 0.25, "clip/high": 0.15}, ["stop the gradient of 40 % of the tokens", "(now 0.0004)"]),
    "few_tokens": ({"ratio/ess": 0.4}, ["in effect made of 40 % of their tokens"]),
    "moved_in_batch": ({"kl/old": 0.25}, ["kl/old is 0.25 nats a token"]),
    "left_reference": ({"kl/ref": line(5, 15, 0.1, 2.1)}, ["kl/ref grew from 0.1 to 1.1 nats a token", "beta"]),
    "gap_grew": (
        {"logp_gap/mean": from_step(12, 1e-6, 2e-4), "logp_gap/max": from_step(12, 1e-5, 4e-4)},
        ["logp_gap/mean went from 1e-06 to ", "train.gap_limit (now 0.001)"],
    ),
    "norm_jumped": (
        {"grad_norm": lambda step: 9.0 if step == 25 else 0.2},
        ["grad_norm jumped to 9, 45 times its median of the last 20 steps"],
    ),
    "refused": (
        {"skipped": lambda step: float(step in (7, 8)), "loss": lambda step: math.nan if step in (7, 8) else 0.1},
        ["updates refused in the last 7 steps: 1, because", "train.skip_limit"],
    ),
    "failed": (
        {"status/ok": 460.0, "status/error": 40.0, "status/timeout": 12.0},  # 52 / 512, 40 / 512, 12 / 512
        ["10 % of the rewards failed (8 % with an error, 2 % out of time)"],
    ),
    "unparsable": ({"status/ok": 128.0, "status/unparsable": 384.0}, ["75 % of the scores of the last 20 steps"]),
    "component_drift": (
        {"reward/accuracy": line(20, 60, 0.5, 0.3), "reward/format": line(20, 60, 0.4, 1.0)},
        ["reward/format rose from ", "while reward/accuracy fell from 0.5", "weight of 'format'"],
    ),
}


def run(changes: dict[str, Callable[[int], float] | float], steps: int = 60) -> list[Row]:
    def row(step: int) -> Row:
        return {name: change(step) if callable(change) else change for name, change in changes.items()}

    return [{**middling(step), **row(step)} for step in range(1, steps + 1)]


@pytest.mark.parametrize("name", TROUBLE)
def test_a_trouble_is_said_once_with_its_numbers(name: str):
    changes, words = TROUBLE[name]
    sentences = [sentence for _, sentence in said(run(changes), NOW) if words[0] in sentence]
    assert len(sentences) == 1
    assert [word for word in words if word not in sentences[0]] == []


@pytest.mark.parametrize("name", TROUBLE)
def test_other_rules_are_silent_about_it(name: str):
    found = [sentence for _, sentence in said(run(TROUBLE[name][0]), NOW)]
    assert len(found) == 1, found


def test_rewards_that_rise_while_held_out_accuracy_falls_beyond_chance_are_said_once():
    rows = run({"reward/mean": line(1, 60, 0.6, 1.0)})
    for step, accuracy in ((10, 0.7), (20, 0.71), (30, 0.695), (40, 0.55), (50, 0.52)):
        rows[step - 1] |= evaluation(accuracy)
    (step, sentence), *more = said(rows)
    assert (step, more) == (40, [])
    assert "accuracy/heldout fell from 71.0 % (70.0 to 72.0) at step 20 to 55.0 % (54.0 to 56.0) at step 40" in sentence
    # The mean of the 10 steps before: 0.6 + 0.4 * (14.5 / 59) = 0.698 and 0.6 + 0.4 * (34.5 / 59) = 0.834.
    assert "reward/mean went from 0.698 to 0.834" in sentence


def test_a_fall_within_the_intervals_is_chance():
    rows = run({"reward/mean": line(1, 60, 0.6, 1.0)})
    rows[19] |= evaluation(0.7, 0.05)
    rows[39] |= evaluation(0.62, 0.05)
    assert said(rows) == []


def test_the_evaluation_before_grpo_counts():
    before: Row = {"phase": "warm_start", "step": 900, **evaluation(0.7)}
    rows = run({"reward/mean": line(1, 60, 0.6, 1.0)})
    rows[9] |= evaluation(0.6)
    assert [step for step, _ in said([before, *rows])] == [10]


def test_a_solved_task_is_said_to_be_solved_and_nothing_else():
    found = said([*map(healthy, range(1, 60)), *({**healthy(s), "groups/tied": 1.0} for s in range(60, 90))])
    assert [step for step, _ in found] == [69]
    assert "no group has two different rewards in 10 steps and 100 % of the answers are right" in found[0][1]


def test_groups_that_were_dropped_count_as_tied():
    dropped: dict[str, Callable[[int], float] | float] = {"groups/tied": 0.0, "groups/count": 0.0}
    assert ["no group has two different rewards" in sentence for _, sentence in said(run(dropped))] == [True]


def test_a_healthy_run_hears_nothing():
    assert said(map(healthy, range(1, 201)), NOW) == []
    assert said(map(middling, range(1, 201)), NOW) == []


def test_a_run_that_went_well_hears_nothing():
    table = [[float(x) for x in line.split()] for line in WENT_WELL.split("\n") if line]
    rows: list[Row] = [{"phase": "warm_start", "step": 1300, "loss": 0.43, "entropy": 0.5, **evaluation(0.376, 0.013)}]
    for step in range(1, 61):  # five steps to a line of the table, the numbers in between on a straight line
        at, part = divmod(step - 1, 5)
        numbers = [(5 - part) / 5 * a + part / 5 * b for a, b in zip(table[at], table[at + 1], strict=True)]
        rows.append({**middling(step), **dict(zip(NAMES.split(), numbers, strict=True))})
    for step, accuracy in ((10, 0.906), (20, 0.945), (30, 0.975), (40, 0.979), (50, 0.986), (60, 0.982)):
        rows[step] |= evaluation(accuracy)
    assert said(rows, NOW) == []


def test_a_small_batch_is_not_taken_for_a_collapse():
    """Rewards of 16 rows scatter by half a deviation from step to step, for ever."""
    scatter = [0.1, -0.2, 0.05, 0.22, -0.15, -0.02, 0.18, -0.24, 0.07, -0.01]
    assert (
        said(run({"reward/mean": lambda s: 0.6 + scatter[s % 10], "reward/accuracy": lambda s: 0.5 + scatter[s % 10]}))
        == []
    )


def test_numbers_that_are_missing_or_were_not_finite_say_nothing():
    names = [name for name in middling(1) if name not in ("phase", "step")]
    assert said([{"phase": "grpo", "step": s} for s in range(1, 60)]) == []
    assert said([{"phase": "grpo", "step": s, **dict.fromkeys(names)} for s in range(1, 60)]) == []
    assert said([{"phase": "grpo", "step": s, **dict.fromkeys(names, math.nan)} for s in range(1, 60)]) == []


def test_every_rule_has_a_case_here():
    assert set(RULES) == {*TROUBLE, "reward_gamed", "solved"}


def test_every_setting_that_is_named_exists():
    named = set(re.findall(r"\[([a-z_]+\.[a-z_.]+)\]", inspect.getsource(rules)))
    assert "sampling.max_tokens" in named and named <= settings(EXPERIMENT).keys()
    assert callable(groups.drop_tied) and callable(objectives.fixed_length)


def test_rules_read_and_do_not_write():
    history, rows = History(NOW, 40), [middling(1), middling(2)]
    for row in rows:
        history.add(row)
    assert [rule(history, Thresholds()) for rule in RULES.values()] == [None] * len(RULES)
    assert list(history.rows) == rows == [middling(1), middling(2)]


def test_thresholds_are_settings():
    changes: dict[str, Callable[[int], float] | float] = {"length/stopped": 0.8}
    assert said(run(changes)) == []
    assert len(said(run(changes), thresholds=Thresholds(truncated=0.1))) == 1
    assert Alerts(thresholds=Thresholds(truncated=0.1)).see(run(changes)[0]) != []
