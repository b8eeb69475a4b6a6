"""Two guards against rewards that say nothing of the answers: a canary at the start, a limit on failures on the way."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from grpo_jax.lifeline import Exit, RunStopped
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import Record, Score, Scores, TextRewards, score

if TYPE_CHECKING:
    from grpo_jax.types import Reward

FAILED = ("timeout", "error")
_SHOWN = 300


def check_canary(
    scorer: Pool | TextRewards,
    gold: Sequence[Record],
    junk: Sequence[Record],
    *,
    component: str = "accuracy",
    best: float = 1.0,
    worst: float = 0.0,
) -> None:
    """Check that completions known to be right score `best` and those known to be wrong `worst`.

    No reward may fail on any of them: a wrong completion is a score, not an error.

    Args:
      scorer: a pool of rewards, or the rewards themselves.
      gold: records whose completion is right.
      junk: records whose completion is wrong.
      component: the reward that has to tell the two apart.

    Raises:
      ValueError: it does not; the text holds the record.
    """
    scores_of: Callable[[Sequence[Record]], tuple[Reward, Scores]]
    if isinstance(scorer, Pool):
        rewards, scores_of = scorer.rewards, scorer.score
    else:
        rewards, scores_of = scorer, lambda records: score(records, scorer)
    if component not in rewards:
        raise ValueError(f"component: got {component!r}, allowed are {sorted(rewards)}: name the reward that tells")
    records = [*gold, *junk]
    _, scores = scores_of(records)
    for row, record in enumerate(records):
        kind, wanted = ("right", best) if row < len(gold) else ("wrong", worst)
        failure = failed(scores, row)
        if failure is not None:
            name, what = failure
            raise ValueError(
                f"text_rewards[{name!r}]: got {what.status} ({what.detail}) on a {kind} completion before the run"
                f" began; allowed is a score of every completion: correct the reward or its settings\n{show(record)}"
            )
        got = scores[component][row]
        if got.value != wanted:
            why = f" ({got.detail})" if got.detail else ""
            raise ValueError(
                f"text_rewards[{component!r}]: got {got.value:g} for a {kind} completion{why}, allowed is {wanted:g}:"
                f" correct the reward, its settings or the answers of the data\n{show(record)}"
            )


class FailureLimit:
    """Stops a run whose rewards fail on more than `share` of the last `window` completions.

    A failed completion is one on which any reward has the status "timeout" or "error"; it is no part of any group.
    """

    def __init__(self, *, share: float = 0.2, window: int = 1024) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: got {share}, allowed 0 to 1, the part of the completions that may fail")
        if window < 1:
            raise ValueError(f"window: got {window}, allowed >= 1: the number of completions to look back on")
        self.share, self.window = share, window
        self._last: deque[bool] = deque(maxlen=window)

    def check(self, records: Sequence[Record], scores: Scores) -> None:
        """Take note of one step. Raises RunStopped with the code for bad rewards, and an example, above the limit."""
        failures = [failed(scores, row) for row in range(len(records))]
        self._last.extend(failure is not None for failure in failures)
        count = sum(self._last)
        if count <= self.share * self.window:
            return
        row = next(row for row, failure in enumerate(failures) if failure is not None)
        name, example = failures[row] or ("", Score(0.0))
        raise RunStopped(
            Exit.DATA,
            f"The text rewards failed on {count} of the last {len(self._last)} completions; allowed are"
            f" {self.share * self.window:g} of {self.window}. For instance {name!r} ended with {example.status}:"
            f" {example.detail}\n{show(records[row])}\nCorrect the reward, its settings or the data, or allow more.",
        )


def failed(scores: Mapping[str, Sequence[Score]], row: int) -> tuple[str, Score] | None:
    """The first reward by name that could not score `row`, and what it left; None where all did."""
    return next(((name, column[row]) for name, column in scores.items() if column[row].status in FAILED), None)


def show(record: Record) -> str:
    """`record` in three lines, shortened, without control characters."""
    parts = {"prompt": record.prompt, "completion": record.completion, "answer": record.answer}
    return "\n".join(f"  {name:10} {text[:_SHOWN]!r}{' ...' * (len(text) > _SHOWN)}" for name, text in parts.items())
