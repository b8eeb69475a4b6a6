import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data import Chain, records
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import (
    DisagreementError,
    Record,
    Score,
    accuracy,
    compare_twins,
    find_answer,
    find_result,
    r1_format,
    score,
    status_counts,
)
from grpo_jax.types import Reward, Rollouts

TASK = Chain(operands=4, fewest=2, slack=4)


def record(completion: str, answer: str = "8", stopped: bool = True) -> Record:
    return Record("2*4=<think>", completion, (), answer, {}, stopped)


def adversarial(task: Chain, count: int) -> Rollouts:
    """Demonstrations, those with another answer, those with random edits, and random strings rich in tags, by turns."""
    random = np.random.default_rng(0)
    shown = task.demonstrations(0, np.arange(count))
    tokens, length = shown.tokens.copy(), shown.length.copy()
    special = task.tokenizer.special
    rich = np.array([*special.values(), special["<answer>"], special["</answer>"], *range(10)])
    width = tokens.shape[1]
    for n in range(count):
        if n % 4 == 1:
            tokens[n, np.flatnonzero(tokens[n] == special["<answer>"]) + 1] = random.integers(0, 10)
        if n % 4 == 2:
            for _ in range(random.integers(1, 4)):
                tokens[n, random.integers(0, width)] = random.choice(rich)
        if n % 4 == 3:
            tokens[n] = random.choice(rich, width)
        if n % 4 > 1:
            length[n] = random.integers(0, width + 1)
    last = tokens[np.arange(count), np.maximum(length - 1, 0)]
    rows = np.arange(count, dtype=np.int32)
    zeros = np.zeros(tokens.shape, np.float32)
    # A row stops at its last token or not at all; an <eos> before that is a token like any other.
    stopped = (length > 0) & (last == task.tokenizer.eos)
    leaves: list[Any] = [rows, 0 * rows, tokens, length, stopped, zeros == 0, zeros, zeros, 0 * rows]
    return Rollouts(shown.prompts, *leaves)


def right_answers_everywhere(rollouts: Rollouts, task: Chain) -> Rollouts:
    """The same rows; in every second four each digit behind an opening tag is made the right answer."""
    tokens, answers = np.array(rollouts.tokens), task.answers(rollouts.prompts)
    opening = task.tokenizer.special["<answer>"]
    for n in range(len(answers)):
        if n // 4 % 2:
            continue
        after = np.flatnonzero(tokens[n, :-1] == opening) + 1
        tokens[n, after[tokens[n, after] < 10]] = int(answers[n])
    return rollouts.replace(tokens=tokens)


def test_token_and_text_rewards_agree_on_every_one_of_thousands_of_adversarial_completions():
    rollouts = right_answers_everywhere(adversarial(TASK, 6000), TASK)
    token = jax.jit(TASK.reward(format_weight=0.2))(jax.tree.map(jnp.asarray, rollouts))
    rows = records(TASK, rollouts)
    text, scores = score(rows, TASK.text_rewards(format_weight=0.2))
    compare_twins(token, text, rows)
    assert status_counts(scores)["error"] == 0
    # The comparison means something: every combination of verdicts occurs often, also outside the demonstrations.
    edited = np.arange(6000) % 4 > 0
    for right in (0, 1):
        for formed in (0, 1):
            both = (text.components["accuracy"] == right) & (text.components["format"] == formed)
            assert (both & edited).sum() >= 20, (right, formed)


def test_a_single_differing_row_is_found_and_its_completion_printed():
    rollouts = adversarial(TASK, 12)
    token = jax.jit(TASK.reward())(jax.tree.map(jnp.asarray, rollouts))
    rows = records(TASK, rollouts)
    text, _ = score(rows, TASK.text_rewards())
    compare_twins(token, text, rows)
    wrong = np.array(text.components["format"])
    wrong[4] = 1 - wrong[4]
    with pytest.raises(DisagreementError, match="component 'format' of row 4") as error:
        compare_twins(token, text.replace(components={**text.components, "format": wrong}), rows)
    assert repr(rows[4].completion) in str(error.value) and repr(rows[4].prompt) in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"outcome": np.array([1.0, 1.5], np.float32)}, "outcome of row 1: 1.0 on tokens, 1.5 on text"),
        ({"valid": np.array([False, True])}, "valid of row 0"),
        ({"components": {"b": np.ones(2)}}, "must be the same"),
    ],
)
def test_outcomes_validity_and_names_are_compared_too(change: dict, complaint: str):
    same = Reward(outcome=jnp.ones(2), valid=jnp.ones(2, bool), components={"a": jnp.ones(2)})
    compare_twins(same, same, [record(""), record("")])
    with pytest.raises(DisagreementError, match=complaint):
        compare_twins(same, same.replace(**change), [record(""), record("")])


