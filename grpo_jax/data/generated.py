"""What tasks share whose problems are computed from counters: the two classes, the held-out set, demonstrations.

A task says what the candidates of an attempt are. A problem belongs to the held-out class where the hash of its tokens
is a multiple of `HELDOUT_SHARE`; one that is not in the class of its split is drawn again, as often as it takes, so
that the two splits are disjoint for every seed. `Prompts.row` equals `Prompts.draw`: a generated problem has no line of
a file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from grpo_jax.data.counter import row_hash, text_hash
from grpo_jax.data.tasks import check_draws, numpy_prompts
from grpo_jax.rewards import tokens
from grpo_jax.text import CharacterTokenizer
from grpo_jax.types import Prompts

ARITHMETIC = CharacterTokenizer("0123456789+-*=")
"""The tokenizer of every task of numbers, so that they can be mixed; the id of a digit is its value."""
HELDOUT_SHARE = 16
"""One problem in this many is held out: those whose hash is a multiple of it."""
ATTEMPTS = 4096
"""Draws of a problem until one of its class comes; fields hashed beside the attempts are numbered from here."""
_CHUNK = 4096
_MOST = 1 << 20


class Generated(ABC):
    """A task whose draw k is the first candidate ``(seed, k, attempt)`` that is in the class of the split."""

    larger: ClassVar[str]
    """What makes the task larger, in words for an error."""

    @property
    @abstractmethod
    def tokenizer(self) -> CharacterTokenizer: ...

    @property
    @abstractmethod
    def prompt_width(self) -> int: ...

    @abstractmethod
    def candidates(self, seed: int, numbers: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
        """Problems of one attempt, of either class: tokens i32[n, prompt_width], lengths i32[n], and what else."""

    @property
    def digest(self) -> str:
        """Empty: there is no data beyond the settings."""
        return ""

    def draw(self, seed: int, draws: np.ndarray, split: str = "train") -> Prompts:
        """The problems of these draws; one outside the class of its split is drawn again, as often as it takes."""
        numbers = check_draws(draws, split)
        rows, length, *_ = self.problems(seed, numbers, split == "heldout")
        return numpy_prompts(rows, length, numbers, numbers)

    def heldout(self, count: int | None, name: str = "heldout") -> Prompts:
        """The first `count` distinct held-out problems in the stream that `name` seeds; `draw` says which draws."""
        if count is None or count < 1:
            raise ValueError(f"count: got {count}; allowed is 1 or more")
        if count > _MOST:
            raise ValueError(f"count: got {count}; allowed are 1 to {_MOST}; ask for fewer held-out problems")
        seed = text_hash(name)
        found: dict[bytes, int] = {}
        start = quiet_since = 0
        while len(found) < count:
            if start - quiet_since > 8 * len(found) + _CHUNK:
                raise ValueError(
                    f"count: got {count}; allowed are 1 to {len(found)}, all held-out problems of {self}; ask for"
                    f" fewer, or {self.larger}"
                )
            numbers = np.arange(start, start + min(_CHUNK, max(64, 2 * count)), dtype=np.int64)
            start = int(numbers[-1]) + 1
            before = len(found)
            for number, row in zip(numbers, self.problems(seed, numbers, True)[0], strict=True):
                found.setdefault(row.tobytes(), int(number))
            quiet_since = start if len(found) > before else quiet_since
        chosen = np.fromiter(found.values(), np.int64, len(found))[:count]
        return self.draw(seed, chosen, "heldout")

    def is_heldout(self, prompts: Prompts) -> np.ndarray:
        """bool[P]: a class is a hash of the problem alone, the same for every seed."""
        rows, length = np.asarray(prompts.tokens), np.asarray(prompts.length)
        return _in_class(rows, length)

    def prompt_text(self, prompts: Prompts, index: int) -> str:
        length = int(prompts.length[index])
        return self.tokenizer.decode(np.asarray(prompts.tokens)[index, :length].tolist())

    def problems(self, seed: int, numbers: np.ndarray, heldout: bool) -> tuple[np.ndarray, ...]:
        """What `candidates` gives, each problem in the wanted class."""
        arrays = self.candidates(seed, numbers, 0)
        pending = np.flatnonzero(_in_class(arrays[0], arrays[1]) != heldout)
        attempt = 1
        while pending.size:
            if attempt == ATTEMPTS:
                raise ValueError(
                    f"{self}: no {'held-out' if heldout else 'training'} problem in {ATTEMPTS} attempts; the task is"
                    f" too small to be split; {self.larger}"
                )
            again = self.candidates(seed, numbers[pending], attempt)
            for array, part in zip(arrays, again, strict=True):
                array[pending] = part
            pending = pending[_in_class(again[0], again[1]) != heldout]
            attempt += 1
        return arrays

    def packed(self, pieces: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces (ids i64[n, m], kept bool[n, m]) side by side, what is not kept left out: i32[n, width], i32[n]."""
        ids = np.concatenate([piece for piece, _ in pieces], axis=1)
        keep = np.concatenate([mask for _, mask in pieces], axis=1)
        order = np.argsort(~keep, axis=1, kind="stable")
        length = keep.sum(axis=1)
        packed = np.full((len(ids), width), self.tokenizer.pad, np.int32)
        packed[:, : ids.shape[1]] = np.take_along_axis(ids, order, axis=1)
        packed[np.arange(width)[None, :] >= length[:, None]] = self.tokenizer.pad
        return packed, length.astype(np.int32)


