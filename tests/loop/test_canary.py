"""Rewards are tried on right answers and on none before anything is trained."""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import grpo_jax
from grpo_jax.data import Chain, Jsonl
from grpo_jax.data.addition import Addition
from grpo_jax.experiment import Experiment, Scoring
from grpo_jax.loop import canary
from grpo_jax.loop.canary import check_rewards, tried
from grpo_jax.rewards import text
from grpo_jax.rewards.text import Record
from tests.system.small_run import VARIANTS
from tests.system.small_text import always

LINES = [
    {"prompt": "1 + 1?", "answer": "2", "solution": "1+1=2"},
    {"prompt": "1 + 2?", "answer": "3"},
    {"prompt": "3 + 2?", "answer": "5"},
]


def never(record: Record) -> float:
    """A reward that finds nothing right."""
    del record
    return 0.0


def broken(record: Record) -> float:
    """A reward that asks for what is not there."""
    return float(record.metadata["nowhere"] == 1)


def with_rewards(reward: text.TextReward, **scoring: bool) -> Experiment:
    small = dataclasses.replace(VARIANTS["cold"], reward=None, text_rewards={"accuracy": (reward, 1.0)})
    return dataclasses.replace(small, scoring=Scoring(**scoring))


@pytest.fixture(name="lines")
def a_file(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path / "data.jsonl"


@pytest.mark.parametrize("name", ["chain", "addition", "jsonl"])
def test_the_answers_of_every_task_of_the_library_pass_its_own_rewards(name: str, lines: Path):
    task = {
        "chain": Chain(operands=3, modulus=100),
        "addition": Addition(),
        "jsonl": Jsonl(str(lines), heldout_share=0.0),
    }[name]
    gold, junk = tried(task, task, 0)
    assert len(gold) == len(junk) == canary.ASKED
    _, scores = text.score([*gold, *junk], task.text_rewards())
    assert [s.value for s in scores["accuracy"]] == [1.0] * 4 + [0.0] * 4
    assert [s.value for s in scores["format"]] == [1.0] * 4 + [0.0] * 4


def test_a_line_without_a_solution_still_has_its_answer(lines: Path):
    task = Jsonl(str(lines), heldout_share=0.0)
    gold, _ = tried(task, task, 0)
    said = {record.prompt: record.completion for record in gold}
    assert said["1 + 1?\n<think>"] == "1+1=2</think><answer>2</answer>"
    assert said["1 + 2?\n<think>"] == "</think><answer>3</answer>"


def test_good_rewards_pass_at_once():
    begin = time.process_time()
    assert check_rewards(with_rewards(text.accuracy)) is None
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (never, "got 0 for a right completion, allowed is 1"),
        (always, "got 1 for a wrong completion, allowed is 0"),
        (broken, r"got error \(KeyError: 'nowhere'\) on a right completion"),
        (partial(text.accuracy, opening="<result>"), "got 0 for a right completion .no answer., allowed is 1"),
    ],
    ids=["never", "always", "broken", "other tags"],
)
def test_a_reward_that_cannot_tell_stops_the_run_before_it_begins(reward: text.TextReward, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said) as refusal:
        check_rewards(with_rewards(reward))
    for part in ("prompt ", "completion ", "answer ", "scoring.canary=False"):
        assert part in str(refusal.value)
    assert check_rewards(with_rewards(reward, canary=False)) is None


def test_a_run_tries_its_rewards_in_its_workers_and_writes_nothing_if_they_fail(tmp_path: Path):
    with pytest.raises(ValueError, match="allowed is 0"):
        grpo_jax.run(with_rewards(always), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


class Silent:
    """A task of somebody's who never heard of gold."""


def test_where_nothing_can_be_tried_a_sentence_says_so():
    plain = with_rewards(text.accuracy)
    no_component = dataclasses.replace(plain, text_rewards={"mine": (always, 1.0)})
    assert "no text reward is called 'accuracy'" in str(check_rewards(no_component))
    silent: Any = SimpleNamespace(data=Silent(), text_rewards=plain.text_rewards, scoring=plain.scoring, seed=0)
    assert "Silent has no method gold(prompts)" in str(check_rewards(silent))