@pytest.mark.parametrize(
    ("completion", "stopped", "answer"),
    [
        ("x</think><answer>8</answer>", True, "8"),
        ("<answer>7</answer><answer>8</answer>", True, "8"),
        ("<answer>7<answer>8</answer>9</answer>", True, "8"),
        ("<answer>8", True, "8"),
        ("<answer>8", False, None),
        ("<answer>8</answer>", False, "8"),
        ("</answer>8", True, None),
        ("<answer>", True, ""),
        ("", True, None),
    ],
)
def test_the_answer_follows_the_last_opening_tag(completion: str, stopped: bool, answer: str | None):
    assert find_answer(record(completion, stopped=stopped)) == answer


def test_accuracy_compares_without_surrounding_space_and_says_what_it_could_not_read():
    assert accuracy(record("<answer> 8\n</answer>")) == Score(1.0)
    assert accuracy(record("<answer>9</answer>")) == Score(0.0)
    assert accuracy(record("8")) == Score(0.0, "unparsable", "no answer")
    assert accuracy(record("<answer> </answer>")) == Score(0.0, "unparsable", "empty answer")


@pytest.mark.parametrize(
    ("given", "right", "tolerance", "value"),
    [
        ("0.50", "1/2", 0.0, 1.0),
        ("50%", "1/2", 0.0, 1.0),
        ("1,000", "1000", 0.0, 1.0),
        ("0.3333", "1/3", 0.0, 0.0),
        # |0.3333 - 1/3| = 0.0000333..., allowed 1e-4 * max(1, 1/3) = 1e-4.
        ("0.3333", "1/3", 1e-4, 1.0),
        # |1001 - 1000| = 1, allowed 1e-3 * 1000 = 1, the bound included; 1002 is out.
        ("1001", "1000", 1e-3, 1.0),
        ("1002", "1000", 1e-3, 0.0),
    ],
)
def test_numeric_answers_compare_as_numbers(given: str, right: str, tolerance: float, value: float):
    got = accuracy(record(f"<answer>{given}</answer>", answer=right), match="numeric", tolerance=tolerance)
    assert got == Score(value)


def test_a_given_answer_that_is_no_number_is_unparsable_and_a_right_one_is_an_error_of_the_dataset():
    got = accuracy(record("<answer>eight</answer>"), match="numeric")
    assert (got.value, got.status) == (0.0, "unparsable")
    with pytest.raises(ValueError, match="answer: 'eight' is not a number; use match='exact'"):
        accuracy(record("<answer>8</answer>", answer="eight"), match="numeric")
    with pytest.raises(ValueError, match="match: got 'fuzzy'"):
        accuracy(record(""), match="fuzzy")


@pytest.mark.parametrize(
    ("completion", "stopped", "value"),
    [
        ("3</think><answer>8</answer>", True, 1),
        ("</think><answer>8</answer>", True, 1),
        ("3</think><answer>8</answer>", False, 0),
        ("3</think><answer> </answer>", True, 0),
        ("3</think>\n<answer>8</answer>", True, 0),
        ("3</think><answer>8</answer>\n", True, 0),
        ("3</think></think><answer>8</answer>", True, 0),
        ("<think>3</think><answer>8</answer>", True, 0),
        ("3</think><answer>8</answer><answer>8</answer>", True, 0),
        ("3</think><answer>8<eos></answer>", True, 0),
        ("<answer>8</answer></think>", True, 0),
        ("3<answer>8</answer>", True, 0),
        ("</think><answer>", True, 0),
        ("", True, 0),
    ],
)
def test_the_format_in_text_is_exact(completion: str, stopped: bool, value: int):
    assert r1_format(record(completion, stopped=stopped)) == value


def raising(record: Record) -> float:
    raise RuntimeError("out of order")


def leaving(record: Record) -> float:
    raise SystemExit(3)


class Unconvertible:
    shape = ()

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def unspeakable(record: Record) -> float:
    raise Unspeakable


BROKEN = {
    "nothing": None,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "text": "1.0",
    "what cannot become an array": Unconvertible(),
    "what cannot even be printed": 10**5000,
    "complex": 1j,
    "a list": [1.0],
    "an array": np.ones(1),
    "an array of text without axes": np.array("1"),
    "a whole number too large for a float": 10**400,
    "too large for float32": 1e39,
    "a score without a number": Score(float("nan")),
    "a score of an unknown status": Score(1.0, "fine"),
    "a score that failed": Score(1.0, "error"),
}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
def test_a_reward_that_gives_no_number_makes_the_row_invalid_and_not_zero(value):
    def broken(record: Record):
        return value if record.answer == "bad" else 0.5

    reward, scores = score([record("", "good"), record("", "bad")], {"r": (broken, 2.0)})
    assert reward.valid.tolist() == [True, False]
    assert reward.outcome[0] == 1.0
    assert [s.status for s in scores["r"]] == ["ok", "error"]


