"""The loop, in one process: it adds nothing to the phases of a step, and stops where their numbers say so."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import grpo_jax
from grpo_jax import heldout, lifeline
from grpo_jax.checkpoint import Checkpoints, abstract, state_digest
from grpo_jax.compiled import compiled, traces
from grpo_jax.experiment import Experiment, Saving, Train, step_settings, warm_settings
from grpo_jax.heldout import Judge
from grpo_jax.journal import read
from grpo_jax.loop import course, logbook, phases
from grpo_jax.loop.phases import PHASES
from grpo_jax.train import Stream, init_state, learn_rows, sample_rows, score_rows, start, stream, supervised_step
from grpo_jax.types import Params, Rollouts, TrainState
from tests.system.small_run import PLAIN, VARIANTS

SEED = 3


@pytest.fixture(autouse=True)
def _small_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "CHUNK", 16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, grpo_jax.Summary]:
    """Folder and summary of a run with seed 3, alone."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "CHUNK", 16)
        return folder, grpo_jax.run(dataclasses.replace(PLAIN, seed=SEED), folder)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]


def grpo_lines(folder: Path) -> list[dict[str, Any]]:
    return [row for row in metrics_of(folder) if row["phase"] == "grpo"]


def digest(state: TrainState) -> str:
    return state_digest({"params": state.params, "opt_state": state.opt_state, "step": state.step})


def restored_params(folder: Path, experiment: Experiment, name: str) -> Params:
    """The parameters of the newest checkpoint in one of the two places of a run."""
    kept = Checkpoints(folder / name, identity={})
    params = kept.restore_params(abstract(init_state(0, step_settings(experiment).gradient).params))
    kept.close()
    assert params is not None
    return params


def short_loop(experiment: Experiment) -> tuple[TrainState, dict[str, float]]:
    """Warm start, GRPO and an evaluation with public functions and nothing else."""
    warm, train, data = experiment.warm_start, experiment.train, experiment.data
    assert warm is not None
    imitate = compiled(supervised_step, donate=("state",), settings=warm_settings(experiment, warm))
    # Placed, as the loop does it, so that both find the same compiled programs.
    place = partial(jax.device_put, device=jax.local_devices()[0])
    state = place(init_state(experiment.seed, warm_settings(experiment, warm)))
    for step in range(warm.steps):
        draws = np.arange(step * warm.rows, (step + 1) * warm.rows)
        state, _ = imitate(state, *data.demonstrations(experiment.seed, draws))
    state = place(start(state.params, step_settings(experiment).gradient))
    sample = compiled(sample_rows, model=experiment.model, sampling=experiment.sampling, group_size=train.group_size)
    score = compiled(score_rows, reward=experiment.reward)
    learn = compiled(learn_rows, donate=("state",), settings=step_settings(experiment).gradient)
    keys = [stream(experiment.seed, name) for name in (Stream.ROLLOUT, Stream.UPDATE)]
    for step in range(train.steps):
        prompts = data.draw(experiment.seed, np.arange(step * train.prompts, (step + 1) * train.prompts))
        rollouts = sample(state.params, prompts, keys[0], state.step)
        state, _, _ = learn(state, rollouts, score(rollouts), keys[1])
    judge = Judge(
        task=data,
        model=experiment.model,
        sampling=experiment.sampling,
        text_rewards=experiment.text_rewards,
        reward=experiment.reward,
        seed=experiment.seed,
        prompts=data.heldout(16),
    )
    return state, heldout.evaluate(state.params, judge, prompts=16, samples=2, show=0)[0]


def test_a_short_loop_of_public_functions_ends_in_the_same_bits(plain: tuple[Path, grpo_jax.Summary]):
    folder, summary = plain
    state, metrics = short_loop(dataclasses.replace(PLAIN, seed=SEED))
    assert digest(state) == summary.state_digest
    last = metrics_of(folder)[-1]
    assert {name: last[name] for name in metrics} == metrics


def test_another_seed_compiles_nothing(plain: tuple[Path, grpo_jax.Summary], tmp_path: Path):
    before = traces()
    other = grpo_jax.run(dataclasses.replace(PLAIN, seed=SEED + 1, name="other"), tmp_path / "other")
    assert traces() == before
    assert other.state_digest != plain[1].state_digest


def test_sampler_and_trainer_agree_at_every_step(plain: tuple[Path, grpo_jax.Summary]):
    gaps = [row["logp_gap/max"] for row in grpo_lines(plain[0])]
    assert len(gaps) == 6 and max(gaps) < 1e-4


