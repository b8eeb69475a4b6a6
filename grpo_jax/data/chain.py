"""Left-to-right arithmetic with a running total: the smallest task where writing intermediate steps pays.

A prompt is ``7-7+6-7-2*1=<think>``; operators have no precedence and everything is modulo `modulus`. A model that
writes the value after each operation, ``06977</think><answer>7</answer><eos>``, only ever needs one operation at a
time; one that answers at once has to do all of them in its head. Demonstrations of the warm start are a mixture of
qualities on purpose, so that reinforcement learning has something to find out: their answers are all right, but few
show the whole chain and some have a tag missing.

The right answer is computed twice in independent ways: from the token ids by `rewards.tokens.chain_answer` inside the
compiled step, and from the decoded text in plain Python integers by `Chain.answers`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from grpo_jax.data.counter import below, hashed, unit
from grpo_jax.data.generated import ARITHMETIC, ATTEMPTS, Generated, answered, tagged, token_reward, words, written
from grpo_jax.data.tasks import Demonstrations, check_draws, numpy_prompts
from grpo_jax.rewards import text, tokens
from grpo_jax.text import CharacterTokenizer
from grpo_jax.types import Prompts

OPERATORS = "+-*"
_NUMBERS, _OPERATORS, _COUNT = range(3)
_STYLE, _DROP, _TAG = range(ATTEMPTS, ATTEMPTS + 3)  # hashed where attempts are, so numbered behind them


@dataclass(frozen=True)
class Chain(Generated):
    """Settings of the task."""

    operands: int = 6
    """Numbers in a problem."""
    fewest: int | None = None
    """Smallest count where problems differ in length (uniform up to `operands`); None: all have `operands`."""
    modulus: int = 10
    """Numbers are below it, written with as many digits as it needs, zeros in front; 2 to 1000."""
    operators: str = OPERATORS
    """The operators that occur, each with equal chance; a non-empty part of "+-*"."""
    styles: tuple[float, float, float] = (0.45, 0.25, 0.30)
    """Shares of demonstrations with no chain, with every second value, with the full chain; they sum to 1."""
    dropped_tag: float = 0.25
    """Share of demonstrations in which one of the three tags of the completion is missing."""
    slack: int = 1
    """Tokens of room in a completion beyond the longest demonstration."""

    def __post_init__(self) -> None:
        _check(self)

    larger = "take more operands or a larger modulus"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return ARITHMETIC

    @property
    def digits(self) -> int:
        """Characters of a number."""
        return len(str(self.modulus - 1))

    @property
    def prompt_width(self) -> int:
        return self.operands * (self.digits + 1) + 1

    @property
    def completion_width(self) -> int:
        return self._longest + self.slack

    @property
    def _longest(self) -> int:
        return self.operands * self.digits + 4

    @cached_property
    def _operator_ids(self) -> np.ndarray:
        return np.array(self.tokenizer.encode(self.operators), np.int64)

    def demonstrations(self, seed: int, draws: np.ndarray) -> Demonstrations:
        """Training problems with completions of mixed quality (`styles`, `dropped_tag`); every answer is right."""
        numbers = check_draws(draws, "train")
        rows, length, values, operators, count = self.problems(seed, numbers, False)
        running = self._running(values, operators)
        last = np.take_along_axis(running, count[:, None] - 2, axis=1)
        digits = self.digits
        chance = unit(hashed(seed, numbers, _STYLE))
        full, half = chance >= self.styles[0] + self.styles[1], chance >= self.styles[0]
        step = np.arange(self.operands - 1)[None, :]
        shown = (step < count[:, None] - 1) & (full[:, None] | (half[:, None] & (step % 2 == 1)))
        drop = np.where(unit(hashed(seed, numbers, _DROP)) < self.dropped_tag, below(hashed(seed, numbers, _TAG), 3), 3)
        thought = written(running, digits), np.repeat(shown, digits, axis=1)
        pieces = tagged(self.tokenizer, thought, written(last, digits), drop)
        return Demonstrations(
            numpy_prompts(rows, length, numbers, numbers), *self.packed(pieces, self.completion_width)
        )

    def read_prompt(self, text: str) -> tuple[list[int], int | None]:
        """Ids of a problem, typed with or without its end ``=<think>``; every answer is known, whatever the row."""
        problem = text.strip().removesuffix("<think>").removesuffix("=")
        ids = self.tokenizer.encode(f"{problem}=<think>", specials=True)
        number = f"[0-9]{{{self.digits}}}"
        form = re.fullmatch(f"{number}(?:[{re.escape(self.operators)}]{number})+", problem)
        if form is None or any(int(n) >= self.modulus for n in re.findall("[0-9]+", problem)):
            raise ValueError(
                f"prompt: got {text!r}; allowed are numbers below {self.modulus} of {self.digits} digits with one of"
                f" {self.operators!r} between; write for instance {self.prompt_text(self.heldout(1), 0)}"
            )
        if len(ids) > self.prompt_width:
            raise ValueError(
                f"prompt: got {text!r} of {len(ids)} tokens; allowed are at most {self.prompt_width}, {self.operands}"
                " numbers; shorten it"
            )
        return ids, 0

    def answers(self, prompts: Prompts) -> list[str]:
        """Computed from the text of each prompt in Python integers."""
        return [self._answer(self.prompt_text(prompts, index)) for index in range(len(prompts.length))]

    def gold(self, prompts: Prompts) -> list[list[int] | None]:
        """Token ids of a right completion of every prompt, without a chain."""
        return answered(self.tokenizer, self.answers(prompts))

    def metadata(self, prompts: Prompts) -> list[Mapping[str, object]]:
        return [{"operands": int(length - 1) // (self.digits + 1)} for length in prompts.length]

    def reward(self, *, format_weight: float = 0.2) -> partial:
        """The token reward ``(Rollouts) -> Reward``: 1 for the right answer plus `format_weight` for the format."""
        return token_reward(self.tokenizer, modulus=self.modulus, digits=self.digits, format_weight=format_weight)

    def process_reward(self, *, format_weight: float = 0.2) -> partial:
        """`reward` with one for every step: 1 for each value of the chain that is right, the outcome at the end."""
        values = partial(tokens.chain_values, **words(self.tokenizer), modulus=self.modulus, digits=self.digits)
        outcome = self.reward(format_weight=format_weight)
        think_close = self.tokenizer.special["</think>"]
        return partial(tokens.with_steps, reward=outcome, values=values, think_close=think_close)

    def text_rewards(self, *, format_weight: float = 0.2) -> text.TextRewards:
        """The twins on text of `reward`: name -> (function, weight)."""
        return {"accuracy": (partial(text.accuracy, match="exact"), 1.0), "format": (text.r1_format, format_weight)}

    def candidates(self, seed: int, numbers: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
        """Problems of one attempt, of either class: tokens, length, values, operators, count."""
        most, digits = self.operands, self.digits
        fewest = most if self.fewest is None else self.fewest
        key = hashed(seed, numbers, attempt)[:, None]
        place = np.arange(most)[None, :]
        values = below(hashed(key, _NUMBERS, place), self.modulus)
        chosen = self._operator_ids[below(hashed(key, _OPERATORS, place), len(self.operators))]
        count = fewest + below(hashed(key, _COUNT)[:, 0], most - fewest + 1)
        body = np.empty((len(numbers), most, digits + 1), np.int64)
        body[:, :, :digits] = written(values, digits).reshape(len(numbers), most, digits)
        body[:, :, digits] = chosen
        rows = np.full((len(numbers), self.prompt_width), self.tokenizer.pad, np.int32)
        rows[:, :-1] = body.reshape(len(numbers), most * (digits + 1))
        end = count * (digits + 1) - 1
        column = np.arange(self.prompt_width)[None, :]
        rows[column > end[:, None]] = self.tokenizer.pad
        index = np.arange(len(numbers))
        rows[index, end] = self.tokenizer.encode("=")[0]
        rows[index, end + 1] = self.tokenizer.special["<think>"]
        return rows, (end + 2).astype(np.int32), values, chosen, count

    def _running(self, values: np.ndarray, operators: np.ndarray) -> np.ndarray:
        """i64[n, operands - 1], the value after each operation."""
        plus, minus, times = self.tokenizer.encode(OPERATORS)
        value, out = values[:, 0], np.empty((len(values), self.operands - 1), np.int64)
        for index in range(self.operands - 1):
            operator, number = operators[:, index], values[:, index + 1]
            cases = [operator == plus, operator == minus, operator == times]
            value = np.select(cases, [value + number, value - number, value * number]) % self.modulus
            out[:, index] = value
        return out

    def _answer(self, prompt: str) -> str:
        expression = prompt.partition("=")[0]
        value, operator, number = 0, "+", ""
        for character in expression + "=":
            if character.isdigit():
                number += character
                continue
            operand = int(number)
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % self.modulus
            operator, number = character, ""
        return f"{value:0{self.digits}d}"


def _check(task: Chain) -> None:
    fewest = task.operands if task.fewest is None else task.fewest
    known = bool(task.operators) and set(task.operators) <= set(OPERATORS)
    shares_fit = min(task.styles) >= 0 and abs(sum(task.styles) - 1) < 1e-9
    checks = (
        ("operands", task.operands, 2 <= task.operands <= 64, "2 to 64"),
        ("fewest", task.fewest, 2 <= fewest <= task.operands, "None, or 2 to operands"),
        ("modulus", task.modulus, 2 <= task.modulus <= 1000, "2 to 1000"),
        ("operators", task.operators, known and len(set(task.operators)) == len(task.operators), "some of '+-*'"),
        ("styles", task.styles, len(task.styles) == 3 and shares_fit, "three shares that sum to 1"),
        ("dropped_tag", task.dropped_tag, 0 <= task.dropped_tag <= 1, "0 to 1"),
        ("slack", task.slack, task.slack >= 0, "0 or more"),
    )
    for name, got, fits, allowed in checks:
        if not fits:
            raise ValueError(f"Chain.{name}: got {got!r}; allowed: {allowed}; change it to a value in that range")
