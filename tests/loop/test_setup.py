"""What a run is set up from."""

import dataclasses
from pathlib import Path

import jax
import pytest

from grpo_jax.checkpoint import Checkpoints
from grpo_jax.experiment import Evaluation, Scoring, Train
from grpo_jax.loop.setup import chunks, first_states, judge, plan, problems, workers
from grpo_jax.revisit import restore
from grpo_jax.updates import SGD
from tests.rewards import odd
from tests.system.small_run import DATA, PLAIN, VARIANTS


def test_the_display_is_told_how_long_the_phases_may_be():
    assert plan(PLAIN).steps == {"warm_start": 8, "grpo": 6} and plan(PLAIN).rows == 8 * 4
    assert plan(VARIANTS["cold"]).steps["warm_start"] == 0


def test_rewards_of_the_library_need_no_workers_and_own_ones_get_them():
    with workers(dataclasses.replace(PLAIN, text_rewards=DATA.text_rewards())) as pool:
        assert pool is None
    with workers(dataclasses.replace(PLAIN, text_rewards={"own": (odd.length, 1.0)}, warm_start=None)) as pool:
        assert pool is not None and pool.workers == 2


def test_a_judge_knows_the_held_out_problems():
    given = problems(PLAIN)
    assert given.length.shape == (16,)
    assert judge(PLAIN, given).prompts is given and judge(PLAIN, given).mesh is None


def test_data_that_cannot_give_what_the_run_asks_for_is_refused_beforehand():
    with pytest.raises(ValueError, match="count: got 3000000; allowed are 1 to"):
        problems(dataclasses.replace(PLAIN, evaluation=Evaluation(prompts=8, full_prompts=3_000_000)))


def test_a_step_is_sampled_in_chunks_where_workers_score():
    text = VARIANTS["text"]
    assert chunks(text) == 4 and chunks(PLAIN) == 1
    assert chunks(dataclasses.replace(text, text_rewards=DATA.text_rewards())) == 1
    assert chunks(dataclasses.replace(text, train=Train(prompts=6, group_size=4))) == 3
    assert chunks(dataclasses.replace(text, train=Train(prompts=7, group_size=4))) == 1
    assert chunks(dataclasses.replace(text, scoring=Scoring(chunks=8))) == 8
    # Eight shards take eight prompts at least.
    assert chunks(dataclasses.replace(text, mesh={"data": 2, "fsdp": 4})) == 1


@pytest.mark.parametrize(("asked", "near"), [(3, "2 and 4"), (9, "4 and 8"), (0, "1 and 2")])
def test_chunks_that_do_not_divide_are_refused_with_those_that_do(asked: int, near: str):
    with pytest.raises(ValueError, match=f"scoring.chunks: got {asked}, .* the nearest valid numbers are {near}:"):
        dataclasses.replace(VARIANTS["text"], scoring=Scoring(chunks=asked))


def test_there_are_workers_enough_to_wait_side_by_side(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr("grpo_jax.loop.setup.Pool", lambda rewards, *, workers, **_: seen.append(workers))
    for cores, asked in ((2, None), (64, None), (64, 3)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        workers(dataclasses.replace(VARIANTS["text"], scoring=Scoring(workers=asked)))
    assert seen == [8, 64, 3]


@pytest.mark.parametrize("phase", [0, 1], ids=["warm start", "GRPO"])
def test_a_checkpoint_of_either_phase_is_found_where_they_have_optimisers_of_their_own(phase: int, tmp_path: Path):
    experiment = dataclasses.replace(PLAIN, optimizer=SGD(learning_rate=0.1))
    beginning = first_states(experiment, None)
    state = (beginning.state, beginning.grpo)[phase]
    kept = Checkpoints(tmp_path / "checkpoints", identity={}, keep_last=1)
    kept.save(3, state, {"phase": "grpo", "step": 3})
    kept.wait()
    assert jax.tree.structure(restore(kept, experiment).state) == jax.tree.structure(state)
    kept.close()
