"""PPO with a critic: what its variants are, and that a short run of one is taught by its critic."""

import dataclasses
import json
from pathlib import Path

import pytest

import grpo_jax
from experiments import ppo as file
from grpo_jax import heldout
from grpo_jax.objectives import wants


def test_the_variants_differ_from_the_quickstart_in_what_a_completion_is_compared_with():
    usual = file.QUICKSTART
    for experiment in file.VARIANTS.values():
        train = experiment.train
        assert train.prompts * train.group_size == usual.train.prompts * usual.train.group_size and train.steps <= 100
        assert train.group_size == 1  # no group to compare with
        same = ("data", "sampling", "reward", "text_rewards", "warm_start", "evaluation")
        assert all(getattr(experiment, name) == getattr(usual, name) for name in same)
        assert dataclasses.replace(experiment.model, critic=None) == usual.model
    kinds = {name: experiment.model.critic for name, experiment in file.VARIANTS.items()}
    assert kinds == {"head": "head", "tower": "tower", "vapo": "tower", "penalty": "head"}
    roles = {name for name, experiment in file.VARIANTS.items() if "logp_ref" in wants(experiment.recipe)}
    assert roles == {"penalty"}
    assert file.VARIANTS["head"] == file.EXPERIMENT


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tower", "penalty"])
def test_a_short_run_expects_more_and_more(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a critic nothing is expected: the mean value stays 0. With one it goes where the returns are."""
    monkeypatch.setattr(heldout, "CHUNK", 16)
    whole, warm = file.VARIANTS[variant], file.QUICKSTART.warm_start
    assert warm is not None
    experiment = dataclasses.replace(
        whole,
        model=dataclasses.replace(whole.model, width=16, layers=1, heads=2, kv_heads=2, head_width=8, hidden=32),
        train=dataclasses.replace(whole.train, steps=12, prompts=32),
        optimizer=dataclasses.replace(whole.optimizer, learning_rate=1e-2, warmup=0),
        evaluation=dataclasses.replace(whole.evaluation, every=12, prompts=8, full_prompts=16, samples=1),
        warm_start=dataclasses.replace(warm, steps=300, limit=300, gate=0.0),
    )
    grpo_jax.run(experiment, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["phase"] == "grpo"]
    assert rows[0]["value/mean"] == 0.0 and rows[0]["returns/mean"] > 0.02
    last = rows[-1]
    assert abs(last["value/mean"] - last["returns/mean"]) < 0.5 * last["returns/mean"]
    assert ("kl/ref" in last) == (variant == "penalty")
    assert (tmp_path / "run" / "reference").exists() == (variant == "penalty")
