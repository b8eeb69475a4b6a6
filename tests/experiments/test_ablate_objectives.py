"""The ablation of objectives, shortened by settings, and the term that it defines."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ablate_objectives as file
from grpo_jax.ablation import claims
from grpo_jax.objectives import ppo_clip, weighted_sum
from grpo_jax.testing import check_term
from grpo_jax.types import Array, Batch, Prompts, Reward, Rollouts, TokenStats

SMALL = (
    "model.width=16 model.layers=1 model.hidden=32 model.heads=2 model.kv_heads=2 model.head_width=8 train.steps=2"
    " train.prompts=8 train.group_size=4 train.minibatches=2"
    " warm_start.steps=200 warm_start.limit=200 warm_start.gate=0"
    " evaluation.every=1 evaluation.prompts=8 evaluation.full_prompts=8 evaluation.samples=1 optimizer.warmup=0"
).split()


def batch_at(ratio: list[float], advantage: list[float]) -> tuple[Array, Batch]:
    """Log-probabilities f32[1, T] and a batch of one row whose ratios are these."""
    logp = jnp.log(jnp.asarray([ratio], jnp.float32)) - 1.0
    old, ones, one = jnp.full_like(logp, -1.0), jnp.ones(logp.shape, bool), jnp.zeros(1, jnp.int32)
    rollouts = Rollouts(
        prompts=Prompts(tokens=one[:, None], length=one + 1, draw=one, row=one),
        prompt=one,
        sample=one,
        tokens=jnp.zeros(logp.shape, jnp.int32),
        length=one + logp.shape[1],
        stopped=jnp.ones(1, bool),
        mask=ones,
        logp=old,
        logp_full=old,
        version=one,
    )
    reward = Reward(outcome=jnp.zeros(1), valid=jnp.ones(1, bool))
    return logp, Batch(
        rollouts=rollouts,
        mask=ones,
        weight={},
        advantage=jnp.asarray([advantage], jnp.float32),
        logp_old=old,
        logp_behavior=old,
        group=one,
        reward=reward,
    )


def slope(term, logp: Array, batch: Batch) -> np.ndarray:
    """Derivative of the sum of a term by every log-probability."""

    def total(x: Array) -> Array:
        return weighted_sum(term(TokenStats(logp=x), batch), jnp.ones_like(x))

    return np.asarray(jax.grad(total)(logp))[0]


def test_the_term_of_the_file_obeys_the_laws_of_terms():
    check_term(partial(file.soft_clip, width=0.2))


def test_the_term_of_the_file_by_hand():
    logp, batch = batch_at([1.0, 1.2, 1.4, 0.8], [2.0, 1.0, 1.0, -1.0])
    soft = partial(file.soft_clip, width=0.2)
    value = np.asarray(soft(TokenStats(logp=logp), batch))[0]
    t1, t2 = np.tanh(1.0), np.tanh(2.0)  # (1.2 - 1) / 0.2 and (1.4 - 1) / 0.2
    np.testing.assert_allclose(value, [-2.0, -(1 + 0.2 * t1), -(1 + 0.2 * t2), 1 - 0.2 * t1], rtol=1e-5)
    # d/dx of -A (1 + w tanh((r - 1) / w)) is -A r (1 - tanh^2): it fades, where that of PPO is 0 past the bound
    np.testing.assert_allclose(
        slope(soft, logp, batch), [-2.0, -1.2 * (1 - t1**2), -1.4 * (1 - t2**2), 0.8 * (1 - t1**2)], rtol=1e-4
    )
    assert slope(ppo_clip, logp, batch)[[0, 2]].tolist() == pytest.approx([-2.0, 0.0])


def test_the_file_compares_seven_objectives_under_two_optimisers():
    assert len(file.VARIANTS) == 14 and file.SEEDS == (0, 1, 2)
    assert {name.split("-")[0] for name in file.VARIANTS} >= {"grpo", "dr_grpo", "dapo", "rloo", "ppo_clip", "soft"}
    settings = {(e.data.digest, e.model, e.train, e.warm_start) for e in file.VARIANTS.values()}
    assert len(settings) == 1
    # Leave-one-out and mean-only are one thing under Adam, and two under gradient descent at one rate.
    assert [claim.names for claim in claims(file.VARIANTS)] == [("dr_grpo-adam", "loo-adam")]


@pytest.mark.slow
def test_the_script_ends_in_a_table_in_which_the_own_term_has_numbers_of_its_own(root: Path, tmp_path: Path):
    flags = [flag for setting in SMALL for flag in ("--set", setting)]
    words = ["experiments/ablate_objectives.py", "--variants", "grpo-adam,soft-adam", "--seeds", "0"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *words, "--dir", str(tmp_path / "x"), *flags],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "soft_clip(width=0.2)" in (tmp_path / "x" / "table.md").read_text()
    rows = [
        [json.loads(line) for line in (tmp_path / "x" / name / "seed-0" / "metrics.jsonl").read_text().splitlines()]
        for name in ("grpo-adam", "soft-adam")
    ]
    plain, soft = ([row for row in run if row["phase"] == "grpo"] for run in rows)
    assert plain[0]["reward/mean"] == soft[0]["reward/mean"]  # one warm start, one batch of rollouts
    # Eight updates a batch: behind the first the ratios are not 1, and there the two terms differ.
    assert "clip/high" in plain[0] and "clip/high" not in soft[0]
    assert plain[0]["reward/std"] > 0
    assert abs(plain[0]["grad_norm"] / soft[0]["grad_norm"] - 1) > 1e-5
    assert "What the file expects" in done.stdout  # said, and with other settings not held against it
