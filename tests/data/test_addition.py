import re
from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax.data import Addition, Chain, assert_disjoint

TASK = Addition()
SMALL = Addition(digits=2, styles=(0.2, 0.3, 0.5), dropped_tag=0.5, slack=3)
TASKS = {"default": TASK, "two digits": SMALL}
DRAWS = np.arange(600)


def texts(task: Addition, prompts) -> list[str]:
    return [task.prompt_text(prompts, index) for index in range(len(prompts.length))]


def completions(task: Addition, shown) -> list[str]:
    rows = zip(shown.tokens, shown.length, strict=True)
    return [task.tokenizer.decode(tokens[:length]) for tokens, length in rows]


def on_paper(first: str, second: str) -> tuple[str, str]:
    """Chain and sum of two numbers, with strings and no number above 19."""
    chain, total, carry = "", "", 0
    for a, b in zip(reversed(first), reversed(second), strict=True):
        place = int(a) + int(b) + carry
        carry = 1 if place > 9 else 0
        chain += f"{a}{b}{place:02d}"
        total = str(place)[-1] + total
    return chain, f"{carry}{total}"


def test_the_example_of_the_module_is_right():
    # 9 + 6 = 15; 2 + 1 + 1 = 4; 7 + 8 = 15; 4 + 5 + 1 = 10: the ones of the sums, from the last, are 0 5 4 5.
    assert on_paper("4729", "5816") == ("9615210478154510", "10545")
    ids = TASK.read_prompt("4729+5816")[0]
    prompts = TASK.draw(0, np.arange(1)).replace(tokens=np.array([ids], np.int32))
    assert TASK.answers(prompts) == ["10545"]
    assert TASK.metadata(prompts) == [{"carries": 3}]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_problem_is_two_numbers_of_the_given_digits(task: Addition):
    prompts = task.draw(0, DRAWS)
    number = f"[0-9]{{{task.digits}}}"
    assert all(re.fullmatch(rf"{number}\+{number}=<think>", text) for text in texts(task, prompts))
    assert prompts.tokens.shape == (600, 2 * task.digits + 3) and prompts.tokens.dtype == np.int32
    assert set(prompts.length.tolist()) == {2 * task.digits + 3}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_both_verifiers_know_the_sum_that_is_found_on_paper(task: Addition):
    prompts = task.draw(1, DRAWS)
    terms = [re.findall("[0-9]+", text) for text in texts(task, prompts)]
    expected = [on_paper(*pair)[1] for pair in terms]
    assert task.answers(prompts) == expected
    tokens, length = jax.jit(task.reward().keywords["rewards"][0][1].keywords["expected"])(prompts)
    assert [task.tokenizer.decode(row) for row in np.asarray(tokens)] == expected
    assert set(np.asarray(length).tolist()) == {task.digits + 1}
    carries = [on_paper(*pair)[0][2::4].count("1") for pair in terms]
    assert [metadata["carries"] for metadata in task.metadata(prompts)] == carries


def test_the_largest_numbers_of_the_largest_task_are_added_without_overflow():
    task = Addition(digits=8)
    ids = task.read_prompt("99999999+99999999")[0]
    prompts = task.draw(0, np.arange(1)).replace(tokens=np.array([ids], np.int32))
    assert task.answers(prompts) == ["199999998"]
    tokens, _ = task.reward().keywords["rewards"][0][1].keywords["expected"](jax.tree.map(jax.numpy.asarray, prompts))
    assert task.tokenizer.decode(np.asarray(tokens)[0]) == "199999998"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_demonstration_is_right_and_shows_none_half_or_all_of_the_chain(task: Addition):
    shown = task.demonstrations(0, np.arange(3000))
    kinds = np.zeros(3)
    for prompt, completion in zip(texts(task, shown.prompts), completions(task, shown), strict=True):
        chain, total = on_paper(*re.findall("[0-9]+", prompt))
        assert completion.endswith("<eos>")
        chains = ["", chain[: len(chain) // 2], chain]
        kinds[[part + total for part in chains].index(re.sub(r"<[^>]*>", "", completion))] += 1
    # Standard deviation of a share of 3,000 is at most sqrt(0.25 / 3000) = 0.0092; five of them.
    np.testing.assert_allclose(kinds / 3000, task.styles, atol=5 * 0.0092)


def test_a_full_demonstration_is_the_chain_between_the_tags_and_fits():
    task = Addition(styles=(0.0, 0.0, 1.0), dropped_tag=0.0, slack=0)
    shown = task.demonstrations(0, np.arange(50))
    for prompt, completion in zip(texts(task, shown.prompts), completions(task, shown), strict=True):
        chain, total = on_paper(*re.findall("[0-9]+", prompt))
        assert completion == f"{chain}</think><answer>{total}</answer><eos>"
    assert set(shown.length.tolist()) == {task.completion_width} == {16 + 5 + 3 + 1}


def test_a_tag_is_missing_as_often_as_said():
    found = completions(SMALL, SMALL.demonstrations(0, np.arange(3000)))
    missing = np.array([sum(tag not in text for text in found) for tag in ("</think>", "<answer>", "</answer>")])
    # 500 each expected, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4.
    assert abs(missing - 500).max() < 5 * 20.4


def test_demonstrations_are_training_problems_of_their_draw():
    shown = TASK.demonstrations(9, DRAWS)
    np.testing.assert_array_equal(shown.prompts.tokens, TASK.draw(9, DRAWS).tokens)
    part = TASK.demonstrations(9, DRAWS[5:6])
    assert part.tokens[0].tolist() == shown.tokens[5].tolist()


def test_no_training_draw_is_a_held_out_problem():
    heldout = TASK.heldout(2048)
    assert_disjoint(TASK, heldout, seed=1, draws=20_000)
    order = np.array([7, 399, 7])
    np.testing.assert_array_equal(TASK.draw(5, order).tokens, TASK.draw(5, DRAWS).tokens[order])


def test_digits_are_uniform():
    digits = np.concatenate([TASK.draw(0, np.arange(3000)).tokens[:, [0, 1, 2, 3, 5, 6, 7, 8]]]).ravel()
    # 24,000 digits, 2,400 each, standard deviation sqrt(24000 * 0.1 * 0.9) = 46.5.
    assert abs(np.bincount(digits, minlength=10)[:10] - 2400).max() < 5 * 46.5


@pytest.mark.parametrize("text", ["4729+5816", "4729+5816=", " 4729+5816=<think>\n"])
def test_a_typed_problem_becomes_the_ids_of_a_drawn_one(text: str):
    ids, row = TASK.read_prompt(text)
    assert TASK.tokenizer.decode(ids) == "4729+5816=<think>" and row is not None


@pytest.mark.parametrize(
    "text", ["4729", "729+5816", "4729+58160", "4729-5816", "4729+5816+1234", "a+b", "4729+5816<eos>"]
)
def test_what_cannot_be_a_problem_is_refused(text: str):
    with pytest.raises(ValueError, match=r"allowed are two numbers of 4 digits with '\+' between"):
        TASK.read_prompt(text)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"digits": 1}, "digits"),
        ({"digits": 9}, "digits"),
        ({"styles": (0.5, 0.5, 0.5)}, "styles"),
        ({"styles": (1.5, -0.5, 0.0)}, "styles"),
        ({"dropped_tag": -0.1}, "dropped_tag"),
        ({"slack": -1}, "slack"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], name: str):
    with pytest.raises(ValueError, match=rf"Addition\.{name}: got .*allowed"):
        Addition(**settings)


def test_all_tasks_of_numbers_have_one_tokenizer():
    assert TASK.tokenizer == Chain().tokenizer
