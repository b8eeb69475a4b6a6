"""Addition as it is done on paper, digit by digit from the right with carries: longer reasoning on numbers.

A prompt is ``4729+5816=<think>``. The chain has a part for every place, the ones first: the two digits, then their sum
with the carry of the place before, in two digits of which the first is the next carry. ``96 15``, ``21 04``, ``78 15``,
``45 10`` are written without spaces, so the completion is ``9615210478154510</think><answer>10545</answer><eos>``. A
part needs the two digits and the carry that stands right before it, the answer is read off the chain from its end;
without the chain every digit of the answer may depend on all digits of the problem. Demonstrations are a mixture of
qualities on purpose, as in `grpo_jax.data.chain`: their answers are all right, but few show the whole chain.

The right answer is computed twice in independent ways: from the token ids by `rewards.tokens.chain_answer` inside the
compiled step, and from the decoded text in plain Python integers by `Addition.answers`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from grpo_jax.data.counter import below, hashed, unit
from grpo_jax.data.generated import ARITHMETIC, ATTEMPTS, Generated, answered, tagged, token_reward, written
from grpo_jax.data.tasks import Demonstrations, check_draws, numpy_prompts
from grpo_jax.rewards import text
from grpo_jax.text import CharacterTokenizer
from grpo_jax.types import Prompts

PART = 4
"""Characters of the chain for a place: two digits and their sum."""
_STYLE, _DROP, _TAG = range(ATTEMPTS, ATTEMPTS + 3)  # hashed where attempts are, so numbered behind them


@dataclass(frozen=True)
class Addition(Generated):
    """Settings of the task."""

    digits: int = 4
    """Digits of each number, zeros in front; 2 to 8. The sum has one more."""
    styles: tuple[float, float, float] = (0.45, 0.25, 0.30)
    """Shares of demonstrations with no chain, with the parts of the right half, with the full chain; they sum to 1."""
    dropped_tag: float = 0.25
    """Share of demonstrations in which one of the three tags of the completion is missing."""
    slack: int = 1
    """Tokens of room in a completion beyond the longest demonstration."""

    def __post_init__(self) -> None:
        shares_fit = len(self.styles) == 3 and min(self.styles) >= 0 and abs(sum(self.styles) - 1) < 1e-9
        checks = (
            ("digits", self.digits, 2 <= self.digits <= 8, "2 to 8"),
            ("styles", self.styles, shares_fit, "three shares that sum to 1"),
            ("dropped_tag", self.dropped_tag, 0 <= self.dropped_tag <= 1, "0 to 1"),
            ("slack", self.slack, self.slack >= 0, "0 or more"),
        )
        for name, got, fits, allowed in checks:
            if not fits:
                raise ValueError(
                    f"Addition.{name}: got {got!r}; allowed: {allowed}; change it to a value in that range"
                )

    larger = "take more digits"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return ARITHMETIC

    @property
    def prompt_width(self) -> int:
        return 2 * self.digits + 3

    @property
    def completion_width(self) -> int:
        return PART * self.digits + self.digits + 5 + self.slack

    def candidates(self, seed: int, numbers: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
        """Problems of one attempt, of either class: tokens, length, the two terms i64[n, 2]."""
        key = hashed(seed, numbers, attempt)[:, None]
        terms = below(hashed(key, np.arange(2)[None, :]), 10**self.digits)
        plus, equals = self.tokenizer.encode("+=")
        rows = np.empty((len(terms), self.prompt_width), np.int32)
        rows[:, : self.digits], rows[:, self.digits] = written(terms[:, :1], self.digits), plus
        rows[:, self.digits + 1 : -2], rows[:, -2] = written(terms[:, 1:], self.digits), equals
        rows[:, -1] = self.tokenizer.special["<think>"]
        return rows, np.full(len(rows), rows.shape[1], np.int32), terms

    def demonstrations(self, seed: int, draws: np.ndarray) -> Demonstrations:
        """Training problems with completions of mixed quality (`styles`, `dropped_tag`); every answer is right."""
        numbers = check_draws(draws, "train")
        rows, length, terms = self.problems(seed, numbers, False)
        chance = unit(hashed(seed, numbers, _STYLE))
        full, half = chance >= self.styles[0] + self.styles[1], chance >= self.styles[0]
        place = np.arange(self.digits)[None, :]
        shown = full[:, None] | (half[:, None] & (place < self.digits // 2))
        drop = np.where(unit(hashed(seed, numbers, _DROP)) < self.dropped_tag, below(hashed(seed, numbers, _TAG), 3), 3)
        thought = self._chain(terms), np.repeat(shown, PART, axis=1)
        answer = written(terms.sum(axis=1, keepdims=True), self.digits + 1)
        pieces = tagged(self.tokenizer, thought, answer, drop)
        return Demonstrations(
            numpy_prompts(rows, length, numbers, numbers), *self.packed(pieces, self.completion_width)
        )

    def read_prompt(self, text: str) -> tuple[list[int], int | None]:
        """Ids of a problem, typed with or without its end ``=<think>``; every answer is known, whatever the row."""
        problem = text.strip().removesuffix("<think>").removesuffix("=")
        number = f"[0-9]{{{self.digits}}}"
        if re.fullmatch(rf"{number}\+{number}", problem) is None:
            raise ValueError(
                f"prompt: got {text[:80]!r}; allowed are two numbers of {self.digits} digits with '+' between, zeros in"
                f" front; write for instance {self.prompt_text(self.heldout(1), 0)}"
            )
        return self.tokenizer.encode(f"{problem}=<think>", specials=True), 0

    def answers(self, prompts: Prompts) -> list[str]:
        """Computed from the text of each prompt in Python integers."""
        texts = [self.prompt_text(prompts, index).partition("=")[0] for index in range(len(prompts.length))]
        return [f"{sum(int(term) for term in problem.split('+')):0{self.digits + 1}d}" for problem in texts]

    def gold(self, prompts: Prompts) -> list[list[int] | None]:
        """Token ids of a right completion of every prompt, without a chain."""
        return answered(self.tokenizer, self.answers(prompts))

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        """How many places carry."""
        return [{"carries": int(count)} for count in self._carries(np.asarray(prompts.tokens))]

    def reward(self, *, format_weight: float = 0.2) -> partial:
        """The token reward ``(Rollouts) -> Reward``: 1 for the right answer plus `format_weight` for the format."""
        digits = self.digits + 1
        return token_reward(self.tokenizer, modulus=10**digits, digits=digits, format_weight=format_weight)

    def text_rewards(self, *, format_weight: float = 0.2) -> text.TextRewards:
        """The twins on text of `reward`: name -> (function, weight)."""
        return {"accuracy": (partial(text.accuracy, match="exact"), 1.0), "format": (text.r1_format, format_weight)}

    def _chain(self, terms: np.ndarray) -> np.ndarray:
        """i64[n, PART * digits], the whole chain of terms i64[n, 2]."""
        parts, carry = [], np.zeros(len(terms), np.int64)
        for place in range(self.digits):
            digits = terms // 10**place % 10
            total = digits.sum(axis=1) + carry
            parts.append(np.concatenate([digits, written(total[:, None], 2)], axis=1))
            carry = total // 10
        return np.concatenate(parts, axis=1)

    def _carries(self, rows: np.ndarray) -> np.ndarray:
        """i64[n], places whose sum is 10 or more; the id of a digit is its value."""
        terms = np.stack([self._value(rows[:, : self.digits]), self._value(rows[:, self.digits + 1 : -2])], axis=1)
        return self._chain(terms)[:, 2::PART].sum(axis=1)

    def _value(self, digits: np.ndarray) -> np.ndarray:
        return digits.astype(np.int64) @ 10 ** np.arange(self.digits - 1, -1, -1)
