"""Scores of text that are on their way, and the lot without a single one."""

from functools import partial

import numpy as np
import pytest

from grpo_jax.lifeline import RunStopped
from grpo_jax.loop.scoring import check_scored, submitted, together
from grpo_jax.loop.setup import judge, problems
from grpo_jax.rewards.text import Record
from tests.system.small_run import VARIANTS


def broken(record: Record) -> float:
    raise RuntimeError(f"no score for {record.answer}")


def asked(answer: str) -> Record:
    return Record(prompt="1+1=", completion="2", tokens=(2,), answer=answer)


def test_parts_are_put_together_in_order():
    experiment = VARIANTS["text"]
    judging = judge(experiment, problems(experiment))
    lots = [[asked("2"), asked("3")], [asked("4")]]
    reward, scores = together([submitted(judging, lot)() for lot in lots])
    whole, of_all = submitted(judging, [record for lot in lots for record in lot])()
    assert scores == of_all and reward.outcome.shape == (3,)
    np.testing.assert_array_equal(reward.outcome, whole.outcome)
    np.testing.assert_array_equal(reward.valid, whole.valid)


def test_a_lot_without_a_score_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    experiment = VARIANTS["text"]
    judging = judge(experiment, problems(experiment))
    object.__setattr__(judging, "text_rewards", {"accuracy": (partial(broken), 1.0)})
    with pytest.raises(RunStopped, match=r"'accuracy' failed on every row, on the first with error: .*no score for 2"):
        check_scored(*submitted(judging, [asked("2")])())