def written(values: np.ndarray, digits: int) -> np.ndarray:
    """i64[n, m * digits], the decimal digits of i64[n, m]; the id of a digit in the alphabet is its value."""
    power = np.array([10**p for p in range(digits - 1, -1, -1)], np.int64)
    return (values[:, :, None] // power % 10).reshape(len(values), values.shape[1] * digits)


def tagged(
    tokenizer: CharacterTokenizer, thought: tuple[np.ndarray, np.ndarray], answer: np.ndarray, dropped: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pieces of ``thought</think><answer>answer</answer><eos>`` without tag number `dropped` i64[n] (3: none)."""
    special, column = tokenizer.special, np.ones((len(answer), 1), np.int64)
    kept = dropped[:, None] != np.arange(3)[None, :]
    return [
        thought,
        (column * special["</think>"], kept[:, 0:1]),
        (column * special["<answer>"], kept[:, 1:2]),
        (answer, np.ones(answer.shape, bool)),
        (column * special["</answer>"], kept[:, 2:3]),
        (column * tokenizer.eos, column > 0),
    ]


def answered(tokenizer: CharacterTokenizer, answers: Sequence[str]) -> list[list[int] | None]:
    """Token ids of the shortest completion in R1 style that gives each of `answers`, the stop token included."""
    texts = [f"</think><answer>{answer}</answer>" for answer in answers]
    return [[*tokenizer.encode(text, specials=True), tokenizer.eos] for text in texts]


def words(tokenizer: CharacterTokenizer) -> dict[str, int]:
    """The ids by which `rewards.tokens` reads an expression, as its keywords."""
    names = ("zero", "plus", "minus", "times", "equals")
    return dict(zip(names, tokenizer.encode("0+-*="), strict=True))


def token_reward(tokenizer: CharacterTokenizer, *, modulus: int, digits: int, format_weight: float) -> partial:
    """``(Rollouts) -> Reward``: 1 for the value of the expression in the prompt, `format_weight` for the format."""
    special = tokenizer.special
    expected = partial(tokens.chain_answer, **words(tokenizer), modulus=modulus, digits=digits)
    accuracy = partial(tokens.accuracy, expected=expected, open_id=special["<answer>"], close_id=special["</answer>"])
    r1_format = partial(
        tokens.format_reward,
        think_open=special["<think>"],
        think_close=special["</think>"],
        answer_open=special["<answer>"],
        answer_close=special["</answer>"],
        eos=tokenizer.eos,
    )
    return partial(tokens.combine, rewards=(("accuracy", accuracy, 1.0), ("format", r1_format, format_weight)))


def _in_class(rows: np.ndarray, length: np.ndarray) -> np.ndarray:
    column = np.arange(rows.shape[1])[None, :]
    return row_hash(np.where(column < length[:, None], rows, -1)) % np.uint64(HELDOUT_SHARE) == 0
