"""Held-out sets: the problems of several tasks as one batch, and the categories that they fall into."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from grpo_jax.data import Task
from grpo_jax.data.tasks import numpy_prompts
from grpo_jax.lifeline import BadData
from grpo_jax.types import Prompts

CATEGORIES = 64
"""Categories that a set may have: more are hardly meant as such, and each has a dozen metrics."""


@dataclass(frozen=True)
class Questions:
    """A held-out set: its problems, whose they are and of which category each is (None: of none)."""

    task: Task
    prompts: Prompts
    labels: tuple[str | None, ...]

    def first(self, count: int | None) -> "Questions":
        """The first `count` problems; None for all."""
        return Questions(self.task, jax.tree.map(lambda x: x[:count], self.prompts), self.labels[:count])


def together(sets: Mapping[str, tuple[Task, Prompts]], category: str | None) -> dict[str, Questions]:
    """Every set by name, with prompts of one width and one structure, and the categories that the key `category` names.

    The labels of prompts are those of the first set; the problems of the others have none (-1).

    Raises BadData for a category that cannot be part of the name of a metric, and ValueError where there are too many.
    """
    width = max(task.prompt_width for task, _ in sets.values())
    first = next(iter(sets))
    known = sets[first][1].label
    made = {}
    for name, (task, prompts) in sets.items():
        # Labels mean what the task that gave them says. Groupings and rewards on tokens know those of the first.
        none = np.full(prompts.length.shape[0], -1)
        label = known if name == first else dict.fromkeys(known, none)
        wide = _widened(prompts, width, task.tokenizer.pad, label)
        made[name] = Questions(task, wide, _labels(name, task, prompts, category))
    return made


def further_sets(tasks: Mapping[str, Task], *, count: int | None) -> dict[str, tuple[Task, Prompts]]:
    """The problems that each of `tasks` holds out, `count` or all where there are fewer. ValueError names the set."""
    found = {}
    for name, task in tasks.items():
        try:
            found[name] = (task, _problems(task, count))
        except ValueError as error:
            kind = BadData if isinstance(error, BadData) else ValueError
            raise kind(f"heldout.{name}: {error}") from None
    return found


def _problems(task: Task, count: int | None) -> Prompts:
    try:
        return task.heldout(count)
    except ValueError as error:
        try:
            everything = task.heldout(None)
        except ValueError:
            raise error from None
        if count is None or everything.length.shape[0] >= count:
            raise
        return everything


def _labels(name: str, task: Task, prompts: Prompts, category: str | None) -> tuple[str | None, ...]:
    if category is None:
        return (None,) * prompts.length.shape[0]
    known = [row.get(category) for row in task.metadata(prompts)]
    for index, value in enumerate(known):
        _check_category(value, category, f"{name}: {task.prompt_text(prompts, index)!r:.120}")
    labels = tuple(None if value is None else str(value) for value in known)
    kinds = {label for label in labels if label is not None}
    if len(kinds) > CATEGORIES:
        raise ValueError(
            f"evaluation.category: got {category!r}, which has {len(kinds)} values in the set {name}, allowed up to"
            f" {CATEGORIES}: name a key with fewer, or set evaluation.category=None"
        )
    return labels


def _check_category(value: object, key: str, problem: str) -> None:
    """Raise a BadData for a category that cannot be part of the name of a metric."""
    plain = value is None or (isinstance(value, str | int) and not isinstance(value, bool))
    text = str(value)
    if not plain or text != text.strip() or not re.fullmatch(r"[\w. -]{1,60}", text):
        raise BadData(
            f"heldout set {problem} has the {key} {value!r:.80}, allowed are 1 to 60 letters, digits, spaces and"
            " '.', '_', '-', with none of the spaces at an end: correct it, or set evaluation.category=None"
        )


def _widened(prompts: Prompts, width: int, pad: int, label: Mapping[str, Any]) -> Prompts:
    """`prompts` with these labels and `width` columns, the new ones filled with `pad`."""
    tokens = np.asarray(prompts.tokens)
    missing = width - tokens.shape[1]
    if missing:
        tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=pad)
    return numpy_prompts(tokens, prompts.length, prompts.draw, prompts.row, label)
