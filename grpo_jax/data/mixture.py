"""A mixture: several tasks with one tokenizer, each draw from one of them in given shares.

Which part draw k takes is hashed from (seed, k); it is then that part's own draw number k. So the mixture is a pure
function of (seed, k) as its parts are, and what one part gives does not depend on the others but through their shares.
A part whose epochs are permutations (`Jsonl`) is met at the draws that fall to it: an epoch of it brings some lines
twice and some not at all.

Parts are numbered in the order of their names. ``Prompts.row`` is ``row of the part * parts + number of the part``, so
that a prompt says by itself which part knows its answer; ``Prompts.label["category"]`` is the number, and metadata have
the name under "category" (in the place of a key of that name that a part may have).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from grpo_jax.data.counter import hashed, unit
from grpo_jax.data.tasks import Answering, Demonstrations, Task, check_draws, numpy_prompts
from grpo_jax.objectives import describe
from grpo_jax.rewards import tokens
from grpo_jax.rewards.text import TextRewards
from grpo_jax.text import Tokenizer
from grpo_jax.types import Prompts

LABEL = "category"
_STREAM = -1  # of the choice of a part; apart from what parts hash, which begins with the number of a draw


@dataclass(frozen=True)
class Mixture:
    """Settings of the task. A part is any task with the tokenizer of the others and without labels of its own."""

    parts: Mapping[str, Task]
    """Name -> task; two or more."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Name -> share of the draws, above 0; they sum to 1. Empty: equal shares."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts in the order of their numbers."""
        return tuple(sorted(self.parts))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The parts by number."""
        return tuple(self.parts[name] for name in self.names)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.tasks[0].tokenizer

    @property
    def digest(self) -> str:
        """The digests of the parts that have one, by name."""
        return " ".join(f"{name}:{self.parts[name].digest}" for name in self.names if self.parts[name].digest)

    @property
    def prompt_width(self) -> int:
        return max(task.prompt_width for task in self.tasks)

    @property
    def completion_width(self) -> int:
        return max(task.completion_width for task in self.tasks)

    def draw(self, seed: int, draws: np.ndarray, split: str = "train") -> Prompts:
        """Draw k of the part that (seed, k) names, in either split."""
        numbers = check_draws(draws, split)
        return self._drawn(seed, numbers, self._part(seed, numbers), split)

    def class_shares(self) -> np.ndarray:
        """f64[C]: a class is a part, with its share of the draws."""
        return self._shares / np.cumsum(self._shares)[-1]

    def class_of(self, row: np.ndarray) -> np.ndarray:
        """i64[P], the number of the part that each row is of."""
        return row.astype(np.int64) % len(self.parts)

    def draw_class(self, seed: int, draws: np.ndarray, classes: np.ndarray) -> Prompts:
        """Draw k of the part that is asked for."""
        return self._drawn(seed, check_draws(draws, "train"), np.asarray(classes), "train")

    def drawable(self, seed: int, draws: np.ndarray) -> Prompts:
        """These draws of every part."""
        numbers = check_draws(draws, "train")
        return self._joined([task.draw(seed, numbers) for task in self.tasks])

    def heldout(self, count: int | None, name: str = "heldout") -> Prompts:
        """`count` held-out problems, of every part its share of them; None: all, where every part has finitely many.

        Parts come in turns, so that a small evaluation, which takes the first ones, meets all of them. A problem that
        several parts hold out is taken from the first of them. Numbers of draws are made distinct over the parts.
        """
        if count is not None and count < 1:
            raise ValueError(f"count: got {count}; allowed is 1 or more")
        counts = [None] * len(self.parts) if count is None else _shared(count, self._shares)
        seen: set[bytes] = set()
        pieces = [_distinct(task, wanted, name, seen) for task, wanted in zip(self.tasks, counts, strict=True)]
        turns = [(np.arange(len(piece.row)) + 0.5) / max(len(piece.row), 1) for piece in pieces]
        many = len(self.parts)
        pieces = [p.replace(draw=np.asarray(p.draw) * many + number) for number, p in enumerate(pieces)]
        return _ordered(self._joined(pieces), np.concatenate(turns))

    def is_heldout(self, prompts: Prompts) -> np.ndarray:
        """bool[P], what the part of each prompt says."""
        found = np.zeros(len(prompts.row), bool)
        for task, at, own in self._apart(prompts):
            found[at] = task.is_heldout(own)
        return found

    def demonstrations(self, seed: int, draws: np.ndarray) -> Demonstrations:
        """Demonstration k of the part that (seed, k) names."""
        numbers = check_draws(draws, "train")
        places = self._places(self._part(seed, numbers))
        shown = [task.demonstrations(seed, numbers[at]) for task, at in zip(self.tasks, places, strict=True)]
        order, pad = np.concatenate(places), self.tokenizer.pad
        rows = np.concatenate([_widened(piece.tokens, self.completion_width, pad) for piece in shown])
        length = np.concatenate([piece.length for piece in shown])
        back = np.argsort(order)
        return Demonstrations(
            _ordered(self._joined([piece.prompts for piece in shown]), order), rows[back], length[back]
        )

    def read_prompt(self, text: str) -> tuple[list[int], int | None]:
        """What the first part says that can read `text`; one that knows the answer is preferred."""
        found, complaints = [], []
        for number, (name, task) in enumerate(zip(self.names, self.tasks, strict=True)):
            try:
                ids, row = task.read_prompt(text)
            except ValueError as error:
                complaints.append(f"{name}: {error}")
                continue
            found.append((ids, None if row is None else row * len(self.parts) + number))
        if not found:
            raise ValueError(f"prompt: no part can read it. {'; '.join(complaints)}")
        return next((both for both in found if both[1] is not None), found[0])

    def prompt_text(self, prompts: Prompts, index: int) -> str:
        length = int(prompts.length[index])
        return self.tokenizer.decode(np.asarray(prompts.tokens)[index, :length].tolist())

    def answers(self, prompts: Prompts) -> list[str]:
        found = [""] * len(prompts.row)
        for task, at, own in self._apart(prompts):
            for index, answer in zip(at.tolist(), task.answers(own), strict=True):
                found[index] = answer
        return found

    def gold(self, prompts: Prompts) -> list[list[int] | None]:
        """Token ids of a right completion of every prompt, where its part gives one."""
        found: list[list[int] | None] = [None] * len(prompts.row)
        for task, at, own in self._apart(prompts):
            if isinstance(task, Answering):
                for index, ids in zip(at.tolist(), task.gold(own), strict=True):
                    found[index] = ids
        return found

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        """What the part of each prompt says, and the name of the part as "category"."""
        found: list[Mapping[str, object]] = [{}] * len(prompts.row)
        for name, (task, at, own) in zip(self.names, self._apart(prompts), strict=True):
            for index, known in zip(at.tolist(), task.metadata(own), strict=True):
                found[index] = {**known, LABEL: name}
        return found

    def reward(self, **settings: Any) -> partial:
        """The token reward of the parts, each made with `settings`: one function if they are equal, else by part.

        Raises ValueError where a part has none.
        """
        without = [name for name in self.names if not hasattr(self.parts[name], "reward")]
        if without:
            raise ValueError(
                f"Mixture.parts: {without[0]!r} has no reward on token ids; allowed are parts that all have one; leave"
                " Experiment.reward out, so that text is scored"
            )
        tasks: Any = self.tasks
        rewards = tuple(task.reward(**settings) for task in tasks)
        if len({describe(reward) for reward in rewards}) == 1:
            return rewards[0]
        return partial(tokens.by_part, name=LABEL, rewards=rewards)

    def text_rewards(self, **settings: Any) -> TextRewards:
        """The text rewards of the parts, each made with `settings`; they have to be equal."""
        tasks: Any = self.tasks
        rewards = [task.text_rewards(**settings) for task in tasks]
        if len({describe(reward) for reward in rewards}) > 1:
            raise ValueError(
                f"Mixture.parts: the text rewards of {', '.join(self.names)} differ; allowed are equal ones; write one"
                f" that reads record.metadata[{LABEL!r}]"
            )
        return rewards[0]

    @property
    def _shares(self) -> np.ndarray:
        equal = 1 / len(self.parts)
        return np.array([self.shares.get(name, equal) for name in self.names])

    def _part(self, seed: int, numbers: np.ndarray) -> np.ndarray:
        """i64[n], the number of the part that each draw takes."""
        bounds = np.cumsum(self._shares)[:-1]
        return np.searchsorted(bounds, unit(hashed(_STREAM, seed, numbers)), side="right")

    def _places(self, part: np.ndarray) -> list[np.ndarray]:
        """Of every part the places in `part` that name it."""
        return [np.flatnonzero(part == number) for number in range(len(self.parts))]

    def _drawn(self, seed: int, numbers: np.ndarray, part: np.ndarray, split: str) -> Prompts:
        """Draw ``numbers[i]`` of part ``part[i]``, in order."""
        places = self._places(part)
        pieces = [task.draw(seed, numbers[at], split) for task, at in zip(self.tasks, places, strict=True)]
        return _ordered(self._joined(pieces), np.concatenate(places))

    def _joined(self, pieces: Sequence[Prompts]) -> Prompts:
        """The prompts of every part, by number, as prompts of the mixture."""
        many, width, pad = len(self.parts), self.prompt_width, self.tokenizer.pad
        rows = [np.asarray(piece.row, np.int64) * many + number for number, piece in enumerate(pieces)]
        row, draw = np.concatenate(rows), np.concatenate([piece.draw for piece in pieces])
        if row.size and row.max() >= 2**31:
            raise ValueError(
                f"draws: got one whose row is {row.max() // many}; allowed are rows below {2**31 // many} in a mixture"
                f" of {many} parts; make fewer draws"
            )
        label = np.concatenate([np.full(len(piece.row), number) for number, piece in enumerate(pieces)])
        ids = np.concatenate([_widened(np.asarray(piece.tokens), width, pad) for piece in pieces])
        length = np.concatenate([piece.length for piece in pieces])
        return numpy_prompts(ids, length, draw, row, {LABEL: label})

    def _apart(self, prompts: Prompts) -> Iterator[tuple[Task, np.ndarray, Prompts]]:
        """Of every part: the task, its places in `prompts`, and the prompts there as its own."""
        row, ids = np.asarray(prompts.row), np.asarray(prompts.tokens)
        length, draw = np.asarray(prompts.length), np.asarray(prompts.draw)
        for number, task in enumerate(self.tasks):
            at = np.flatnonzero(row % len(self.parts) == number)
            own = ids[at, : task.prompt_width]
            yield task, at, numpy_prompts(own, length[at], draw[at], row[at] // len(self.parts))


def _ordered(prompts: Prompts, key: np.ndarray) -> Prompts:
    """`prompts` sorted by `key`, equal ones as they stand."""
    order = np.argsort(key, kind="stable")
    label = {name: np.asarray(codes)[order] for name, codes in prompts.label.items()}
    tokens, length, draw, row = (
        np.asarray(leaf)[order] for leaf in (prompts.tokens, prompts.length, prompts.draw, prompts.row)
    )
    return numpy_prompts(tokens, length, draw, row, label)


def _widened(rows: np.ndarray, width: int, pad: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=pad)


def _distinct(task: Task, count: int | None, name: str, seen: set[bytes]) -> Prompts:
    """`count` held-out problems of `task` (None: all) that are not among `seen`, which they join."""
    wanted, asked = count, count
    while True:
        found = task.heldout(asked, name) if asked != 0 else task.draw(0, np.arange(0))
        tokens, length = np.asarray(found.tokens), np.asarray(found.length)
        keys = [tokens[index, : length[index]].astype(np.int32).tobytes() for index in range(len(length))]
        fresh = [index for index, key in enumerate(keys) if key not in seen]
        if wanted is None or asked is None or len(fresh) >= wanted:
            break
        asked += wanted - len(fresh)
    chosen = np.array(fresh[:wanted], np.int64)
    seen.update(keys[index] for index in chosen)
    return numpy_prompts(tokens[chosen], length[chosen], np.asarray(found.draw)[chosen], np.asarray(found.row)[chosen])


def _shared(count: int, shares: np.ndarray) -> list[int]:
    """Whole numbers near ``count * shares`` that sum to `count`: the largest remainders get what is left."""
    exact = count * shares
    counts = np.floor(exact + 1e-9).astype(np.int64)
    left = np.argsort(counts - exact, kind="stable")[: count - int(counts.sum())]
    counts[left] += 1
    return counts.tolist()


def _check(mixture: Mixture) -> None:
    names, shares = mixture.names, mixture.shares
    if len(names) < 2 or not all(names):
        raise ValueError(f"Mixture.parts: got {list(names)}; allowed are two or more tasks with names; add one")
    if shares and (set(shares) != set(names) or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9):
        raise ValueError(
            f"Mixture.shares: got {dict(shares)}; allowed is a share above 0 for each of {', '.join(names)}, 1 in all,"
            " or none for equal shares; change them"
        )
    for name, task in mixture.parts.items():
        if task.tokenizer != mixture.tokenizer:
            raise ValueError(
                f"Mixture.parts: {name!r} has another tokenizer than {names[0]!r}; allowed is one for all; build the"
                " parts with the same"
            )
        if task.draw(0, np.arange(1)).label:
            raise ValueError(
                f"Mixture.parts: {name!r} has labels of its own; allowed are parts without, because the mixture labels"
                " every prompt by its part; take them away"
            )
