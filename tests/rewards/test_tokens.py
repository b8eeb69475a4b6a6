from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data import Chain
from grpo_jax.objectives import describe
from grpo_jax.rewards.tokens import (
    accuracy,
    by_part,
    chain_answer,
    chain_values,
    combine,
    format_reward,
    span,
    with_steps,
)
from grpo_jax.types import Prompts, Reward, Rollouts

# Ids of this file: 0..9 are digits.
THINK, END_THINK, ANSWER, END_ANSWER, EOS, PAD = 10, 11, 12, 13, 14, 15
WIDTH = 9
TAGS = {"think_open": THINK, "think_close": END_THINK, "answer_open": ANSWER, "answer_close": END_ANSWER, "eos": EOS}


def eight(prompts: Prompts):
    """The right answer to every prompt is 8, or 8 1 for a prompt of length 2."""
    tokens = jnp.array([[8, 1]], jnp.int32) + jnp.zeros_like(prompts.length)[:, None]
    return tokens, prompts.length


def rows(
    *completions: list[int], stopped: list[bool] | None = None, prompt_length: int = 1, fill: int = PAD
) -> Rollouts:
    """Rows that answer one prompt each; a row that ends in EOS has stopped."""
    n = len(completions)
    tokens = np.full((n, WIDTH), fill, np.int32)
    for row, line in zip(tokens, completions, strict=True):
        row[: len(line)] = line
    zeros = jnp.zeros((n, WIDTH))
    number = jnp.arange(n, dtype=jnp.int32)
    prompts = Prompts(jnp.zeros((n, 2), jnp.int32), jnp.full(n, prompt_length, jnp.int32), number, number)
    return Rollouts(
        prompts=prompts,
        prompt=number,
        sample=jnp.zeros_like(number),
        tokens=jnp.asarray(tokens),
        length=jnp.array([len(line) for line in completions], jnp.int32),
        stopped=jnp.array([line[-1:] == [EOS] for line in completions] if stopped is None else stopped),
        mask=zeros == 0,
        logp=zeros,
        logp_full=zeros,
        version=jnp.zeros_like(number),
    )