def test_the_journals_hold_every_step_and_every_completion(plain: tuple[Path, grpo_jax.Summary]):
    folder, summary = plain
    # Imitation is written down every 2 of 4 steps; each of the 6 GRPO steps has 8 prompts x 4 samples.
    assert [(row["phase"], row["step"]) for row in metrics_of(folder)] == [
        ("warm_start", 2),
        ("warm_start", 4),
        *(("grpo", step) for step in range(1, 7)),
    ]
    trained = [row for row in samples_of(folder) if row["set"] == "train"]
    assert [row["draw"] for row in trained] == [draw for draw in range(6 * 8) for _ in range(4)]
    for row in trained:
        assert math.isclose(row["reward"], row["components"]["accuracy"] + 0.25 * row["components"]["digits"])
    # Evaluations: at the gate, and behind GRPO steps 2, 4 and 6; 2 prompts are shown, sampled and greedy.
    assert len(samples_of(folder)) - len(trained) == 4 * 2 * 2
    assert summary.warm_steps == 4 and summary.steps == 6
    assert summary.parameters == sum(
        leaf.size for leaf in jax.tree.leaves(restored_params(folder, PLAIN, "checkpoints"))
    )


def test_every_row_of_a_step_has_the_advantage_of_its_group(plain: tuple[Path, grpo_jax.Summary]):
    rows = [row for row in samples_of(plain[0]) if row["set"] == "train"]
    for begin in range(0, len(rows), 4):
        reward = np.array([row["reward"] for row in rows[begin : begin + 4]])
        # Standardised with the sample deviation; 1e-4 is far above every eps in use.
        deviation = reward.std(ddof=1)
        expected = (reward - reward.mean()) / deviation if deviation > 0 else np.zeros(4)
        np.testing.assert_allclose([row["advantage"] for row in rows[begin : begin + 4]], expected, atol=1e-4)


def test_the_reference_of_a_penalty_is_the_policy_that_grpo_began_with(tmp_path: Path):
    experiment = dataclasses.replace(VARIANTS["penalty"], seed=SEED)
    begun = grpo_jax.run(dataclasses.replace(experiment, train=Train(steps=0, prompts=8, group_size=4)), tmp_path / "a")
    assert begun.steps == 0
    grpo_jax.run(experiment, tmp_path / "b")
    began, kept = (
        restored_params(tmp_path / folder, experiment, name)
        for folder, name in (("a", "checkpoints"), ("b", "reference"))
    )
    jax.tree.map(np.testing.assert_array_equal, began, kept)
    penalties = [row["kl/ref"] for row in grpo_lines(tmp_path / "b")]
    assert penalties[-1] > penalties[0] >= 0
    (tmp_path / "b" / "reference").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="reference policy of this run is missing"):
        grpo_jax.run(experiment, tmp_path / "b")


def test_without_a_warm_start_the_first_evaluation_is_at_step_0(tmp_path: Path):
    grpo_jax.run(VARIANTS["cold"], tmp_path / "run")
    first = metrics_of(tmp_path / "run")[0]
    assert (first["phase"], first["step"]) == ("grpo", 0) and 0 <= first["accuracy/heldout"] <= 1


def test_rewards_that_disagree_stop_the_run_as_data(tmp_path: Path):
    with pytest.raises(lifeline.DataError, match="component 'accuracy' of row") as stop:
        grpo_jax.run(VARIANTS["twins"], tmp_path / "run")
    assert stop.value.code == 5 and "completion" in stop.value.sentence


def test_a_step_is_written_down_while_the_next_one_is_sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any) -> Any:
            seen.append(what)
            return function(*args)

        return replaced

    for place, name in ((phases.Phases, "rollout"), (phases.Phases, "learn"), (logbook.Logbook, "step")):
        monkeypatch.setattr(place, name, noted(name, getattr(place, name)))
    grpo_jax.run(dataclasses.replace(VARIANTS["cold"], saving=Saving(every=2)), tmp_path / "run")
    # Steps in pairs: behind the second of each is a checkpoint, whose journals have to be there first.
    assert seen == ["rollout", "learn", "rollout", "step", "learn", "step"] * 3


def test_every_step_says_where_its_seconds_went(plain: tuple[Path, grpo_jax.Summary]):
    rows = read(plain[0] / "timing.jsonl")
    assert [(row["phase"], row["step"]) for row in rows] == [
        (row["phase"], row["step"]) for row in metrics_of(plain[0])
    ]
    lengths = {row["step"]: 32 * row["length/mean"] for row in grpo_lines(plain[0])}
    for row in rows[2:]:
        assert {"rollout", "reward", "update"} <= row["phases"].keys() <= {*logbook.APART, *PHASES, "rest"}
        assert ("evaluation" in row["phases"]) == (row["step"] % 2 == 0)
        assert min(row["phases"].values()) >= 0 and row["memory_bytes"] > 1e7 and row["memory_of"] == "process"
        assert row["tokens"] == round(lengths[row["step"]])
        own = sum(seconds for name, seconds in row["phases"].items() if name not in logbook.APART)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / own)
    # Laps leave no gap: what the phases took is what passed, but for the writing of the lines themselves.
    total = sum(sum(row["phases"].values()) for row in rows)
    assert 0.8 * total < sum(row["seconds"] for row in rows[1:]) + sum(rows[0]["phases"].values()) < 1.25 * total + 0.5


