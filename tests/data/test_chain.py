import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data import Chain, assert_disjoint
from grpo_jax.data.counter import text_hash
from grpo_jax.types import Rollouts
from tests.laws.tiny import record

TASK = Chain()
LONG = Chain(operands=5, fewest=2, modulus=100, operators="*-", slack=3)
TASKS = {"default": TASK, "several lengths and digits": LONG}
DRAWS = np.arange(400)


def texts(task: Chain, prompts) -> list[str]:
    return [task.prompt_text(prompts, i) for i in range(len(prompts.length))]


def completions(task: Chain, shown) -> list[str]:
    rows = zip(shown.tokens, shown.length, strict=True)
    return [task.tokenizer.decode(tokens[:length]) for tokens, length in rows]


def running_values(expression: str, modulus: int) -> list[int]:
    """The values after each operation, by Python integers and a regular expression."""
    first, *rest = re.findall(r"([+*-]?)(\d+)", expression)
    value, values = int(first[1]), []
    for sign, digits in rest:
        value = operated(value, sign, int(digits)) % modulus
        values.append(value)
    return values


def operated(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def test_the_default_problem_has_six_digits_and_five_operators():
    found = texts(TASK, TASK.draw(0, DRAWS))
    assert all(re.fullmatch(r"(\d[-+*]){5}\d=<think>", text) for text in found)
    assert TASK.prompt_width == 13 and TASK.tokenizer.vocab_size == 20
    # Five values, three tags, an answer and the end, and one of slack.
    assert TASK.completion_width == 5 + 3 + 1 + 1 + 1


def test_a_problem_may_have_several_lengths_and_numbers_of_two_digits():
    prompts = LONG.draw(0, DRAWS)
    found = texts(LONG, prompts)
    assert all(re.fullmatch(r"(\d\d[-*]){1,4}\d\d=<think>", text) for text in found)
    counts = np.bincount([len(re.findall(r"\d\d", text)) for text in found], minlength=6)
    assert (counts[2:] > 60).all()
    column = np.arange(LONG.prompt_width)
    assert (prompts.tokens[column >= prompts.length[:, None]] == LONG.tokenizer.pad).all()


@pytest.mark.parametrize(
    ("prompt", "modulus", "answer"),
    [
        # 0, 6, -1 = 9, 7, 7
        ("7-7+6-7-2*1=<think>", 10, "7"),
        # No precedence: (1 + 2) * 3 = 9, not 7.
        ("1+2*3=<think>", 10, "9"),
        # 99 * 99 = 9801 = 1 modulo 100, then 1 - 2 = -1 = 99.
        ("99*99-02=<think>", 100, "99"),
        ("03-01=<think>", 100, "02"),
    ],
)
def test_expressions_are_read_from_left_to_right_modulo_m(prompt: str, modulus: int, answer: str):
    task = Chain(operands=6, fewest=2, modulus=modulus)
    ids = task.tokenizer.encode(prompt, specials=True)
    tokens = np.full((1, task.prompt_width), task.tokenizer.pad, np.int32)
    tokens[0, : len(ids)] = ids
    prompts = task.draw(0, np.arange(1)).replace(tokens=tokens, length=np.array([len(ids)], np.int32))
    assert task.answers(prompts) == [answer]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_answers_are_the_last_running_value(task: Chain):
    prompts = task.draw(3, DRAWS)
    expected = [running_values(t.split("=")[0], task.modulus)[-1] for t in texts(task, prompts)]
    assert task.answers(prompts) == [f"{value:0{task.digits}d}" for value in expected]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_verifier_on_token_ids_agrees_with_the_answers_from_text(task: Chain):
    prompts = task.draw(1, np.arange(3000))
    expected = task.reward().keywords["rewards"][0][1].keywords["expected"]
    tokens, length = jax.jit(expected)(prompts)
    assert np.asarray(length).tolist() == [task.digits] * 3000
    assert [task.tokenizer.decode(row) for row in np.asarray(tokens)] == task.answers(prompts)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_draw_is_a_function_of_seed_and_number_alone(task: Chain, split: str):
    whole = task.draw(5, DRAWS, split)
    order = np.array([7, 399, 7, 0])
    part = task.draw(5, order, split)
    for name in ("tokens", "length", "draw", "row"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[order])
        assert getattr(part, name).dtype == np.int32
    assert part.draw.tolist() == part.row.tolist() == order.tolist()
    assert texts(task, task.draw(6, DRAWS, split)) != texts(task, whole)


def test_operators_and_digits_are_uniform():
    found = "".join(texts(TASK, TASK.draw(0, np.arange(4000))))
    # 24,000 digits, 2,400 each, standard deviation sqrt(24000 * 0.1 * 0.9) = 46.5; 20,000 operators, 6,667 each,
    # standard deviation sqrt(20000 * 2/9) = 66.7; five of them.
    assert all(abs(found.count(digit) - 2400) < 5 * 46.5 for digit in "0123456789")
    assert all(abs(found.count(operator) - 20000 / 3) < 5 * 66.7 for operator in "+-*")


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_training_draw_is_a_held_out_problem(seed: int):
    heldout = TASK.heldout(2048)
    assert_disjoint(TASK, heldout, seed=seed, draws=20_000)
    assert len(set(texts(TASK, heldout))) == 2048
    assert TASK.is_heldout(heldout).all()


def test_one_problem_in_sixteen_is_held_out():
    # 30 * 30 * 3 = 2,700 problems in all: 168.75 expected, standard deviation sqrt(2700 * 1/16 * 15/16) = 12.6.
    task = Chain(operands=2, modulus=30)
    with pytest.raises(ValueError, match="allowed are 1 to") as error:
        task.heldout(2700)
    count = int(str(error.value).split("allowed are 1 to ")[1].split(",")[0])
    assert abs(count - 2700 / 16) < 5 * 12.6
    # That many can be had, and every one of the others is a training problem.
    held = set(texts(task, task.heldout(count)))
    drawn = set(texts(task, task.draw(0, np.arange(60_000))))
    assert len(held) == count and len(drawn) == 2700 - count and not held & drawn


def test_the_held_out_set_is_fixed_and_can_be_drawn_again_by_number():
    first, again, other = TASK.heldout(64), TASK.heldout(64), TASK.heldout(64, name="development")
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.tokens, TASK.heldout(100).tokens[:64])
    np.testing.assert_array_equal(
        first.tokens, TASK.draw(text_hash("heldout"), np.asarray(first.draw), "heldout").tokens
    )
    assert texts(TASK, first) != texts(TASK, other)
    assert len(set(first.draw.tolist())) == 64


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_demonstration_answers_rightly_and_shows_none_half_or_all_of_the_chain(task: Chain):
    shown = task.demonstrations(0, np.arange(3000))
    digits = task.digits
    kinds = np.zeros(3)
    for prompt, completion in zip(texts(task, shown.prompts), completions(task, shown), strict=True):
        values = [f"{v:0{digits}d}" for v in running_values(prompt.split("=")[0], task.modulus)]
        assert completion.endswith("<eos>")
        bare = re.sub(r"<[^>]*>", "", completion)
        chains = ["", "".join(values[1::2]), "".join(values)]
        assert bare in [chain + values[-1] for chain in chains]
        kinds[[chain + values[-1] for chain in chains].index(bare)] += 1
    if task is TASK:
        # Standard deviation of a share of 3,000 is at most sqrt(0.25 / 3000) = 0.0092; five of them.
        np.testing.assert_allclose(kinds / 3000, [0.45, 0.25, 0.30], atol=5 * 0.0092)