FORMATS = {
    "thought, answer, end": ([3, END_THINK, ANSWER, 8, END_ANSWER, EOS], 1),
    "an empty thought is allowed": ([END_THINK, ANSWER, 8, END_ANSWER, EOS], 1),
    "a wrong answer is well formed too": ([END_THINK, ANSWER, 7, 7, END_ANSWER, EOS], 1),
    "no end": ([3, END_THINK, ANSWER, 8, END_ANSWER], 0),
    "empty answer": ([3, END_THINK, ANSWER, END_ANSWER, EOS], 0),
    "something between the tags": ([END_THINK, 3, ANSWER, 8, END_ANSWER, EOS], 0),
    "something behind the answer": ([END_THINK, ANSWER, 8, END_ANSWER, 3, EOS], 0),
    "no end of thought": ([ANSWER, 8, END_ANSWER, EOS], 0),
    "no opening": ([END_THINK, 8, END_ANSWER, EOS], 0),
    "no closing": ([END_THINK, ANSWER, 8, EOS], 0),
    "a second thought": ([THINK, END_THINK, ANSWER, 8, END_ANSWER, EOS], 0),
    "thought ended twice": ([END_THINK, END_THINK, ANSWER, 8, END_ANSWER, EOS], 0),
    "two answers": ([END_THINK, ANSWER, 8, END_ANSWER, ANSWER, 8, END_ANSWER, EOS], 0),
    "an opening inside the answer": ([END_THINK, ANSWER, 8, ANSWER, END_ANSWER, EOS], 0),
    "closed twice": ([END_THINK, ANSWER, 8, END_ANSWER, END_ANSWER, EOS], 0),
    "order reversed": ([ANSWER, 8, END_ANSWER, END_THINK, EOS], 0),
    "an end inside": ([END_THINK, ANSWER, EOS, END_ANSWER, EOS], 0),
    "nothing": ([], 0),
    "only the end": ([EOS], 0),
}
ANSWERS = {
    "the answer": ([3, END_THINK, ANSWER, 8, END_ANSWER, EOS], 1),
    "another answer": ([3, END_THINK, ANSWER, 7, END_ANSWER, EOS], 0),
    "other tags may be missing": ([ANSWER, 8, END_ANSWER, EOS], 1),
    "other tags may be repeated": ([END_THINK, END_THINK, ANSWER, 8, END_ANSWER, THINK, EOS], 1),
    "the closing tag may be missing where the row stopped": ([END_THINK, ANSWER, 8, EOS], 1),
    "but not where it was cut off": ([END_THINK, ANSWER, 8], 0),
    "closed and then cut off": ([END_THINK, ANSWER, 8, END_ANSWER, 3], 1),
    "no opening tag": ([END_THINK, 8, END_ANSWER, EOS], 0),
    "the last answer counts: right": ([ANSWER, 7, END_ANSWER, ANSWER, 8, END_ANSWER, EOS], 1),
    "the last answer counts: wrong": ([ANSWER, 8, END_ANSWER, ANSWER, 7, END_ANSWER, EOS], 0),
    "the last opening tag counts": ([ANSWER, 7, ANSWER, 8, END_ANSWER, EOS], 1),
    "the first closing tag behind it counts": ([ANSWER, 8, END_ANSWER, 1, END_ANSWER, EOS], 1),
    "a closing tag before it does not": ([END_ANSWER, ANSWER, 8, EOS], 1),
    "too long": ([ANSWER, 8, 1, END_ANSWER, EOS], 0),
    "a leading zero is another answer": ([ANSWER, 0, 8, END_ANSWER, EOS], 0),
    "a tag inside the answer": ([ANSWER, 8, THINK, END_ANSWER, EOS], 0),
    "empty": ([ANSWER, END_ANSWER, EOS], 0),
    "opened at the very end": ([8, END_ANSWER, ANSWER], 0),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("fill", [PAD, EOS, ANSWER, 8], ids=["pad", "eos", "answer tag", "digit"])
def test_the_format_is_exactly_thought_answer_end(fill: int):
    got = jax.jit(partial(format_reward, **TAGS))(rows(*(line for line, _ in FORMATS.values()), fill=fill))
    assert got.dtype == jnp.float32
    assert dict(zip(FORMATS, got.tolist(), strict=True)) == {name: want for name, (_, want) in FORMATS.items()}


@pytest.mark.parametrize("fill", [PAD, END_ANSWER, ANSWER, 8], ids=["pad", "closing tag", "answer tag", "digit"])
def test_the_answer_is_read_from_the_last_opening_tag_whatever_the_padding(fill: int):
    rollouts = rows(*(line for line, _ in ANSWERS.values()), fill=fill)
    got = jax.jit(partial(accuracy, expected=eight, open_id=ANSWER, close_id=END_ANSWER))(rollouts)
    assert dict(zip(ANSWERS, got.tolist(), strict=True)) == {name: want for name, (_, want) in ANSWERS.items()}


def test_an_answer_of_two_tokens_must_match_in_both():
    lines = ([ANSWER, 8, 1, END_ANSWER, EOS], [ANSWER, 8, END_ANSWER, EOS], [ANSWER, 8, 2, END_ANSWER, EOS])
    got = accuracy(rows(*lines, prompt_length=2), expected=eight, open_id=ANSWER, close_id=END_ANSWER)
    assert got.tolist() == [1, 0, 0]


def test_a_row_is_compared_with_the_answer_to_its_own_prompt():
    def row_number(prompts: Prompts):
        return prompts.row[:, None], jnp.ones_like(prompts.row)

    rollouts = rows(*([ANSWER, d, END_ANSWER, EOS] for d in (1, 1, 0)))
    rollouts = rollouts.replace(prompt=jnp.array([1, 0, 0], jnp.int32))
    assert accuracy(rollouts, expected=row_number, open_id=ANSWER, close_id=END_ANSWER).tolist() == [1, 0, 1]


def test_a_span_runs_from_the_last_opening_to_the_first_closing_inside_the_length():
    tokens = jnp.array([[1, 5, 1, 5, 5, 2, 2], [5, 1, 5, 5, 2, 5, 5], [2, 5, 5, 5, 5, 5, 5]], jnp.int32)
    found = span(tokens, jnp.array([7, 4, 7], jnp.int32), open_id=1, close_id=2)
    # Row 0: opened at 2, closed at 5. Row 1: the closing token stands at the length. Row 2: never opened.
    assert (found.start[:2].tolist(), found.end[:2].tolist()) == ([3, 2], [5, 4])
    assert (found.opened.tolist(), found.closed[:2].tolist()) == ([True, True, False], [True, False])


def test_combine_weighs_the_components_and_every_row_is_valid():
    scorers = (
        ("accuracy", partial(accuracy, expected=eight, open_id=ANSWER, close_id=END_ANSWER), 1.0),
        ("format", partial(format_reward, **TAGS), 0.25),
    )
    reward = combine(rows([END_THINK, ANSWER, 8, END_ANSWER, EOS], [ANSWER, 8, EOS], [EOS]), rewards=scorers)
    # 1 * 1 + 0.25 * 1, then the answer alone, then nothing.
    assert reward.outcome.tolist() == [1.25, 1.0, 0.0]
    assert reward.components["accuracy"].tolist() == [1, 1, 0]
    assert reward.components["format"].tolist() == [1, 0, 0]
    assert reward.valid.tolist() == [True] * 3 and reward.token is None and reward.outcome.dtype == jnp.float32


@pytest.mark.parametrize(
    ("prompt", "modulus", "digits", "answer"),
    [
        # Left to right: 7 - 7 = 0, + 6 = 6, - 7 = -1 = 9 modulo 10, - 2 = 7, * 1 = 7.
        ("7-7+6-7-2*1=", 10, 1, "7"),
        # (1 + 2) * 3 = 9 = 2 modulo 7.
        ("1+2*3=", 7, 1, "2"),
        # 250 * 3 = 750, - 751 = -1 = 999.
        ("250*3-751=", 1000, 3, "999"),
        # 40 + 2 = 42 in three digits.
        ("40+2=", 1000, 3, "042"),
        # Everything behind the first = is ignored.
        ("4+4=9+9=", 10, 1, "8"),
    ],
)
def test_chain_answer_evaluates_the_prompt(prompt: str, modulus: int, digits: int, answer: str):
    ids = ["0123456789+-*=".index(c) for c in prompt]
    # Padding of digits and operators must not be read.
    tokens = jnp.array([[*ids, 5, 10, 5, 13]], jnp.int32)
    one = jnp.zeros(1, jnp.int32)
    prompts = Prompts(tokens, jnp.array([len(ids)], jnp.int32), one, one)
    got, length = chain_answer(prompts, zero=0, plus=10, minus=11, times=12, equals=13, modulus=modulus, digits=digits)
    assert got.tolist() == [[int(d) for d in answer]] and length.tolist() == [digits]


def test_the_reward_of_a_task_is_one_compiled_function_with_a_description():
    task = Chain()
    reward = task.reward(format_weight=0.2)
    text = describe(reward)
    assert text.startswith("grpo_jax.rewards.tokens.combine(rewards=")
    assert "modulus=10" in text and "0.2" in text and text != describe(task.reward(format_weight=0.3))
    assert describe(reward) == describe(Chain().reward(format_weight=0.2))

    shown = Chain(styles=(0, 0, 1), dropped_tag=0.0).demonstrations(0, np.arange(32))
    n = jnp.arange(32, dtype=jnp.int32)
    zeros = jnp.zeros(shown.tokens.shape)
    rollouts = Rollouts(
        shown.prompts,
        n,
        n * 0,
        jnp.asarray(shown.tokens),
        jnp.asarray(shown.length),
        n >= 0,
        zeros == 0,
        zeros,
        zeros,
        n,
    )
    got = jax.jit(reward)(rollouts)
    np.testing.assert_allclose(got.outcome, np.full(32, 1.2, np.float32))


def constant(rollouts: Rollouts, *, value: float, name: str = "accuracy") -> Reward:
    """Every row earns `value`."""
    score = jnp.full(rollouts.length.shape, value)
    return Reward(outcome=2 * score, valid=score < 3, components={name: score})


def test_a_row_is_scored_by_the_function_of_its_prompts_part():
    rollouts = rows([8, EOS], [8, EOS], [8, EOS])
    prompts = rollouts.prompts.replace(label={"kind": jnp.array([1, 0, 2], jnp.int32)})
    rollouts = rollouts.replace(prompts=prompts, prompt=jnp.array([2, 0, 1], jnp.int32))
    rewards = tuple(partial(constant, value=value) for value in (1.0, 2.0, 3.0))
    got = jax.jit(partial(by_part, name="kind", rewards=rewards))(rollouts)
    # The prompts of the rows are 2, 0 and 1, of the parts 2, 1 and 0.
    assert got.components["accuracy"].tolist() == [3.0, 2.0, 1.0]
    assert got.outcome.tolist() == [6.0, 4.0, 2.0] and got.valid.tolist() == [False, True, True]


def test_parts_that_do_not_fit_together_are_an_error():
    rollouts = rows([8, EOS])
    with pytest.raises(ValueError, match=r"by_part.name: got 'kind', allowed none"):
        by_part(rollouts, name="kind", rewards=(partial(constant, value=1.0),))
    rollouts = rollouts.replace(prompts=rollouts.prompts.replace(label={"kind": jnp.zeros(1, jnp.int32)}))
    with pytest.raises(
        ValueError, match=r"got components \('accuracy',\) and \('other',\); allowed are the same names"
    ):
        by_part(
            rollouts, name="kind", rewards=(partial(constant, value=1.0), partial(constant, value=1.0, name="other"))
        )


# Steps


def asked(*problems: list[int]) -> Prompts:
    """These problems, tokens as in `test_chain_answer_evaluates_the_prompt`."""
    tokens = np.full((len(problems), WIDTH), PAD, np.int32)
    for row, line in zip(tokens, problems, strict=True):
        row[: len(line)] = line
    number, length = jnp.arange(len(problems), dtype=jnp.int32), jnp.array([len(p) for p in problems], jnp.int32)
    return Prompts(jnp.asarray(tokens), length, number, number)


PLUS, MINUS, TIMES, EQUALS = 10, 11, 12, 13
ARITHMETIC = {"zero": 0, "plus": PLUS, "minus": MINUS, "times": TIMES, "equals": EQUALS}


def test_the_values_of_a_chain_are_those_behind_each_operation():
    prompts = asked([7, MINUS, 9, TIMES, 3, EQUALS, 5], [4, EQUALS], [2, 5, PLUS, 8, 0, EQUALS])
    found, count = chain_values(prompts, **ARITHMETIC, modulus=10, digits=1)
    assert count.tolist() == [2, 0, 1]
    assert found[0, :2, 0].tolist() == [8, 4]  # 7 - 9 = -2 = 8, 8 * 3 = 24 = 4 modulo 10
    found, count = chain_values(prompts, **ARITHMETIC, modulus=100, digits=2)
    assert found[2, 0].tolist() == [0, 5] and found[0, :2].tolist() == [[9, 8], [9, 4]]  # 105, -2 and 294 modulo 100


def outcomes(rollouts: Rollouts) -> Reward:
    """1.2 for every row."""
    return Reward(outcome=jnp.full(rollouts.length.shape, 1.2), valid=rollouts.length > 0)


def test_every_step_of_a_chain_has_its_reward():
    # Prompts 7 - 9 * 3 =: the values are 8 and 4. In the ids of this file END_THINK is 11.
    prompts = asked(*[[7, MINUS, 9, TIMES, 3, EQUALS]] * 6)
    given = rows(
        [8, 4, END_THINK, ANSWER, 4, END_ANSWER, EOS],
        [8, 5, END_THINK, ANSWER, 5, EOS],
        [9, 4, 4, END_THINK, 4],  # the third number is one too many
        [END_THINK, ANSWER, 4, EOS],
        [8, 4],  # cut off: its last number is its last token
        [8, THINK, END_THINK, 4],
        fill=8,  # what stands behind a row is no step
    ).replace(prompts=prompts)
    given = given.replace(mask=jnp.arange(WIDTH)[None, :] < given.length[:, None])
    values = partial(chain_values, **ARITHMETIC, modulus=10, digits=1)
    found = with_steps(given, reward=outcomes, values=values, think_close=END_THINK)
    steps = [[n for n in range(WIDTH) if row[n]] for row in np.asarray(found.step_end)]
    assert steps == [[0, 1, 6], [0, 1, 5], [0, 1, 2, 4], [3], [0, 1], [0, 1, 3]]
    paid = [np.asarray(found.token)[n, places].tolist() for n, places in enumerate(steps)]
    end = pytest.approx(1.2)
    assert paid == [[1, 1, end], [1, 0, end], [0, 1, 0, end], [end], [1, end], [1, 0, end]]
    assert np.all(np.asarray(found.token)[~np.asarray(found.step_end)] == 0)
    assert found.valid.all() and found.outcome.tolist() == [end] * 6


def test_a_number_of_several_digits_is_right_as_a_whole():
    prompts = asked(*[[9, 8, PLUS, 5, EQUALS]] * 3)  # 103 = 03 modulo 100
    given = rows([0, 3, END_THINK, EOS], [0, 4, END_THINK, EOS], [1, 3, 0, END_THINK, EOS]).replace(prompts=prompts)
    given = given.replace(mask=jnp.arange(WIDTH)[None, :] < given.length[:, None])
    values = partial(chain_values, **ARITHMETIC, modulus=100, digits=2)
    found = with_steps(given, reward=outcomes, values=values, think_close=END_THINK)
    assert np.asarray(found.token)[:, 1].tolist() == [1, 0, 0]
    assert [np.flatnonzero(row).tolist() for row in np.asarray(found.step_end)] == [[1, 3], [1, 3], [1, 4]]
