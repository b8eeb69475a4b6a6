"""Which completions of a run are worth reading: the worst, the best, those in trouble, those verifiers differ on.

Records are lines of `samples.jsonl`. Nothing here imports jax.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from grpo_jax.report.words import finite

Row = Mapping[str, Any]

FILTERS = ("worst", "best", "truncated", "invalid", "disagreement")
RIGHT = 0.5
"""A verifier says "right" above this, as in the evaluation."""
SILENT = frozenset({"timeout", "error"})
"""With such a status a verifier gave no verdict, whatever number stands for it."""


def reward_of(row: Row) -> float:
    """The reward of a record, or the sum of its components; minus infinity, the least of all, without a score."""
    worth = finite(row["reward"]) if "reward" in row else math.fsum(filter(math.isfinite, _scores(row).values()))
    return worth if math.isfinite(worth) and row.get("valid", True) else -math.inf


def _scores(row: Row) -> dict[str, float]:
    return {name: finite(value) for name, value in _components(row).items()}


def _components(row: Row) -> Mapping[str, Any]:
    components = row.get("components")
    return components if isinstance(components, Mapping) else {}


def verdicts(row: Row, verifiers: Sequence[str]) -> dict[str, bool]:
    """Verifier -> whether it called the completion right; those that gave no verdict are left out."""
    scores, statuses = _scores(row), row.get("statuses")
    states = statuses if isinstance(statuses, Mapping) else {}
    spoke = [name for name in verifiers if math.isfinite(scores.get(name, math.nan)) and states.get(name) not in SILENT]
    return {name: scores[name] > RIGHT for name in spoke}


def disagree(row: Row, verifiers: Sequence[str]) -> bool:
    """Whether two of `verifiers` gave a verdict on the row and these differ."""
    return len(set(verdicts(row, verifiers).values())) == 2


class Judges:
    """Finds the components of rows that judge correctness: name begins with "accuracy", values are 0 or 1 only."""

    def __init__(self) -> None:
        self._only: dict[str, bool] = {}  # name -> whether all its values were 0 or 1
        self._named: dict[str, None] = {}  # every component, in the order of its first appearance

    def see(self, row: Row) -> None:
        """Take in one record."""
        for name, value in _components(row).items():
            self._named.setdefault(name)
            if value is not None and name.startswith("accuracy"):
                self._only[name] = self._only.get(name, True) and value in (0, 1)

    def known(self) -> tuple[str, ...]:
        """Names of those components, in the order of their first appearance."""
        return tuple(name for name, only in self._only.items() if only)

    def chosen(self, named: Sequence[str] | None) -> tuple[str, ...]:
        """The verifiers to compare: those `named`, or all that are known.

        Raises ValueError for fewer than two, and for a name that no record has.
        """
        allowed = f"two or more of the components {', '.join(self._named) or '(the run has none)'}"
        for name in named or ():
            if name not in self._named:
                raise ValueError(f"--verifiers: got {name!r}, allowed {allowed}: choose among these")
        verifiers = tuple(dict.fromkeys(named)) if named is not None else self.known()
        if len(verifiers) < 2:
            found = ", ".join(map(repr, verifiers)) or "none"
            raise ValueError(
                f"--verifiers: got {found}{'' if named is not None else ' (components called accuracy... of 0 and 1)'},"
                f" allowed {allowed}: verifiers disagree where there are two, name them with --verifiers A,B or add"
                " one to text_rewards"
            )
        return verifiers


def judges(rows: Iterable[Row], named: Sequence[str] | None = None) -> tuple[str, ...]:
    """The verifiers of `rows` to compare, see `Judges.chosen`."""
    found = Judges()
    for row in rows:
        found.see(row)
    return found.chosen(named)


def pick(rows: Sequence[Row], *, which: str, verifiers: Sequence[str] = ()) -> list[Row]:
    """Those of `rows` that the filter keeps: all by reward for worst and best, else the ones concerned, in order.

    Truncated completions did not stop by themselves; invalid ones could not be scored; on the last kind two of
    `verifiers` gave different verdicts. Rows without a score are neither among the best nor among the worst.
    """
    if which == "truncated":
        return [row for row in rows if not row.get("stopped", True)]
    if which == "invalid":
        return [row for row in rows if not row.get("valid", True)]
    if which == "disagreement":
        return [row for row in rows if disagree(row, verifiers)]
    return sorted((r for r in rows if r.get("valid", True)), key=reward_of, reverse=which == "best")


def kept(rows: Sequence[Row], *, most: int, verifiers: Sequence[str] = ()) -> list[Row]:
    """At most `most` of `rows`, in their order: in turn the next worst, best, truncated, invalid, contested and other.

    The others are `rows` from evenly spread places, so that what is usual is there too.
    """
    if len(rows) <= most:
        return list(rows)
    number = {id(row): n for n, row in enumerate(rows)}
    kinds = [[number[id(row)] for row in pick(rows, which=which, verifiers=verifiers)] for which in FILTERS]
    kinds.append([n * len(rows) // most for n in range(most)])
    order = dict.fromkeys(n for turn in zip_longest(*kinds) for n in turn if n is not None)
    return [rows[n] for n in sorted(list(order)[:most])]


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of `numbers` (at least 2), evenly spread, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]
