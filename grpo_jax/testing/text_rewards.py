"""The laws of text rewards, on a few records."""

import copy
import dataclasses
from collections.abc import Sequence

from grpo_jax.rewards.guards import show
from grpo_jax.rewards.pool import locate
from grpo_jax.rewards.text import Record, Score, TextReward, judge

RECORDS = (
    Record("2*4=<think>", "8</think><answer>8</answer>", (8, 1, 2, 8, 3, 4), "8", {"category": "times"}),
    Record("2*4=<think>", "6</think><answer>6</answer>", (6, 1, 2, 6, 3, 4), "8", {"category": "times"}),
    Record("9-2=<think>", "7</think><answer>7", (7, 1, 2, 7), "7", {"category": "minus"}, stopped=False),
)
"""A right completion, a wrong one, and one that was cut off."""
ODD_COMPLETIONS = (
    "",
    " \n",
    "<answer>",
    "<answer></answer>",
    "</answer><answer>",
    "é\u2212\U0001f600",
    "\x00\x1b[31m",
    "9" * 5000,
)
"""What a policy may well write, and what a reward has to have a score for."""


def check_reward(reward: TextReward, records: Sequence[Record] = RECORDS) -> None:
    """Check that a text reward obeys the laws on which worker processes, restarts and replays rely.

    It gives a score to every completion (those of `records`, and odd ones in their place), the same one every time and
    in whatever order, does not change the record, and can be found by name from another process.

    Args:
        reward: ``(Record) -> float | Score``, its settings bound with `functools.partial`.
        records: some of the task; the metadata that the reward reads have to be there.

    Raises:
        AssertionError: a law is broken; the text says which, and what to do.
    """
    name = getattr(getattr(reward, "func", reward), "__name__", repr(reward))
    try:
        locate(reward, name=name)
    except ValueError as error:
        raise AssertionError(f"{name} cannot be found by a worker process: {error}") from None
    odd = [dataclasses.replace(records[0], completion=text, tokens=()) for text in ODD_COMPLETIONS] if records else []
    given = [*records, *odd]
    first = [_scored(reward, name, record) for record in given]
    again = [_scored(reward, name, record) for record in given]
    backwards = [_scored(reward, name, record) for record in reversed(given)][::-1]
    for record, one, two, other in zip(given, first, again, backwards, strict=True):
        assert one == two, (
            f"{name} gives {one} and then {two} for one record: a reward depends on the record alone, not on chance,"
            f" time or what it saw before\n{show(record)}"
        )
        assert one == other, (
            f"{name} gives {one}, and {other} in another order of the records: a reward keeps nothing between calls\n"
            f"{show(record)}"
        )


def _scored(reward: TextReward, name: str, record: Record) -> Score:
    """The score of a copy of `record`, which has to stay as it is."""
    copied = copy.deepcopy(record)
    score = judge(reward, copied)
    assert score.status in ("ok", "unparsable"), (
        f"{name} ends with {score.status} ({score.detail}): a reward gives every completion a finite number or a Score;"
        f" a wrong one is a 0, one that cannot be read Score(0.0, 'unparsable')\n{show(record)}"
    )
    assert copied == record, f"{name} changes the record: other rewards and the journal read it too\n{show(record)}"
    return score