@pytest.mark.parametrize("reward", [raising, leaving, unspeakable])
def test_a_reward_that_raises_or_leaves_makes_the_row_invalid_with_the_reason(reward):
    got, scores = score([record("")], {"r": (reward, 1.0)})
    assert got.valid.tolist() == [False]
    assert scores["r"][0].status == "error"
    assert scores["r"][0].detail in ("RuntimeError: out of order", "SystemExit: 3", "Unspeakable")


@pytest.mark.parametrize("value", [1, True, 1.0, np.float32(1), np.int64(1), np.bool_(True), np.array(1.0), Score(1.0)])
def test_any_kind_of_one_number_is_a_value(value):
    def reward(record: Record):
        return value

    got, _ = score([record("")], {"r": (reward, 1.0)})
    assert got.valid.tolist() == [True] and got.outcome.tolist() == [1.0]


def test_a_timeout_is_not_an_error_and_not_valid():
    def slow(record: Record) -> Score:
        return Score(0.0, "timeout", "10 s")

    got, scores = score([record("")], {"r": (slow, 1.0)})
    assert got.valid.tolist() == [False]
    assert status_counts(scores) == {"ok": 0, "timeout": 1, "error": 0, "unparsable": 0}


def test_an_unreadable_completion_counts_as_zero():
    got, scores = score([record("8")], {"accuracy": (accuracy, 1.0)})
    assert got.valid.tolist() == [True] and got.outcome.tolist() == [0.0]
    assert status_counts(scores)["unparsable"] == 1


def test_outcomes_are_weighted_sums_and_one_failure_spoils_the_row_only():
    def half(record: Record) -> float:
        return 0.5

    def picky(record: Record) -> float:
        return 1.0 if record.answer else raising(record)

    got, _ = score([record("", "x"), record("", "")], {"half": (half, 2.0), "picky": (picky, 0.25)})
    # 2 * 0.5 + 0.25 * 1
    assert got.outcome[0] == 1.25 and got.valid.tolist() == [True, False]
    assert got.components["half"].tolist() == [0.5, 0.5]


def test_no_records_give_no_rows():
    got, scores = score([], {"accuracy": (accuracy, 1.0)})
    assert got.outcome.shape == got.valid.shape == (0,) and scores["accuracy"] == ()


CITY = {"options": ["Rome", "Paris", "Bern"], "match": "choice"}


def choice(answer: str, right: str = "B", **settings: Any) -> Score:
    metadata = settings.pop("metadata", CITY)
    return accuracy(Record("q", f"</think><answer>{answer}</answer>", (), right, metadata), match="choice", **settings)


def test_a_choice_is_right_by_its_letter_or_by_the_text_of_its_option():
    assert [choice(answer).value for answer in ("B", "(b)", "option B", "Paris", "B) Paris")] == [1.0] * 5
    assert [choice(answer) for answer in ("A", "Rome", "the answer is C")] == [Score(0.0)] * 3
    assert [choice("b", right=right).value for right in ("B", "(B)", "paris")] == [1.0] * 3
    assert choice("y", right="X", metadata={"key": {"X": "no", "Y": "yes"}}, options="key") == Score(0.0)
    assert choice("yes", right="Y", metadata={"key": {"X": "no", "Y": "yes"}}, options="key") == Score(1.0)


@pytest.mark.parametrize("answer", ["A good answer is B", "A or B", "B) Rome", "D", "Berlin"])
def test_a_choice_that_is_not_clear_is_unparsable_and_earns_nothing(answer: str):
    assert choice(answer) == Score(0.0, "unparsable", f"not one option: {answer!r}")


def test_without_options_in_the_metadata_a_choice_is_a_letter():
    assert [choice(answer, metadata={}).value for answer in ("b", "C")] == [1.0, 0.0]
    assert choice("Paris", metadata={}).status == "unparsable"


