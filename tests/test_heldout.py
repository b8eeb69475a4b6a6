"""Held-out evaluation: what it measures is what the completions say, whatever the batches they were made in."""

import dataclasses
from collections.abc import Mapping

import pytest

from grpo_jax import heldout
from grpo_jax.compiled import TRACES, forget
from grpo_jax.data import Chain, Task
from grpo_jax.experiment import Experiment, Saving
from grpo_jax.heldout import Judge, Verdict, answer, check, evaluate
from grpo_jax.lifeline import DataError
from grpo_jax.models import init
from grpo_jax.questions import further_sets
from grpo_jax.train import Stream, stream
from grpo_jax.types import Params, Prompts
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


def own(params: Params, judge: Judge, *, count: int | None = None, samples: int, greedy: bool = False) -> Verdict:
    """What the completions of the data's own set are worth."""
    return answer(params, {"heldout": judge.sets["heldout"].first(count)}, samples, judge, greedy=greedy)["heldout"]


def test_the_first_prompts_are_evaluated_and_some_completions_shown(params: Params, judge: Judge):
    metrics, shown = evaluate(params, judge, prompts=20, samples=2, show=3)
    verdict = own(params, judge, count=20, samples=2)
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
    verdict = own(params, judge, samples=2)
    assert [row.prompt for row in verdict.records[:COUNT]] == [row.prompt for row in verdict.records[COUNT:]]
    # Samples of one prompt differ, and so do those of two seeds; greedy completions do not.
    assert verdict.records[0].tokens != verdict.records[COUNT].tokens
    other = own(params, dataclasses.replace(judge, seed=1), samples=1)
    assert [row.tokens for row in other.records] != [row.tokens for row in verdict.records[:COUNT]]
    greedy = [own(params, dataclasses.replace(judge, seed=seed), samples=1, greedy=True).records for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    monkeypatch.setattr(heldout, "CHUNK", 8)
    again = own(params, judge, samples=2)
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


TASKS: dict[str, Task] = {"longer": Chain(operands=4), "mixed": Chain(operands=3, fewest=2)}


@pytest.fixture(scope="module")
def several(judge: Judge) -> Judge:
    """The judge of a run with two further sets, one of them wider than the data, and with categories."""
    return dataclasses.replace(judge, further=further_sets(TASKS, count=20), category="operands")


def test_every_set_is_measured_as_if_it_were_alone(params: Params, judge: Judge, several: Judge):
    together, shown = evaluate(params, several, prompts=20, samples=2, show=2)
    assert set(shown) == {"heldout", "heldout/greedy", "longer", "longer/greedy", "mixed", "mixed/greedy"}
    assert shown["longer"][1][0].prompt == TASKS["longer"].prompt_text(several.further["longer"][1], 1)
    for name in ("heldout", "longer", "mixed"):
        alone, _ = evaluate(params, several, prompts=20, samples=2, show=0, sets=(name,))
        assert alone == {key: value for key, value in together.items() if key.partition("/")[2].startswith(name)}
    # The set of the data is measured as in a run that has no other, but for the width of the batch.
    single, _ = evaluate(params, judge, prompts=20, samples=2, show=0)
    assert single.keys() <= together.keys()
    assert all(together[key] == pytest.approx(value, abs=1e-6) for key, value in single.items())


def test_the_categories_of_a_set_are_its_problems_apart(params: Params, several: Judge):
    found, _ = evaluate(params, several, prompts=20, samples=2, show=0, sets=("mixed",))
    verdict = answer(params, {"mixed": several.sets["mixed"]}, 2, several)["mixed"]
    lengths = [row.prompt.count("+") + row.prompt.count("-") + row.prompt.count("*") for row in verdict.records[:20]]
    assert set(lengths) == {1, 2}
    for operands in (2, 3):
        inside = [p for p, operators in enumerate(lengths) if operators == operands - 1]
        correct = verdict.components["accuracy"][inside]
        assert found[f"n/mixed[{operands}]"] == len(inside)
        assert found[f"accuracy/mixed[{operands}]"] == pytest.approx(correct.mean())
        assert found[f"pass@2/mixed[{operands}]"] == pytest.approx(correct.any(axis=1).mean())
    assert found["n/mixed"] == 20


def test_all_sets_share_one_program(params: Params, several: Judge):
    forget()
    evaluate(params, several, prompts=8, samples=1, show=0)
    evaluate(params, several, prompts=20, samples=2, show=0, sets=("longer",))
    assert TRACES["answer_rows"] == 1


def test_the_reward_on_tokens_judges_the_set_of_the_data_alone(params: Params, several: Judge):
    wrong = dataclasses.replace(several, text_rewards=VARIANTS["twins"].text_rewards)
    found, _ = evaluate(params, wrong, prompts=16, samples=1, show=0, sets=("longer", "mixed"))
    assert found["accuracy/longer"] == 1  # the twin that disagrees says so of every row
    with pytest.raises(DataError, match="disagree"):
        evaluate(params, wrong, prompts=16, samples=1, show=0)


def test_the_best_is_chosen_by_a_metric_that_small_evaluations_have(params: Params, several: Judge):
    def saving(best: str | None) -> Experiment:
        small = dataclasses.replace(PLAIN.evaluation, small_samples=2)
        return dataclasses.replace(PLAIN, saving=Saving(best=best), evaluation=small)

    measured, _ = evaluate(params, several, prompts=PLAIN.evaluation.prompts, samples=2, show=0)
    for name in (None, *measured):
        check(several, saving(name))
    with pytest.raises(ValueError, match=r"saving.best: got 'accuracy/mixd', allowed .*did you mean accuracy/mixed\?"):
        check(several, saving("accuracy/mixd"))
    with pytest.raises(ValueError, match=r"allowed is a metric of the small evaluations: digits/heldout, accuracy"):
        check(several, saving("pass@4/heldout"))
    with pytest.raises(ValueError, match="categ"):
        check(dataclasses.replace(several, task=Odd(operands=3), category="odd"), saving(None))


class Odd(Chain):
    """A task with categories that cannot be named."""

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        return [{"odd": "a/b"} for _ in prompts.length]
