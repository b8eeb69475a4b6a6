"""The study of all recipes: what it says beforehand is complete, and shortened it comes to numbers that add up."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import all_recipes as file
from grpo_jax import cli
from grpo_jax.ablation import command
from grpo_jax.advantages import ADVANTAGES
from grpo_jax.journal import read
from grpo_jax.objectives import RECIPES, functions
from grpo_jax.types import Array, Prompts, Reward, Rollouts

SMALL = (
    "model.width=16 model.layers=1 model.hidden=32 model.heads=2 model.kv_heads=2 model.head_width=8 train.steps=2"
    " train.prompts=8 train.group_size=4 warm_start.steps=2 warm_start.limit=2 warm_start.gate=0 warm_start.rows=8"
    " evaluation.every=1 evaluation.prompts=8 evaluation.full_prompts=8 evaluation.samples=1 optimizer.warmup=0"
).split()


def test_every_recipe_has_a_row_that_says_what_is_expected_of_it():
    assert set(file.ROWS) == set(file.VARIANTS) >= set(RECIPES)
    for name in RECIPES:
        assert file.VARIANTS[name].recipe == RECIPES[name], name
    assert all(row.why for row in file.ROWS.values() if not row.learns)
    assert file.SEEDS == (0, 1, 2) and len(RECIPES) >= 30
    own = {"ppo_critic", "ppo_vapo", "trpo"}
    shared = [e for name, e in file.VARIANTS.items() if name not in own]
    assert len({(e.data.digest, e.model, e.train, e.warm_start, e.optimizer) for e in shared}) == 1
    assert len({(e.data.digest, e.train.steps, e.train.prompts, e.warm_start) for e in file.VARIANTS.values()}) == 1


def test_every_advantage_takes_part_or_is_left_out_for_a_reason():
    tried = {
        function for experiment in file.VARIANTS.values() for function, _ in functions(experiment.recipe.advantage)
    }
    missing = {name for name, strategy in ADVANTAGES.items() if strategy not in tried}
    assert missing == set(file.LEFT_OUT) and all(file.LEFT_OUT.values())


def test_what_is_expected_is_a_claim_of_the_ablation():
    ablation = command.planned(Path(file.__file__), file)
    assert [claim for claim in ablation.expected if claim.variant == "*"] == [
        ("*", "nonfinite", 0, 0, ""),
        ("*", "skipped", 0, 0, ""),
    ]
    for name, row in file.ROWS.items():
        claims = {claim.measure: claim for claim in ablation.expected if claim.variant == name}
        for measure in ("first_rise", "rise"):
            bounds = (0.05, math.inf) if row.learns else (-math.inf, 0.05)
            assert (claims[measure].lowest, claims[measure].highest, claims[measure].why) == (*bounds, row.why)


@pytest.mark.slow
def test_a_shortened_study_ends_in_the_numbers_of_its_journals(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    names = ("ppo_clip", "tis")
    sets = [part for setting in SMALL for part in ("--set", setting)]
    words = ["--variants", ",".join(names), "--seeds", "0", "--dir", str(tmp_path / "x"), *sets]
    assert cli.main(["ablate", str(root / "experiments" / "all_recipes.py"), *words]) == 0
    assert "What the file expects" in capsys.readouterr().out
    found = json.loads((tmp_path / "x" / "ablation.json").read_text())["runs"]
    rows = {name: read(tmp_path / "x" / name / "seed-0" / "metrics.jsonl") for name in names}
    for name in names:
        rewards = [row["accuracy/heldout"] + 0.2 * row["format/heldout"] for row in rows[name] if "n/heldout" in row]
        assert found[name]["0"]["rise"] == pytest.approx(rewards[-1] - rewards[0])
        assert found[name]["0"]["first_rise"] == pytest.approx(rewards[1] - rewards[0])
        assert (found[name]["0"]["skipped"], found[name]["0"]["nonfinite"]) == (0.0, 0.0)
    # Sampler and trainer hold the same parameters, so that the weights of tis are 1 up to rounding.
    plain, weighed = (
        [row["grad_norm"] for row in rows[name] if row["phase"] == "grpo" and row["step"]] for name in names
    )
    assert plain == pytest.approx(weighed, rel=1e-3) and len(plain) == 2
    table = (tmp_path / "x" / "table.md").read_text()
    assert "| every variant: nonfinite | 0 | 0 | yes |" in table and "| tis: rise | at least 0.05 |" in table


def rows_of(tokens: Array, *, length: Array) -> Rollouts:
    """Rows with these tokens, each of a prompt of its own."""
    index, nothing = jnp.arange(tokens.shape[0], dtype=jnp.int32), jnp.zeros(tokens.shape)
    return Rollouts(
        prompts=Prompts(tokens=index[:, None], length=index * 0 + 1, draw=index, row=index),
        prompt=index,
        sample=index * 0,
        tokens=tokens,
        length=length,
        stopped=index >= 0,
        mask=jnp.arange(tokens.shape[1])[None, :] < length[:, None],
        logp=nothing,
        logp_full=nothing,
        version=index * 0,
    )


def graded(rollouts: Rollouts) -> Reward:
    """A format of 0.25, 0.5 and 0.125, answers of 1, 0.5 and 0.75."""
    del rollouts
    components = {"format": jnp.array([0.25, 0.5, 0.125]), "accuracy": jnp.array([1.0, 0.5, 0.75])}
    return Reward(outcome=jnp.array([3.0, 4.0, 5.0]), valid=jnp.ones(3, bool), components=components)


def test_the_steps_of_a_completion_by_hand():
    # Thoughts 1 2 </think> answer; one without an end of its thought; one that is cut off right at it.
    end = file.END_OF_THOUGHT
    tokens = jnp.array([[1, 2, end, 7, 8], [1, 2, 3, 4, 0], [1, end, 0, 0, 0]], jnp.int32)
    rollouts = rows_of(tokens, length=jnp.array([5, 4, 2], jnp.int32))
    found = file.in_steps(rollouts, reward=graded, thought=end)
    assert np.asarray(found.step_end).tolist() == [
        [False, False, True, False, True],
        [False, False, False, True, False],
        [False, True, False, False, False],
    ]
    assert found.token is not None and np.asarray(found.token).tolist() == [
        [0, 0, 0.25, 0, 1],
        [0, 0, 0, 0.5, 0],
        [0, 0.75, 0, 0, 0],
    ]
    assert np.asarray(found.outcome).tolist() == [3.0, 4.0, 5.0]
