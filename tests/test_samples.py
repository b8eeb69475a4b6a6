"""Lines of the journal of samples hold what was asked, sampled and earned, row by row."""

import json
from typing import Any

import numpy as np

from grpo_jax.journal import encode
from grpo_jax.rewards.text import Record, Score
from grpo_jax.samples import heldout_records, rollout_records
from grpo_jax.types import Batch, Reward, Rollouts
from tests.system.small_run import DATA

POSITION = {"phase": "grpo", "step": 3}
TOKENS: Any = np.array([[1, 2, DATA.tokenizer.eos, 9], [3, 4, 5, 6]], np.int32)


def array(values: object, dtype: type) -> Any:
    """An array on the host, as `jax.device_get` leaves them in the records."""
    return np.array(values, dtype)


def batch(group: object) -> Batch:
    """Two rows of one prompt, draw 17; the second was cut off and could not be scored."""
    mask = array([[True, True, True, False], [True, True, True, True]], bool)
    valid = array([True, False], bool)
    nothing = array(np.zeros((2, 4)), np.float32)
    rollouts = Rollouts(
        prompts=DATA.draw(0, np.array([17])),
        prompt=array([0, 0], np.int32),
        sample=array([0, 1], np.int32),
        tokens=TOKENS,
        length=array([3, 4], np.int32),
        stopped=array([True, False], bool),
        mask=mask,
        logp=nothing,
        logp_full=nothing,
        version=array([0, 0], np.int32),
    )
    reward = Reward(
        outcome=array([1.25, 0.0], np.float32),
        valid=valid,
        components={"accuracy": array([1.0, 0.0], np.float32)},
    )
    return Batch(
        rollouts=rollouts,
        mask=mask & valid[:, None],
        weight={},
        # Nothing counts behind the end of a row, nor in a row without a score.
        advantage=array([[0.5, 0.5, 0.5, 99.0], [7.0, 7.0, 7.0, 7.0]], np.float32),
        logp_old=nothing,
        logp_behavior=nothing,
        group=array(group, np.int32),
        reward=reward,
    )


def test_a_row_of_a_step_is_a_line():
    scores = {"accuracy": (Score(1.0), Score(0.0, "error", "it raised"))}
    first, second = rollout_records(batch([0, -1]), DATA, POSITION, scores)
    assert first == {
        "phase": "grpo",
        "step": 3,
        "set": "train",
        "draw": 17,
        "sample": 0,
        "prompt": DATA.prompt_text(DATA.draw(0, np.array([17])), 0),
        "completion": "12",
        "tokens": [1, 2, DATA.tokenizer.eos],
        "length": 3,
        "stopped": True,
        "components": {"accuracy": 1.0},
        "statuses": {"accuracy": "ok"},
        "valid": True,
        "reward": 1.25,
        "advantage": 0.5,
        "group": 0,
    }
    assert (second["tokens"], second["completion"], second["stopped"]) == ([3, 4, 5, 6], "3456", False)
    assert (second["statuses"], second["valid"]) == ({"accuracy": "error"}, False)
    assert (second["group"], second["advantage"]) == (-1, 0.0)


def test_labels_of_several_levels_are_a_list_a_row():
    rows = list(rollout_records(batch([[0, 0], [4, -1]]), DATA, POSITION))
    assert [row["group"] for row in rows] == [[0, 4], [0, -1]]
    assert rows[0]["statuses"] == {}


def test_lines_are_json_of_plain_values():
    for row in rollout_records(batch([0, 1]), DATA, POSITION):
        assert json.loads(encode(row)) == row


def test_a_completion_of_an_evaluation_is_a_line():
    text = Record(prompt="1+1=", completion="2", tokens=(2, 13), answer="2", stopped=True)
    shown = {"heldout": [(text, {"accuracy": 1.0})] * 2, "heldout/greedy": [(text, {"accuracy": 1.0})]}
    rows = list(heldout_records(shown, POSITION))
    assert [(row["set"], row["number"]) for row in rows] == [("heldout", 0), ("heldout", 1), ("heldout/greedy", 0)]
    assert rows[0] == {
        "phase": "grpo",
        "step": 3,
        "set": "heldout",
        "number": 0,
        "prompt": "1+1=",
        "completion": "2",
        "tokens": [2, 13],
        "length": 2,
        "stopped": True,
        "components": {"accuracy": 1.0},
        "answer": "2",
    }