# Faults between the phases of a step: each is a compiled function of its own, or Python.

Halves = Callable[..., Any]


def with_halves(monkeypatch: pytest.MonkeyPatch, change: Callable[[Halves], Halves], half: str) -> Experiment:
    """The experiment with rewards on text, after `change` to its compiled `half`."""

    def replaced(function: Callable, **bound: Any) -> Halves:
        call = compiled(function, **bound)
        return change(call) if function.__name__ == half else call

    monkeypatch.setattr(phases, "compiled", replaced)
    return VARIANTS["text"]


def stale(sample: Halves) -> Halves:
    """Sampling from the parameters of the first step for ever."""
    kept: list[Params] = []

    def replaced(params: Params, *args: Any, **kwargs: Any) -> Rollouts:
        kept.append(jax.tree.map(lambda x: x.copy(), params))
        return sample(kept[0], *args, **kwargs)

    return replaced


def hot(sample: Halves) -> Halves:
    """Log-probabilities as they are at another temperature: all divided by 1.1, up to normalisation."""

    def replaced(*args: Any, **kwargs: Any) -> Rollouts:
        rollouts = sample(*args, **kwargs)
        return rollouts.replace(logp_full=rollouts.logp_full / 1.1, logp=rollouts.logp / 1.1)

    return replaced


def shifted(sample: Halves) -> Halves:
    """Log-probabilities that belong to the token before."""

    def replaced(*args: Any, **kwargs: Any) -> Rollouts:
        rollouts = sample(*args, **kwargs)
        return rollouts.replace(logp_full=jnp.roll(rollouts.logp_full, 1, axis=1))

    return replaced