def test_a_quarter_of_the_demonstrations_lacks_one_tag_each_equally_often():
    found = completions(TASK, TASK.demonstrations(0, np.arange(6000)))
    tags = ("</think>", "<answer>", "</answer>")
    missing = np.array([sum(tag not in text for text in found) for tag in tags])
    assert all(sum(tag not in text for tag in tags) <= 1 for text in found)
    # 500 each expected, standard deviation sqrt(6000 * 1/12 * 11/12) = 21.4.
    assert abs(missing - 500).max() < 5 * 21.4


def test_a_full_demonstration_is_the_chain_between_the_tags():
    task = Chain(styles=(0.0, 0.0, 1.0), dropped_tag=0.0)
    shown = task.demonstrations(0, np.arange(50))
    for prompt, completion in zip(texts(task, shown.prompts), completions(task, shown), strict=True):
        values = running_values(prompt.split("=")[0], 10)
        chain = "".join(str(v) for v in values)
        assert completion == f"{chain}</think><answer>{values[-1]}</answer><eos>"


def test_demonstrations_are_training_problems_of_their_draw():
    shown = TASK.demonstrations(9, DRAWS)
    np.testing.assert_array_equal(shown.prompts.tokens, TASK.draw(9, DRAWS).tokens)
    assert shown.tokens.shape == (400, TASK.completion_width) and shown.tokens.dtype == np.int32
    part = TASK.demonstrations(9, DRAWS[5:6])
    assert part.length[0] == shown.length[5] and part.tokens[0].tolist() == shown.tokens[5].tolist()


def test_sixty_four_prompts_cost_less_than_a_millisecond_of_processor_time():
    TASK.draw(0, np.arange(64))
    fastest = np.inf
    for k in range(30):
        start = time.process_time_ns()
        TASK.draw(0, np.arange(64) + 64 * k)
        fastest = min(fastest, time.process_time_ns() - start)
    assert fastest < 1_000_000


