"""Rewards on text: ordinary Python functions of a `Record`, with a status beside every value.

A text reward is ``reward(record, **settings) -> float | Score``. A wrong completion is a 0; a reward that could not do
its work (it raised, ran out of time, gave something that is no finite number) is an *error*, its row is not valid and
counts nowhere. `accuracy` and `r1_format` are the twins of the functions in `grpo_jax.rewards.tokens`, written from the
definition at the head of that module on strings alone; `compare_twins` stops at the first row on which the two differ.

Importing this module does not import JAX: worker processes (`grpo_jax.rewards.pool`) start in a moment, with little
memory and without an accelerator.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax.rewards import answers
from grpo_jax.rewards.choices import labelled, parse_choice
from grpo_jax.rewards.numbers import parse_number

if TYPE_CHECKING:
    from grpo_jax.types import Reward

STATUSES = ("ok", "timeout", "error", "unparsable")
MATCHES = ("exact", "numeric", "choice", "math")
STATED = "stated"


@dataclass(frozen=True)
class Record:
    """One row as text."""

    prompt: str
    completion: str  # decoded without the stop token
    tokens: Sequence[int]  # of the completion, the stop token included
    answer: str  # the right one
    metadata: Mapping[str, object] = field(default_factory=dict)
    stopped: bool = True  # False where the completion was cut off at the width


@dataclass(frozen=True)
class Score:
    """`value` counts where `status` is "ok" or "unparsable" (a completion that cannot be read scores, usually 0)."""

    value: float
    status: str = "ok"
    detail: str = ""


TextReward = Callable[..., float | Score]
TextRewards = Mapping[str, tuple[TextReward, float]]
"""Name -> (reward, weight)."""
Scores = Mapping[str, tuple[Score, ...]]
"""Name -> the score of every row."""


class DisagreementError(ValueError):
    """Two implementations of one reward differ on a row."""


def find_answer(record: Record, *, opening: str = "<answer>", closing: str = "</answer>") -> str | None:
    """What follows the last `opening`, up to the first `closing` behind it, or None where there is no answer.

    Where `closing` is missing the answer ends with the completion if that stopped by itself; cut off, it has none.
    """
    start = record.completion.rfind(opening)
    if start < 0:
        return None
    content = record.completion[start + len(opening) :]
    answer, closed, _ = content.partition(closing)
    return answer if closed or record.stopped else None


def find_result(record: Record, *, opening: str = "<answer>", closing: str = "</answer>") -> str | None:
    r"""The answer between the tags, or where there are none what the last ``\boxed{...}`` holds, after the thought.

    Boxes inside a thought that was closed with ``</think>`` are no answer; a box that was not closed is none either.
    """
    found = find_answer(record, opening=opening, closing=closing)
    return found if found is not None else answers.boxed(record.completion.rpartition("</think>")[2])


def accuracy(
    record: Record,
    *,
    match: str = "exact",
    tolerance: float = 0.0,
    options: str = "options",
    opening: str = "<answer>",
    closing: str = "</answer>",
) -> Score:
    r"""1 where the answer of the completion is right, else 0; "unparsable" where there is none to be read.

    ``match="exact"`` compares strings without surrounding white space. ``"numeric"`` compares numbers exactly (``1/2``,
    ``0.50`` and ``50%`` are equal), or up to ``tolerance * max(1, |right|)``. ``"choice"`` compares the options that
    the answers name (`grpo_jax.rewards.choices`), by letter, or by text too where the metadata have the key `options`;
    an answer that names none, or several, is "unparsable". ``"math"`` compares what mathematical answers say
    (`grpo_jax.rewards.answers`), numbers in them up to the tolerance, and takes a ``\boxed{...}`` where the completion
    has no tags. ``"stated"`` is what the metadata say under "match", for files of several kinds, and "exact" where they
    say nothing. A right answer that cannot be read so is a ValueError: the dataset is at fault, not the model.
    """
    stated = record.metadata.get("match", "exact") if match == STATED else match
    if stated not in MATCHES:
        whose = "match" if stated is match else 'match, stated by the key "match" of the line'
        raise ValueError(f"{whose}: got {stated!r}; allowed are {(*MATCHES, STATED) if stated is match else MATCHES}")
    read = _reader(stated, record.metadata.get(options))
    right = read(record.answer)
    if right is None:
        kind = {"numeric": "a number", "choice": "a letter or the text of one option", "math": "an answer to read"}[
            stated
        ]
        raise ValueError(f"answer: {record.answer!r} is not {kind}; use match='exact' for this dataset")
    found = (find_result if stated == "math" else find_answer)(record, opening=opening, closing=closing)
    if found is None or not found.strip():
        return Score(0.0, "unparsable", "no answer" if found is None else "empty answer")
    given = read(found)
    if given is None:
        what = {"numeric": "a number", "choice": "one option", "math": "an answer that can be read"}[stated]
        return Score(0.0, "unparsable", f"not {what}: {found[:80]!r}")
    if given == right:
        return Score(1.0)
    if stated == "math":
        return Score(float(answers.same(given, right, tolerance=tolerance)))
    if isinstance(given, Fraction) and isinstance(right, Fraction) and tolerance > 0:
        return Score(float(abs(given - right) <= tolerance * max(1, abs(right))))
    return Score(0.0)


def _reader(match: str, options: object) -> Callable[[str], Any]:
    """What makes of an answer something to compare, or None where it cannot be read."""
    if match == "math":
        return answers.parse_answer
    if match == "numeric":
        return parse_number
    if match == "choice":
        return partial(parse_choice, options=None if options is None else labelled(options))
    return str.strip


def r1_format(record: Record, *, eos: str = "<eos>", spaces: bool = False) -> float:
    """1 for ``... </think><answer> x </answer>`` and then the stop token, each tag once, x not blank; else 0.

    `spaces` allows white space between the tags and behind them, and a ``<think>`` at the very beginning: what a model
    writes whose tags are text and whose prompt does not open the thought.
    """
    completion = record.completion
    if spaces:
        completion = completion.strip().removeprefix("<think>")
        thought, think_close, rest = completion.partition("</think>")
        completion = thought + think_close + rest.lstrip()
    thought, think_close, rest = completion.partition("</think>")
    if not (record.stopped and think_close and rest.startswith("<answer>") and rest.endswith("</answer>")):
        return 0.0
    answer = rest[len("<answer>") : -len("</answer>")]
    tags = ("<think>", "</think>", "<answer>", "</answer>", eos)
    return float(bool(answer.strip()) and not any(tag in thought or tag in answer for tag in tags))


def score(records: Sequence[Record], rewards: TextRewards) -> tuple["Reward", Scores]:
    """Apply every reward to every record: a `Reward` of numpy arrays, and the scores with their statuses.

    A row is valid where no reward of it has status "error" or "timeout". The value of a failed reward is stored as 0,
    which nothing reads: the row is not valid.
    """
    scores = {name: tuple(judge(reward, record) for record in records) for name, (reward, _) in rewards.items()}
    return weigh(scores, rewards, len(records)), scores


def weigh(scores: Scores, rewards: TextRewards, rows: int) -> "Reward":
    """The `Reward` that the `scores` of so many `rows` make: components by name, weighted sum, which rows count."""
    components: dict[str, Any] = {name: np.array([s.value for s in row], np.float32) for name, row in scores.items()}
    outcome: Any = np.zeros(rows, np.float32)
    valid: Any = np.ones(rows, bool)
    for name, (_, weight) in rewards.items():
        outcome = outcome + np.float32(weight) * components[name]
        valid &= np.array([s.status in ("ok", "unparsable") for s in scores[name]], bool)
    return import_module("grpo_jax.types").Reward(outcome=outcome, valid=valid, components=components)


def status_counts(scores: Scores) -> dict[str, int]:
    """Status -> how many scores have it, over all rewards and rows; every status is there."""
    found = [s.status for row in scores.values() for s in row]
    return {status: found.count(status) for status in STATUSES}


def compare_twins(token: "Reward", text: "Reward", records: Sequence[Record]) -> None:
    """Raise a DisagreementError unless both rewards, of the same rows, agree on every component, outcome and row.

    Components must be equal, outcomes equal up to float32 rounding of the weighted sum. The message holds the
    completion.
    """
    if set(token.components) != set(text.components):
        raise DisagreementError(
            f"token reward has components {sorted(token.components)}, text reward {sorted(text.components)}; they must"
            " be the same; give both rewards the same names"
        )
    pairs = {f"component {name!r}": (token.components[name], text.components[name]) for name in text.components}
    pairs["valid"] = (token.valid, text.valid)
    differ = {what: np.asarray(a) != np.asarray(b) for what, (a, b) in pairs.items()}
    pairs["outcome"] = (token.outcome, text.outcome)
    differ["outcome"] = ~np.isclose(np.asarray(token.outcome), np.asarray(text.outcome), rtol=1e-5, atol=1e-6)
    for what, rows in differ.items():
        if rows.any():
            n = int(np.argmax(rows))
            raise DisagreementError(
                f"{what} of row {n}: {float(pairs[what][0][n])} on tokens, {float(pairs[what][1][n])} on text"
                f" ({int(rows.sum())} of {len(rows)} rows differ)\n  prompt     {records[n].prompt!r}\n"
                f"  completion {records[n].completion!r}\n  stopped    {records[n].stopped}\n"
                f"  answer     {records[n].answer!r}\nOne of the two is wrong: compare them on this completion"
            )


def judge(reward: TextReward, record: Record) -> Score:
    """The score of one record; whatever a reward raises or returns instead of a number is a score with "error"."""
    try:
        got = reward(record)
        given = got if isinstance(got, Score) else Score(got)
        value = _number(given.value)
    except (Exception, SystemExit) as error:
        return Score(0.0, "error", _reason(error))
    if given.status not in STATUSES:
        return Score(0.0, "error", f"status {given.status!r} is none of {STATUSES}")
    if given.status in ("timeout", "error"):
        return Score(0.0, given.status, given.detail)
    if value is None:
        return Score(0.0, "error", f"{type(given.value).__name__} is not one finite number that float32 can hold")
    return Score(value, given.status, given.detail)


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # an exception whose text cannot be made is still only an exception
        return type(error).__name__


def _number(value: object) -> float | None:
    """`value` as a float, or None unless it is one finite number that float32 can hold (0-d arrays count as one)."""
    if not isinstance(value, bool | int | float | np.generic) and getattr(value, "shape", None) == ():
        value = np.asarray(value)[()]
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, bool | int | float):
        return None
    try:
        number = float(plain)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= float(np.finfo(np.float32).max) else None