@pytest.mark.parametrize(
    ("right", "metadata", "complaint"),
    [
        ("Berlin", CITY, "answer: 'Berlin' is not a letter or the text of one option"),
        ("Paris", {}, "answer: 'Paris' is not a letter"),
        ("D", CITY, "answer: 'D' is not a letter or the text of one option"),
        ("B", {"options": "Rome"}, "options: got 'Rome'; allowed is a list"),
    ],
)
def test_a_line_whose_choice_makes_no_sense_is_an_error_of_the_data(right: str, metadata: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        choice("B", right=right, metadata=metadata)


def test_a_line_may_state_how_its_answer_is_compared():
    def stated(answer: str, right: str, metadata: dict) -> Score:
        return accuracy(Record("q", f"<answer>{answer}</answer>", (), right, metadata), match="stated")

    assert stated("paris", "B", CITY) == Score(1.0)
    assert stated("0.5", "1/2", {"match": "numeric"}) == Score(1.0)
    assert [stated("0.5", "1/2", metadata).value for metadata in ({}, {"match": "exact"})] == [0.0, 0.0]
    with pytest.raises(ValueError, match='match, stated by the key "match" of the line: got 3; allowed are'):
        stated("1", "1", {"match": 3})
    with pytest.raises(ValueError, match=r"match: got 'near'; allowed are .*'stated'"):
        accuracy(record("<answer>8</answer>"), match="near")


@pytest.mark.parametrize(
    ("completion", "answer", "value", "status"),
    [
        ("so </think><answer>1/2</answer>", r"\frac{1}{2}", 1.0, "ok"),
        (r"so </think>The answer is $\boxed{\frac12}$.", "0.5", 1.0, "ok"),
        (r"</think><answer>$\boxed{0.5}$</answer>", "1/2", 1.0, "ok"),
        (r"</think><answer>3</answer> \boxed{2}", "2", 0.0, "ok"),  # the tags say what the answer is
        (r"\boxed{2} no: \boxed{3}", "3", 1.0, "ok"),
        (r"\boxed{3} </think> I am not sure", "3", 0.0, "unparsable"),  # a box inside the thought is no answer
        ("the answer is 3", "3", 0.0, "unparsable"),
        (r"\boxed{}", "3", 0.0, "unparsable"),
        (r"\boxed{" + "1" * 2000 + "}", "3", 0.0, "unparsable"),
        ("</think><answer>5 apples</answer>", "5", 1.0, "ok"),
        ("</think><answer>(1, 3)</answer>", "(1, 2)", 0.0, "ok"),
    ],
)
def test_mathematical_answers_are_read_from_tags_or_boxes(completion: str, answer: str, value: float, status: str):
    got = accuracy(record(completion, answer), match="math")
    assert (got.value, got.status) == (value, status)


def test_a_right_answer_that_mathematics_cannot_read_is_an_error_of_the_data():
    with pytest.raises(ValueError, match="is not an answer to read"):
        accuracy(record("<answer>1</answer>", "$$"), match="math")


def test_mathematical_answers_are_equal_up_to_the_tolerance():
    given = record("<answer>(3.14, 1)</answer>", "(3.1416, 1)")
    assert [accuracy(given, match="math", tolerance=t).value for t in (0.0, 1e-3, 1e-4)] == [0.0, 1.0, 0.0]


def test_a_box_that_was_closed_counts_even_where_the_completion_was_cut_off():
    assert find_result(record(r"\boxed{7} and so", stopped=False)) == "7"
    assert find_result(record(r"<answer>7 \boxed{8", stopped=False)) is None


@pytest.mark.parametrize(
    ("completion", "strict", "spaces"),
    [
        ("t</think><answer>1</answer>", 1, 1),
        ("t</think>\n<answer>1</answer>", 0, 1),
        ("<think>t</think>\n\n<answer>\n1\n</answer>\n", 0, 1),
        ("t</think> so <answer>1</answer>", 0, 0),
        ("t</think>\n<answer>1</answer> bye", 0, 0),
        ("<think><think>t</think><answer>1</answer>", 0, 0),
        ("t</think>\n<answer> </answer>", 0, 0),
        ("t</think></think>\n<answer>1</answer>", 0, 0),
    ],
)
def test_tags_that_are_text_may_have_white_space_between_them(completion: str, strict: int, spaces: int):
    assert r1_format(record(completion)) == strict and r1_format(record(completion), spaces=True) == spaces


def test_worker_processes_see_the_metadata_that_this_process_sees():
    given = [
        Record("q", f"<answer>{said}</answer>", (n,), right, metadata)
        for n, (said, right, metadata) in enumerate(
            [
                ("paris", "B", CITY),
                ("A", "B", CITY),
                ("y", "B", CITY),
                (".5", "1/2", {"match": "numeric"}),
                ("1", "1", {}),
            ]
        )
    ]
    rewards = {"accuracy": (partial(accuracy, match="stated"), 1.0)}
    here, scores = score(given, rewards)
    with Pool(rewards, workers=2) as pool:
        there, others = pool.score(given)
    assert here.outcome.tolist() == there.outcome.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert scores == others and scores["accuracy"][2].status == "unparsable"


def test_scoring_thousands_of_rows_takes_no_time():
    rows = [record("12345</think><answer>8</answer>")] * 2000
    start = time.process_time()
    score(rows, TASK.text_rewards())
    assert time.process_time() - start < 1.0
