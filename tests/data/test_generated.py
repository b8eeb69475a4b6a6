"""What generated tasks share, on a task of a few lines."""

from dataclasses import dataclass

import numpy as np
import pytest

from grpo_jax.data.counter import below, hashed, row_hash
from grpo_jax.data.generated import ARITHMETIC, HELDOUT_SHARE, Generated, tagged, written
from grpo_jax.text import CharacterTokenizer


@dataclass(frozen=True)
class Number(Generated):
    """A number below `size`, in four digits."""

    size: int = 1000
    larger = "take a larger size"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return ARITHMETIC

    @property
    def prompt_width(self) -> int:
        return 4

    def candidates(self, seed: int, numbers: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
        values = below(hashed(seed, numbers, attempt), self.size)
        return written(values[:, None], 4).astype(np.int32), np.full(len(values), 4, np.int32), values


def held_out(value: int) -> bool:
    digits = np.array([[int(digit) for digit in f"{value:04d}"]])
    return int(row_hash(digits)[0]) % HELDOUT_SHARE == 0


CLASS = [value for value in range(1000) if held_out(value)]


@pytest.mark.parametrize(("split", "held"), [("train", False), ("heldout", True)])
def test_a_draw_is_the_first_candidate_of_its_class(split: str, held: bool):
    task = Number()
    found = [int(task.prompt_text(prompts, 0)) for k in range(40) for prompts in [task.draw(7, np.array([k]), split)]]
    together = task.draw(7, np.arange(40), split)
    assert [int(task.prompt_text(together, k)) for k in range(40)] == found
    for k, value in enumerate(found):
        tries = (int(task.candidates(7, np.array([k]), attempt)[2][0]) for attempt in range(4096))
        assert value == next(number for number in tries if held_out(number) == held)
    assert task.is_heldout(together).tolist() == [held] * 40 and task.digest == ""


def test_the_problems_that_are_held_out_are_all_found():
    task = Number()
    heldout = task.heldout(len(CLASS))
    assert sorted(int(task.prompt_text(heldout, k)) for k in range(len(CLASS))) == CLASS
    with pytest.raises(
        ValueError, match=f"allowed are 1 to {len(CLASS)}, all held-out problems of .*take a larger size"
    ):
        task.heldout(len(CLASS) + 1)
    for count in (0, None, 2**20 + 1):
        with pytest.raises(ValueError, match=f"count: got {count}"):
            task.heldout(count)


def test_a_class_without_a_problem_is_an_error_and_no_endless_search():
    sizes = [size for size in range(1, 40) if not any(held_out(value) for value in range(size))]
    with pytest.raises(ValueError, match=r"no held-out problem in 4096 attempts; .*take a larger size"):
        Number(size=sizes[-1]).draw(0, np.arange(1), "heldout")


def test_no_draws_give_no_prompts():
    assert Number().draw(0, np.arange(0)).tokens.shape == (0, 4)
    assert written(np.zeros((0, 3), np.int64), 2).shape == (0, 6)


def test_digits_are_written_with_zeros_in_front():
    np.testing.assert_array_equal(written(np.array([[7, 123], [45, 0]]), 3), [[0, 0, 7, 1, 2, 3], [0, 4, 5, 0, 0, 0]])


def test_a_completion_lacks_the_parts_and_the_tag_that_it_is_to_lack():
    thought = np.array([[1, 2]] * 4), np.array([[True, True], [False, True], [False, False], [True, True]])
    pieces = tagged(ARITHMETIC, thought, np.array([[8, 9]] * 4), np.array([3, 0, 1, 2]))
    ids, length = Number().packed(pieces, 10)
    assert [ARITHMETIC.decode(row[:size]) for row, size in zip(ids, length, strict=True)] == [
        "12</think><answer>89</answer><eos>",
        "2<answer>89</answer><eos>",
        "</think>89</answer><eos>",
        "12</think><answer>89<eos>",
    ]
    assert length.tolist() == [8, 6, 5, 7] and ids.dtype == length.dtype == np.int32
    assert all((row[size:] == ARITHMETIC.pad).all() for row, size in zip(ids, length, strict=True))
