from typing import Any

import numpy as np
import pytest

from grpo_jax.data import Chain, Jsonl, Task, assert_disjoint, records
from grpo_jax.data.tasks import check_draws, numpy_prompts
from grpo_jax.types import Prompts, Rollouts

TASK = Chain()


def rollouts(task: Task, prompts: Prompts, completions: list[str], samples: int) -> Rollouts:
    """Rows `samples` a prompt, in order; a completion that ends in <eos> has stopped."""
    ids = [task.tokenizer.encode(text, specials=True) for text in completions]
    tokens = np.full((len(ids), 16), task.tokenizer.pad, np.int32)
    for row, line in zip(tokens, ids, strict=True):
        row[: len(line)] = line
    row, zeros = np.arange(len(ids), dtype=np.int32), np.zeros(tokens.shape, np.float32)
    length = np.array([len(line) for line in ids], np.int32)
    stopped = np.array([text.endswith("<eos>") for text in completions])
    leaves: list[Any] = [row // samples, row % samples, tokens, length, stopped, zeros == 0, zeros, zeros, 0 * row]
    return Rollouts(prompts, *leaves)


def test_records_hold_prompt_completion_without_its_end_and_right_answer():
    prompts = TASK.draw(0, np.arange(2))
    answers = TASK.answers(prompts)
    found = records(TASK, rollouts(TASK, prompts, ["12</think><eos>", "<answer>", "3<eos>", ""], 2))
    assert [r.completion for r in found] == ["12</think>", "<answer>", "3", ""]
    assert [r.stopped for r in found] == [True, False, True, False]
    assert [r.answer for r in found] == [answers[0], answers[0], answers[1], answers[1]]
    assert [r.prompt for r in found] == [TASK.prompt_text(prompts, i) for i in (0, 0, 1, 1)]
    assert found[0].tokens == (*TASK.tokenizer.encode("12</think>", specials=True), TASK.tokenizer.eos)
    assert found[0].metadata == {"operands": 6}


def test_records_of_a_file_carry_the_metadata_of_the_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": "2", "category": "sum"}\n', encoding="utf-8")
    task = Jsonl(str(path), prompt_width=12, completion_width=8, heldout_share=0.0)
    (found,) = records(task, rollouts(task, task.draw(0, np.arange(1)), ["2<eos>"], 1))
    assert (found.prompt, found.answer, found.metadata) == ("1+1?\n<think>", "2", {"category": "sum"})


def test_a_training_problem_in_the_held_out_set_is_found():
    heldout, train = TASK.heldout(4), TASK.draw(0, np.arange(1))
    mixed = heldout.replace(tokens=np.concatenate([heldout.tokens[:3], train.tokens]))
    with pytest.raises(ValueError, match="not disjoint") as error:
        assert_disjoint(TASK, mixed, seed=1, draws=0)
    assert repr(TASK.prompt_text(train, 0)) in str(error.value)


def test_a_repeated_held_out_problem_is_found():
    heldout = TASK.heldout(3)
    twice = heldout.replace(tokens=heldout.tokens[[0, 1, 0]])
    with pytest.raises(ValueError, match="1 of 3 problems are repeated"):
        assert_disjoint(TASK, twice, seed=0, draws=1)


def test_a_training_stream_that_reaches_the_held_out_class_is_found():
    class Leaking(Chain):
        def draw(self, seed: int, draws: np.ndarray, split: str = "train") -> Prompts:
            return super().draw(seed, draws, "heldout")

    task = Leaking()
    assert_disjoint(task, TASK.heldout(4), seed=0, draws=0)
    with pytest.raises(ValueError, match="not disjoint"):
        assert_disjoint(task, TASK.heldout(4), seed=0, draws=1)


def test_a_leak_that_the_class_does_not_show_is_found_by_comparing_problems():
    class Blind(Chain):
        def is_heldout(self, prompts: Prompts) -> np.ndarray:
            """Says what the caller wants to hear: True for the held-out set, False for draws of 8."""
            return np.full(len(prompts.length), len(prompts.length) != 8)

    task = Blind()
    train = task.draw(0, np.arange(8))
    leaked = numpy_prompts(train.tokens[5:6], train.length[5:6], [0], [0])
    with pytest.raises(ValueError, match="not disjoint"):
        assert_disjoint(task, leaked, seed=0, draws=8)


def test_draw_numbers_of_any_integer_type_become_one_type():
    assert check_draws(np.array([3], np.uint8), "heldout").dtype == np.int64
    assert check_draws(np.zeros(0, np.int32), "train").shape == (0,)


def test_a_further_set_must_not_be_drawn_nor_repeat_itself():
    own, drawn = TASK.heldout(4), TASK.draw(0, np.arange(8))
    fine = TASK.heldout(6, "other")
    assert_disjoint(TASK, own, seed=0, draws=64, further={"fine": fine})
    some = numpy_prompts(drawn.tokens[5:6], drawn.length[5:6], [0], [0])
    assert_disjoint(TASK, own, seed=0, draws=5, further={"some": some})
    with pytest.raises(ValueError, match=r"heldout\.some and training draws are not disjoint: got") as error:
        assert_disjoint(TASK, own, seed=0, draws=6, further={"fine": fine, "some": some})
    assert repr(TASK.prompt_text(drawn, 5)) in str(error.value)
    twice = fine.replace(tokens=fine.tokens[[0, 1, 2, 3, 4, 0]])
    with pytest.raises(ValueError, match=r"heldout\.twice: 1 of 6 problems are repeated"):
        assert_disjoint(TASK, own, seed=0, draws=1, further={"twice": twice})
