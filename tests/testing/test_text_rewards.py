"""`check_reward` accepts what the library has, and names the law that a bad function breaks."""

import random
from functools import partial
from typing import Any

import pytest

from grpo_jax.rewards import text
from grpo_jax.rewards.text import Record, Score
from grpo_jax.testing import ODD_COMPLETIONS, RECORDS, check_reward


def good(record: Record) -> Score:
    """The first character of the answer, if the completion has it."""
    if not record.completion:
        return Score(0.0, "unparsable", "nothing")
    return Score(float(record.answer in record.completion))


def anything(record: Any) -> float:
    return 1.0


def by_chance(record: Record) -> float:
    return random.random()


def counts_calls(record: Record) -> float:
    _CALLS.append(record.completion)
    return float(len(_CALLS) % (len(RECORDS) + len(ODD_COMPLETIONS)))


def fails_on_nothing(record: Record) -> float:
    return float(record.completion[0] == "8")


def forgets(record: Record) -> float | None:
    return 1.0 if record.answer in record.completion else None


def takes_away(record: Record) -> float:
    assert isinstance(record.metadata, dict)
    return float(record.metadata.pop("category") == "times")


_CALLS: list[str] = []


@pytest.mark.parametrize("reward", [good, partial(text.accuracy, match="exact"), text.accuracy, text.r1_format])
def test_rewards_that_depend_on_the_record_alone_obey_the_laws(reward):
    check_reward(reward)


def test_numeric_accuracy_obeys_the_laws_on_records_whose_answers_are_numbers():
    check_reward(partial(text.accuracy, match="numeric", tolerance=0.1), [text.Record("q", "<answer>1/2", (), "0.5")])


@pytest.mark.parametrize(
    ("reward", "law"),
    [
        (by_chance, r"by_chance gives .* and then .* not on chance"),
        (counts_calls, "counts_calls gives .* in another order of the records: a reward keeps nothing between calls"),
        (fails_on_nothing, r"ends with error \(IndexError.*\): a reward gives every completion"),
        (forgets, "NoneType is not one finite number"),
        (takes_away, "takes_away changes the record"),
        (lambda record: 1.0, "cannot be found by a worker process: .*lambda"),
        (partial(anything, "record"), "positional arguments"),
    ],
)
def test_a_reward_that_breaks_a_law_is_told_which(reward, law: str):
    with pytest.raises(AssertionError, match=law):
        check_reward(reward)