@pytest.mark.parametrize(("fault", "step"), [(stale, 2), (hot, 1), (shifted, 1)])
def test_a_sampler_that_is_not_the_trained_policy_stops_the_run(
    fault: Callable[[Halves], Halves], step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    experiment = with_halves(monkeypatch, fault, "sample_rows")
    with pytest.raises(lifeline.Diverged, match=f"Step {step}: sampler and trainer disagree") as stop:
        grpo_jax.run(experiment, tmp_path / "run")
    assert stop.value.code == 3


def poisoned(learn: Halves, steps: tuple[int, ...]) -> Halves:
    """Rewards that are nan in some steps."""
    numbers = iter(range(1, 100))

    def replaced(state: TrainState, rollouts: Rollouts, reward: Any, *args: Any, **kwargs: Any) -> Any:
        if next(numbers) in steps:
            reward = reward.replace(outcome=np.full_like(reward.outcome, np.nan))
        return learn(state, rollouts, reward, *args, **kwargs)

    return replaced


def test_updates_that_are_not_finite_are_skipped_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    experiment = with_halves(monkeypatch, lambda learn: poisoned(learn, (2, 3)), "learn_rows")
    grpo_jax.run(experiment, tmp_path / "run")
    rows = grpo_lines(tmp_path / "run")
    # Two minibatches a step: both updates of steps 2 and 3 are refused, 4 in a row, fewer than the limit of 5.
    assert [row["skipped"] for row in rows] == [0, 2, 2, 0, 0, 0]
    assert [row["skipped/consecutive"] for row in rows] == [0, 2, 4, 0, 0, 0]
    assert rows[1]["nonfinite"]["loss"] == "nan" and rows[1]["loss"] is None
    params = restored_params(tmp_path / "run", experiment, "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_updates_that_are_never_finite_stop_the_run_with_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "run"
    experiment = with_halves(monkeypatch, lambda learn: poisoned(learn, (3, 4, 5, 6)), "learn_rows")
    with pytest.raises(lifeline.Diverged, match="Step 5: the last 6 updates were refused") as stop:
        grpo_jax.run(experiment, folder)
    assert stop.value.code == 3
    arrays, info = lifeline.read_dump(folder / "dump-5")
    assert info["step"] == 5 and info["seed"] == 0
    assert np.isnan(arrays["reward.outcome"]).all() and arrays["rollouts.tokens"].shape == (32, 8)
    np.testing.assert_array_equal(arrays["rollouts.prompts.draw"], np.arange(32, 40))
    written = [row["tokens"] for row in samples_of(folder) if row["set"] == "train" and row["step"] == 5]
    assert written == [
        tokens[:length].tolist()
        for tokens, length in zip(arrays["rollouts.tokens"], arrays["rollouts.length"], strict=True)
    ]
    # Checkpoint 8 is that behind GRPO step 4: the parameters of step 2, whatever was tried since.
    params = restored_params(folder, experiment, "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert (folder / "checkpoints" / "8").is_dir() and not (folder / "checkpoints" / "9").exists()


def test_text_rewards_leave_their_statuses(tmp_path: Path):
    grpo_jax.run(VARIANTS["text"], tmp_path / "run")
    for row in grpo_lines(tmp_path / "run"):
        # 32 rows, 2 rewards each.
        assert (row["status/ok"], row["status/error"], row["status/timeout"], row["status/unparsable"]) == (64, 0, 0, 0)


def test_rewards_on_text_and_on_tokens_lead_to_the_same_samples(plain: tuple[Path, grpo_jax.Summary], tmp_path: Path):
    grpo_jax.run(dataclasses.replace(VARIANTS["text"], seed=SEED), tmp_path / "run")
    fields = ("phase", "step", "set", "draw", "number", "tokens", "components")
    one, other = (
        [{name: row.get(name) for name in fields} for row in samples_of(f)] for f in (plain[0], tmp_path / "run")
    )
    assert one == other


@pytest.mark.slow
def test_a_mesh_samples_the_same_tokens_and_learns_the_same(plain: tuple[Path, grpo_jax.Summary], tmp_path: Path):
    folder = tmp_path / "run"
    summary = grpo_jax.run(dataclasses.replace(VARIANTS["mesh"], seed=SEED), folder)
    first, other = (
        [row["tokens"] for row in samples_of(f) if row["set"] == "train" and row["step"] == 1]
        for f in (plain[0], folder)
    )
    assert first == other
    for one, two in zip(metrics_of(plain[0]), metrics_of(folder), strict=True):
        for name in ("loss", "entropy", "grad_norm", "reward/mean"):
            if name in one:
                np.testing.assert_allclose(
                    two[name], one[name], rtol=2e-3, atol=2e-4, err_msg=f"{name} of {one['step']}"
                )
    assert max(row["logp_gap/max"] for row in grpo_lines(folder)) < 1e-4
    assert summary.accuracy_after == pytest.approx(plain[1].accuracy_after, abs=0.1)


def test_a_save_that_fails_ends_the_run_and_the_next_one_goes_on(
    plain: tuple[Path, grpo_jax.Summary], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    experiment, folder = dataclasses.replace(PLAIN, seed=SEED), tmp_path / "run"
    saves, save = iter(range(100)), ocp.CheckpointManager.save

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(saves) == 2:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", failing)
        with pytest.raises(lifeline.DataError, match=r"could not be saved in .*No space left on device") as stop:
            grpo_jax.run(experiment, folder)
    assert stop.value.code == 5
    assert grpo_jax.run(experiment, folder).state_digest == plain[1].state_digest
    assert (folder / "metrics.jsonl").read_bytes() == (plain[0] / "metrics.jsonl").read_bytes()
    assert (folder / "samples.jsonl").read_bytes() == (plain[0] / "samples.jsonl").read_bytes()


def test_a_termination_signal_ends_the_run_behind_its_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Requested:
        requested = True

        def __enter__(self) -> "Requested":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(course, "Signals", Requested)
    folder = tmp_path / "run"
    with pytest.raises(lifeline.Preempted, match="run the same command again") as stop:
        grpo_jax.run(VARIANTS["cold"], folder)
    assert stop.value.code == 75
    assert [row["step"] for row in metrics_of(folder)] == [0, 1]
    assert (folder / "checkpoints" / "1").is_dir()


@pytest.mark.slow
def test_the_state_before_training_may_be_the_best_and_a_run_goes_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # As many problems are scored before as after, and of equal ones the earlier is better.
    saving = Saving(every=10, keep=1, best="n/heldout")
    small = dataclasses.replace(VARIANTS["cold"], saving=saving, train=dataclasses.replace(PLAIN.train, steps=2))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    grpo_jax.run(small, run_dir=whole)

    def dies(*_: object, **__: object) -> None:
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(phases.Phases, "rollout", dies)
        with pytest.raises(RuntimeError, match="gone"):
            grpo_jax.run(small, run_dir=parts)
    grpo_jax.run(small, run_dir=parts)
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read(parts / "metrics.jsonl")] == [0, 1, 2]
    for folder in (whole, parts):
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["0", "2"]
