"""Held-out evaluation: what it measures is what the completions say, whatever the batches they were made in."""

import dataclasses

import jax
import numpy as np
import pytest

from grpo_jax import heldout
from grpo_jax.heldout import Judge, Verdict, answer, evaluate, measure
from grpo_jax.lifeline import DataError
from grpo_jax.models import init
from grpo_jax.rewards.text import Record
from grpo_jax.train import Stream, stream
from grpo_jax.types import Params
from tests.system.small_run import PLAIN, VARIANTS

COUNT = 24


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout, "CHUNK", 16)


@pytest.fixture(scope="module")
def params() -> Params:
    return init(stream(0, Stream.INIT), PLAIN.model)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(
        task=PLAIN.data,
        model=PLAIN.model,
        sampling=PLAIN.sampling,
        text_rewards=PLAIN.text_rewards,
        reward=PLAIN.reward,
        seed=0,
        prompts=PLAIN.data.heldout(COUNT),
    )


def record(completion: str, answer: str = "7") -> Record:
    return Record(prompt="", completion=completion, tokens=(1,), answer=answer)


def test_metrics_are_counts_of_the_scores_by_hand():
    # Two prompts with two samples each, sample by sample; the last could not be scored.
    verdict = Verdict(
        records=[record(f"<answer>{x}</answer>") for x in "7371"],
        components={
            "accuracy": np.array([[1, 1], [0, 0]], np.float32),
            "format": np.array([[1, 0], [0.5, 9]], np.float32),
        },
        valid=np.array([[True, True], [True, False]]),
        length=np.array([[3, 4], [5, 8]]),
        stopped=np.array([[True, True], [True, False]]),
        entropy=np.array([[1.0, 2.0], [3.0, 4.0]]),
    )
    found = measure(verdict, "heldout", greedy=False)
    # Of the three rows that could be scored: 1 + 0 + 0.5 over 3.
    assert found["format/heldout"] == pytest.approx(0.5)
    assert found["length/heldout"] == (3 + 4 + 5 + 8) / 4
    assert found["stopped/heldout"] == 3 / 4
    assert found["entropy/heldout"] == (1 + 2 + 3 + 4) / 4
    assert 0 <= found["accuracy/heldout/low"] <= found["accuracy/heldout"] <= found["accuracy/heldout/high"] <= 1
    greedy = measure(verdict, "other", greedy=True)
    assert {name.partition("/")[0] for name in greedy} == {"greedy", "greedy_format"}


def test_the_first_prompts_are_evaluated_and_some_completions_shown(params: Params, judge: Judge):
    metrics, shown = evaluate(params, judge, prompts=20, samples=2, show=3)
    verdict = answer(params, jax.tree.map(lambda leaf: leaf[:20], judge.prompts), 2, judge)
    assert metrics["accuracy/heldout"] == pytest.approx(verdict.components["accuracy"].mean())
    assert metrics["digits/heldout"] == pytest.approx(verdict.components["digits"].mean())
    assert metrics["length/heldout"] == verdict.length.mean()
    assert set(shown) == {"heldout", "heldout/greedy"}
    for p, (row, scores) in enumerate(shown["heldout"]):
        assert row.tokens == verdict.records[p].tokens
        assert scores == {
            "accuracy": float(row.tokens[0] < 7),
            "digits": float(sum(token < 10 for token in row.tokens)),
        }
        assert row.prompt == PLAIN.data.prompt_text(judge.prompts, p)
    assert [len(rows) for rows in shown.values()] == [3, 3]


def test_a_completion_belongs_to_its_problem_and_not_to_its_batch(
    params: Params, judge: Judge, monkeypatch: pytest.MonkeyPatch
):
    verdict = answer(params, judge.prompts, 2, judge)
    assert [row.prompt for row in verdict.records[:COUNT]] == [row.prompt for row in verdict.records[COUNT:]]
    # Samples of one prompt differ, and so do those of two seeds; greedy completions do not.
    assert verdict.records[0].tokens != verdict.records[COUNT].tokens
    other = answer(params, judge.prompts, 1, dataclasses.replace(judge, seed=1))
    assert [row.tokens for row in other.records] != [row.tokens for row in verdict.records[:COUNT]]
    greedy = [
        answer(params, judge.prompts, 1, dataclasses.replace(judge, seed=seed), greedy=True).records for seed in (0, 1)
    ]
    assert greedy[0] == greedy[1]
    monkeypatch.setattr(heldout, "CHUNK", 8)
    again = answer(params, judge.prompts, 2, judge)
    assert [row.tokens for row in again.records] == [row.tokens for row in verdict.records]


def test_without_a_reward_on_tokens_the_text_alone_is_the_judge(params: Params, judge: Judge):
    alone = dataclasses.replace(judge, reward=None)
    assert evaluate(params, alone, prompts=16, samples=1, show=1) == evaluate(
        params, judge, prompts=16, samples=1, show=1
    )


def test_rewards_that_disagree_are_trouble_with_data(params: Params, judge: Judge):
    wrong = dataclasses.replace(judge, text_rewards=VARIANTS["twins"].text_rewards)
    with pytest.raises(DataError, match=r"component 'accuracy' of row .* 0\.0 on tokens, 1\.0 on text") as stop:
        evaluate(params, wrong, prompts=16, samples=1, show=1)
    assert stop.value.code == 5


def test_an_evaluation_may_take_all_there_is(params: Params, judge: Judge):
    found, _ = evaluate(params, judge, prompts=None, samples=1, show=0)
    assert found["accuracy/heldout"] * COUNT == pytest.approx(round(found["accuracy/heldout"] * COUNT))
