"""Rewards as functions of token ids, so that they are part of the compiled step: accuracy and the R1 format.

A *scorer* is ``(Rollouts) -> f32[N]``; `combine` sums weighted scorers into a `Reward`. All settings are token ids and
numbers bound with `functools.partial`. `grpo_jax.rewards.text` has a twin of each, on text, with the same verdict on
every completion:

* The *content* of a row is its completion without the stop token.
* The answer is what follows the **last** ``<answer>`` of the content, up to the first ``</answer>`` behind it. Where
  that is missing it ends with the content, provided that the row stopped: other tags may be bad, a completion cut off
  inside its answer has none.
* The format is exactly ``... </think><answer> x </answer>`` and then the stop token: each tag once and in that order,
  nothing between ``</think>`` and ``<answer>`` or behind ``</answer>``, x not empty, no second ``<think>`` (the prompt
  holds it).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.types import Array, Prompts, Reward, Rollouts

Scorer = Callable[[Rollouts], Array]
Expected = Callable[[Prompts], tuple[Array, Array]]
"""Prompts -> (tokens i32[P, A] of the right answers, their lengths i32[P]); of steps, tokens i32[P, A, digits]."""


class Span(NamedTuple):
    """Tokens ``start <= t < end`` of each row."""

    start: Array  # i32[N]
    end: Array  # i32[N], the position of the closing token, or the length where there is none
    opened: Array  # bool[N], the opening token is there; start and end mean nothing without it
    closed: Array  # bool[N], a closing token follows it


def span(tokens: Array, length: Array, *, open_id: int, close_id: int) -> Span:
    """What stands between the last `open_id` and the first `close_id` behind it, in tokens[n, :length[n]].

    `tokens` i32[N, T], `length` i32[N]. Tokens at and past the length are never read.
    """
    width = tokens.shape[1]
    position = jnp.arange(width, dtype=jnp.int32)[None, :]
    inside = position < length[:, None]
    last_open = jnp.where(inside & (tokens == open_id), position, -1).max(axis=1, initial=-1)
    start = last_open + 1
    closing = inside & (tokens == close_id) & (position >= start[:, None])
    first_close = jnp.where(closing, position, width).min(axis=1, initial=width)
    closed = first_close < width
    return Span(start, jnp.where(closed, first_close, length), last_open >= 0, closed)


def accuracy(rollouts: Rollouts, *, expected: Expected, open_id: int, close_id: int) -> Array:
    """f32[N], 1 where the answer of the row (see the module) equals the expected tokens exactly, else 0."""
    right, right_length = expected(rollouts.prompts)
    right, right_length = right[rollouts.prompt], right_length[rollouts.prompt]
    answer = span(rollouts.tokens, _content_length(rollouts), open_id=open_id, close_id=close_id)
    offset = jnp.arange(right.shape[1], dtype=jnp.int32)[None, :]
    place = jnp.clip(answer.start[:, None] + offset, 0, rollouts.tokens.shape[1] - 1)
    given = jnp.take_along_axis(rollouts.tokens, place, axis=1)
    equal = ((given == right) | (offset >= right_length[:, None])).all(axis=1)
    readable = answer.opened & (answer.closed | rollouts.stopped)
    return (readable & equal & (answer.end - answer.start == right_length)).astype(jnp.float32)


def format_reward(
    rollouts: Rollouts, *, think_open: int, think_close: int, answer_open: int, answer_close: int, eos: int
) -> Array:
    """f32[N], 1 where the row has exactly the R1 format (see the module), else 0. The settings are token ids."""
    content = _content_length(rollouts)
    position = jnp.arange(rollouts.tokens.shape[1], dtype=jnp.int32)[None, :]
    inside = position < content[:, None]

    def count(token: int) -> Array:
        return (inside & (rollouts.tokens == token)).sum(axis=1, dtype=jnp.int32)

    def place(token: int) -> Array:
        return jnp.where(inside & (rollouts.tokens == token), position, 0).sum(axis=1, dtype=jnp.int32)

    once = (count(think_close) == 1) & (count(answer_open) == 1) & (count(answer_close) == 1)
    never = (count(think_open) == 0) & (count(eos) == 0)
    adjacent = place(answer_open) == place(think_close) + 1
    nonempty = place(answer_close) > place(answer_open) + 1
    at_end = place(answer_close) == content - 1
    return (once & never & adjacent & nonempty & at_end & rollouts.stopped).astype(jnp.float32)


def combine(rollouts: Rollouts, *, rewards: tuple[tuple[str, Scorer, float], ...]) -> Reward:
    """The `Reward` whose outcome is ``sum(weight * scorer(rollouts))`` over the triples (name, scorer, weight).

    Components hold the scores before weighting. Token rewards cannot fail: `valid` is True everywhere.
    """
    components = {name: scorer(rollouts) for name, scorer, _ in rewards}
    outcome = jnp.zeros(rollouts.length.shape, jnp.float32)
    for name, _, weight in rewards:
        outcome = outcome + weight * components[name]
    return Reward(outcome=outcome, valid=jnp.ones(rollouts.length.shape, bool), components=components)


def by_part(rollouts: Rollouts, *, name: str, rewards: tuple[Callable[[Rollouts], Reward], ...]) -> Reward:
    """The `Reward` of each row by the function whose place in `rewards` is the label `name` of its prompt.

    All functions score all rows. Raises ValueError where the prompts have no such label, or the components of the
    functions different names.
    """
    if name not in rollouts.prompts.label:
        raise ValueError(
            f"by_part.name: got {name!r}, allowed {', '.join(sorted(rollouts.prompts.label)) or 'none'}, the labels of"
            " these prompts: score problems of the mixture that the reward was made for"
        )
    found = [reward(rollouts) for reward in rewards]
    names = [tuple(sorted(reward.components)) for reward in found]
    if len(set(names)) > 1:
        raise ValueError(
            f"rewards: got components {' and '.join(map(str, dict.fromkeys(names)))}; allowed are the same names in"
            " every part; give the scorers the same names"
        )
    part = rollouts.prompts.label[name][rollouts.prompt]
    chosen = found[0]
    for code, reward in enumerate(found[1:], start=1):
        chosen = jax.tree.map(partial(jnp.where, part == code), reward, chosen)
    return chosen


class Words(NamedTuple):
    """Token ids of arithmetic: `zero` is the digit 0, whose nine successors are the others; -1: no such operator."""

    zero: int
    plus: int
    minus: int
    times: int
    equals: int


def chain_answer(
    prompts: Prompts, *, zero: int, plus: int, minus: int, times: int, equals: int, modulus: int, digits: int
) -> tuple[Array, Array]:
    """The value of an arithmetic expression held by the prompt, as digit tokens (i32[P, digits], i32[P] = digits).

    The prompt is ``number (operator number)* equals ...``; it is evaluated left to right without precedence, modulo
    `modulus`, and written with `digits` digits, zeros in front. `zero` is the id of the digit 0, whose nine successors
    are the other digits; an operator that the task lacks has id -1. Numbers are read digit by digit whatever their
    width; everything behind `equals` is ignored.
    """
    value, _ = _running(prompts, Words(zero, plus, minus, times, equals), modulus=modulus)
    return _written(value[:, -1], zero, digits), jnp.full_like(prompts.length, digits)


def chain_values(
    prompts: Prompts, *, zero: int, plus: int, minus: int, times: int, equals: int, modulus: int, digits: int
) -> tuple[Array, Array]:
    """The value after each operation of the expression, as digit tokens i32[P, S, digits], and their number i32[P].

    Arguments as in `chain_answer`; places beyond the number of operations hold nothing.
    """
    value, ended = _running(prompts, Words(zero, plus, minus, times, equals), modulus=modulus)
    place = jnp.cumsum(ended.astype(jnp.int32), axis=1) - 2  # the first number that ends is no operation yet
    width = prompts.tokens.shape[1]
    place = jnp.where(ended & (place >= 0), place, width)
    row = jnp.arange(value.shape[0], dtype=jnp.int32)[:, None]
    found = jnp.zeros_like(value).at[row, place].set(value, mode="drop")
    return _written(found, zero, digits), jnp.maximum(ended.sum(axis=1, dtype=jnp.int32) - 1, 0)


def _running(prompts: Prompts, words: Words, *, modulus: int) -> tuple[Array, Array]:
    """i32[P, S], the value of the expression up to each token, and bool[P, S], whether a number ends there."""
    width = prompts.tokens.shape[1]
    inside = jnp.arange(width, dtype=jnp.int32)[None, :] < prompts.length[:, None]

    def step(carry: tuple[Array, ...], column: tuple[Array, Array]) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        value, number, operator, done = carry
        token, live = column
        live = live & ~done
        digit = token - words.zero
        is_digit = live & (digit >= 0) & (digit <= 9)
        is_end = live & (token == words.equals)
        is_break = is_end | (live & ((token == words.plus) | (token == words.minus) | (token == words.times)))
        added = jnp.where(operator == words.minus, value - number, value + number)
        applied = jnp.where(operator == words.times, value * number, added)
        value = jnp.where(is_break, applied % modulus, value)
        number = jnp.where(is_break, 0, jnp.where(is_digit, number * 10 + digit, number))
        operator = jnp.where(is_break, token, operator)
        return (value, number, operator, done | is_end), (value, is_break)

    zeros = jnp.zeros_like(prompts.length)
    # The first number is added to 0: -2 is no operator's id, so it reads as an addition.
    start = (zeros, zeros, jnp.full_like(zeros, -2), zeros > 0)
    _, (value, ended) = jax.lax.scan(step, start, (prompts.tokens.T, inside.T))
    return value.T, ended.T


def _written(value: Array, zero: int, digits: int) -> Array:
    """`value` i32[...] as digit tokens i32[..., digits], zeros in front."""
    power = jnp.array([10**p for p in range(digits - 1, -1, -1)], jnp.int32)
    return value[..., None] // power.reshape((1,) * value.ndim + (-1,)) % 10 + zero


def with_steps(
    rollouts: Rollouts, *, reward: Callable[[Rollouts], Reward], values: Expected, think_close: int
) -> Reward:
    """`reward` with a reward for every step, for process supervision: ``token`` and ``step_end``.

    A step is a value of `values` (prompts -> tokens i32[P, A, digits] and how many i32[P], see `chain_values`) written
    before the first `think_close` of the row, or before the end of a row without one; it ends with its last digit and
    earns 1 where the k-th number written is the k-th value, else 0, as do numbers beyond the last. One more step ends
    with the last token of the row and earns the outcome. Outcome, components and `valid` are those of `reward`.
    """
    found = reward(rollouts)
    right, count = values(rollouts.prompts)
    right, count = right[rollouts.prompt], count[rollouts.prompt]
    most, digits = right.shape[1:]
    tokens, width = rollouts.tokens, rollouts.tokens.shape[1]
    position = jnp.arange(width, dtype=jnp.int32)[None, :]
    content = _content_length(rollouts)
    closing = (position < content[:, None]) & (tokens == think_close)
    thought = jnp.minimum(jnp.where(closing, position, width).min(axis=1), content)
    number, digit = position // digits, position % digits
    known = right.reshape(right.shape[0], -1)[:, jnp.minimum(number[0], most - 1) * digits + digit[0]]
    same = (tokens == known) & (number < count[:, None])
    so_far = jnp.cumsum(same.astype(jnp.int32), axis=1)
    before = jnp.pad(so_far, ((0, 0), (digits, 0)))[:, :width]
    ends = (digit == digits - 1) & (position < thought[:, None])
    last = position == rollouts.length[:, None] - 1
    earned = (so_far - before == digits).astype(found.outcome.dtype)
    paid = jnp.where(last, found.outcome[:, None], jnp.where(ends, earned, jnp.zeros_like(earned)))
    return found.replace(token=paid, step_end=(ends | last) & rollouts.mask)


def _content_length(rollouts: Rollouts) -> Array:
    return rollouts.length - rollouts.stopped.astype(rollouts.length.dtype)
