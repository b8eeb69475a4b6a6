"""Every variant of the file is told what it asks for: a number of its run shows it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import signals as file
from grpo_jax import run
from grpo_jax.experiment import Evaluation, Experiment, WarmStart
from grpo_jax.models import ModelConfig
from grpo_jax.train import compares_with_greedy, looks, refers
from grpo_jax.updates import Optimizer

Lines = list[dict[str, float]]


def small(experiment: Experiment) -> Experiment:
    """Three steps of a small model behind a short warm start; every step is learned from in four updates."""
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_width": 8, "hidden": 32, "rope_theta": 100.0}
    assert experiment.warm_start is not None
    return dataclasses.replace(
        experiment,
        model=ModelConfig(vocab=experiment.data.tokenizer.vocab_size, **shape),
        warm_start=WarmStart(
            steps=200, limit=200, gate=0.0, check_every=200, optimizer=experiment.warm_start.optimizer
        ),
        train=dataclasses.replace(experiment.train, steps=3, prompts=8, group_size=4),
        optimizer=Optimizer(learning_rate=1e-2),
        evaluation=Evaluation(every=3, prompts=8, full_prompts=8, samples=1, small_samples=1),
    )


def test_each_variant_asks_for_something_of_its_own():
    asked = {name: looks(experiment.recipe) for name, experiment in file.VARIANTS.items()}
    assert asked == dict.fromkeys(file.VARIANTS, ()) | {
        "token_baseline": ("sum_pi_squared",),
        "truncated": ("logp_old",),
    }
    assert [name for name, e in file.VARIANTS.items() if refers(e.recipe)] == ["exact_kl"]
    assert [name for name, e in file.VARIANTS.items() if compares_with_greedy(e.recipe)] == ["greedy"]
    assert len({experiment.name for experiment in file.VARIANTS.values()}) == len(file.VARIANTS) == 8


@pytest.fixture(scope="module", name="folder")
def folder_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of the variants are, by name; "plain" is the experiment without a variant."""
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module", name="steps")
def steps_of_variants(folder: Path) -> Callable[[str], Lines]:
    """``steps(variant)``: the lines of its GRPO steps; "" is the experiment without a variant."""
    known: dict[str, Lines] = {}

    def steps(name: str) -> Lines:
        if name not in known:
            experiment = small(file.VARIANTS[name] if name else file.EXPERIMENT)
            run(experiment, folder / (name or "plain"), warm_starts=folder / "warm")
            lines = (folder / (name or "plain") / "metrics.jsonl").read_text().splitlines()
            known[name] = [row for row in map(json.loads, lines) if row["phase"] == "grpo" and row["step"] > 0]
        return known[name]

    return steps


@pytest.mark.slow
def test_the_exact_divergence_is_that_from_what_grpo_began_with(steps: Callable[[str], Lines]):
    exact = [row["kl/ref"] for row in steps("exact_kl")]
    assert 0 < exact[0] < exact[2]  # the mean over four updates, of which the first is at the reference
    assert "kl/ref" not in steps("")[0]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["token_baseline", "greedy", "process"])
def test_the_same_rollouts_teach_something_else(variant: str, steps: Callable[[str], Lines]):
    mine, plain = steps(variant)[0], steps("")[0]
    assert mine["reward/mean"] == plain["reward/mean"] and mine["length/mean"] == plain["length/mean"]
    assert abs(mine["grad_norm"] / plain["grad_norm"] - 1) > 1e-3
    assert ("reward/greedy" in mine) == (variant == "greedy")


@pytest.mark.slow
def test_the_penalty_of_ppo_follows_what_a_step_has_moved(steps: Callable[[str], Lines]):
    rows = steps("adaptive_kl")
    assert all(row["kl/old_after"] > row["kl/old"] > 0 for row in rows)  # behind the last update, and before each
    assert "kl/old_after" not in steps("")[0]


@pytest.mark.slow
def test_truncated_sampling_is_corrected_by_the_trainer(steps: Callable[[str], Lines]):
    rows = steps("truncated")
    # At least 0.9 of the probability is kept, and what is sampled from is renormalised: 0 to log(1 / 0.9) nats more.
    assert all(0.01 < row["mismatch/kl"] < 0.1054 for row in rows)


@pytest.mark.slow
def test_a_demonstration_of_every_prompt_is_learned_from(steps: Callable[[str], Lines], folder: Path):
    mine, plain = steps("demonstrated")[0], steps("")[0]
    assert mine["logp_gap/max"] < 1e-3  # of what was sampled: nobody says how likely a demonstration was
    assert abs(mine["grad_norm"] / plain["grad_norm"] - 1) > 1e-3
    first, others = (
        [row for row in map(json.loads, (folder / name / "samples.jsonl").read_text().splitlines()) if row["step"] == 1]
        for name in ("demonstrated", "plain")
    )
    shown = [row for row in first if row.get("demonstrated")]
    assert len(shown) == 8 and {row["sample"] for row in shown} == {3}
    # Half of the demonstrations have all their tags, and their answers are right.
    assert sum(row["components"]["accuracy"] for row in shown) >= 4
    # The other rows are those that are sampled without it, and the reward is theirs.
    same = {(row["draw"], row["sample"]): row["tokens"] for row in others if row["set"] == "train"}
    own = [row for row in first if row["set"] == "train" and not row.get("demonstrated")]
    assert all(same[row["draw"], row["sample"]] == row["tokens"] for row in own) and len(own) == 24
    assert mine["reward/mean"] == pytest.approx(sum(row["reward"] for row in own) / 24, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_two_kinds_of_problems_are_compared_with_their_own_past(steps: Callable[[str], Lines]):
    assert all(row["grad_norm"] > 0 for row in steps("roles"))