def test_a_task_too_small_to_be_split_says_so():
    tiny = Chain(operands=2, modulus=2, operators="+")
    heldout_exists = tiny.is_heldout(
        tiny.draw(0, np.arange(1)).replace(
            tokens=np.array([tiny.tokenizer.encode(f"{a}+{b}=<think>", specials=True) for a in "01" for b in "01"]),
            length=np.full(4, 5, np.int32),
        )
    ).any()
    assert not heldout_exists, "the hash changed: choose other settings without a held-out problem"
    with pytest.raises(ValueError, match="too small to be split"):
        tiny.draw(0, np.arange(1), "heldout")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"operands": 1}, "operands"),
        ({"fewest": 7}, "fewest"),
        ({"modulus": 1}, "modulus"),
        ({"modulus": 1001}, "modulus"),
        ({"operators": "+/"}, "operators"),
        ({"operators": "++"}, "operators"),
        ({"operators": ""}, "operators"),
        ({"styles": (0.5, 0.5, 0.5)}, "styles"),
        ({"dropped_tag": 1.5}, "dropped_tag"),
        ({"slack": -1}, "slack"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict, name: str):
    with pytest.raises(ValueError, match=rf"Chain\.{name}: got .*allowed"):
        Chain(**settings)


@pytest.mark.parametrize("draws", [np.array([-1]), np.array([2**31]), np.array([0.5]), np.array([[1]])])
def test_draw_numbers_out_of_range_are_refused(draws: np.ndarray):
    with pytest.raises(ValueError, match="draws: got"):
        TASK.draw(0, draws)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split: got 'test'"):
        TASK.draw(0, DRAWS, "test")
    with pytest.raises(ValueError, match="count: got 0"):
        TASK.heldout(0)


@pytest.mark.parametrize("ending", ["", "=", "=<think>"])
def test_a_typed_problem_becomes_the_ids_of_a_drawn_one(ending: str):
    prompts = LONG.draw(0, np.arange(3))
    for index, text in enumerate(texts(LONG, prompts)):
        ids, row = LONG.read_prompt(text.removesuffix("=<think>") + ending)
        assert ids == prompts.tokens[index, : prompts.length[index]].tolist() and row is not None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("7-7x2", "character 'x' at position 3 is not in the alphabet"),
        ("7-", "allowed are numbers below 10 of 1 digits"),
        ("7", "allowed are numbers below 10"),
        ("12-7", "allowed are numbers below 10"),
        ("7<eos>-7", "allowed are numbers below 10"),
        ("1+2+3+4+5+6+7", "of 15 tokens; allowed are at most 13, 6 numbers"),
    ],
)
def test_what_cannot_be_a_problem_is_refused(text: str, complaint: str):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        TASK.read_prompt(text)


def test_a_typed_number_is_below_the_modulus_and_its_operator_occurs():
    for text in ("7+3", "99-12"):
        with pytest.raises(ValueError, match="allowed are numbers below"):
            Chain(modulus=60, operators="-").read_prompt(text)
    assert Chain(modulus=60, operators="-").read_prompt("59-12")[0]


def test_the_reward_of_a_process_is_that_of_the_outcome_with_steps():
    task = Chain(styles=(0.0, 0.0, 1.0), dropped_tag=0.0)
    shown = task.demonstrations(0, np.arange(3))
    found = rewarded(task, shown, task.process_reward(format_weight=0.2))
    outcome = rewarded(task, shown, task.reward(format_weight=0.2))
    np.testing.assert_array_equal(found.outcome, outcome.outcome)
    # Five values of one digit, all right, and the end: </think>, <answer>, a digit, </answer>, <eos> follow them.
    steps = [[0, 1, 2, 3, 4, 9]] * 3
    assert [np.flatnonzero(row).tolist() for row in np.asarray(found.step_end)] == steps
    np.testing.assert_allclose(np.asarray(found.token)[:, steps[0]], [[1, 1, 1, 1, 1, 1.2]] * 3, rtol=1e-6)


def rewarded(task: Chain, shown, reward):
    """What `reward` says of demonstrations."""
    rows, width = shown.tokens.shape
    number, nothing = np.arange(rows, dtype=np.int32), np.zeros((rows, width), np.float32)
    rollouts = record(
        Rollouts,
        prompts=shown.prompts,
        prompt=number,
        sample=np.zeros_like(number),
        tokens=shown.tokens,
        length=shown.length,
        stopped=np.ones(rows, bool),
        mask=np.arange(width)[None, :] < shown.length[:, None],
        logp=nothing,
        logp_full=nothing,
        version=number,
    )
    return reward(jax.tree.map(jnp.asarray, rollouts))
