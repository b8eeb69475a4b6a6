"""A mixture of tasks is as pure as its parts, and each prompt knows its own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data import Addition, Chain, Jsonl, Mixture, assert_disjoint, records
from grpo_jax.objectives import describe
from grpo_jax.rewards.text import compare_twins, score
from grpo_jax.text import CharacterTokenizer
from grpo_jax.types import Rollouts

PARTS = {"short": Chain(operands=3, operators="+"), "adding": Addition(digits=3), "long": Chain(operands=7)}
SHARES = {"short": 0.5, "adding": 0.2, "long": 0.3}
NAMES = ["adding", "long", "short"]  # sorted: the numbers of the parts
TASK = Mixture(PARTS, SHARES)
DRAWS = np.arange(600)


def texts(task: Mixture, prompts) -> list[str]:
    return [task.prompt_text(prompts, index) for index in range(len(prompts.length))]


def test_every_draw_is_the_draw_of_that_number_of_one_part():
    prompts = TASK.draw(3, DRAWS)
    found, answers, known = texts(TASK, prompts), TASK.answers(prompts), TASK.metadata(prompts)
    for name, part in PARTS.items():
        own = part.draw(3, DRAWS)
        right, metadata = part.answers(own), part.metadata(own)
        mine = np.flatnonzero(prompts.label["category"] == NAMES.index(name))
        assert [found[k] for k in mine] == [part.prompt_text(own, k) for k in mine]
        assert [answers[k] for k in mine] == [right[k] for k in mine]
        assert [known[k] for k in mine] == [{**metadata[k], "category": name} for k in mine]
    assert prompts.draw.tolist() == DRAWS.tolist() and prompts.row.dtype == prompts.label["category"].dtype == np.int32
    assert prompts.tokens.shape == (600, TASK.prompt_width) and TASK.prompt_width == 15  # seven numbers


def test_parts_come_in_their_shares_and_equally_often_without_any():
    count = 20_000
    code = np.asarray(TASK.draw(0, np.arange(count)).label["category"])
    # Standard deviation of a share of 20,000 is at most sqrt(0.25 / 20000) = 0.0035; five of them.
    np.testing.assert_allclose(np.bincount(code) / count, [0.2, 0.3, 0.5], atol=5 * 0.0035)
    code = np.asarray(Mixture(PARTS).draw(1, np.arange(count)).label["category"])
    np.testing.assert_allclose(np.bincount(code) / count, [1 / 3] * 3, atol=5 * 0.0035)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_draw_is_a_function_of_seed_and_number_alone(split: str):
    whole = TASK.draw(5, DRAWS, split)
    order = np.array([7, 599, 7, 0])
    part = TASK.draw(5, order, split)
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b[order])
    assert TASK.draw(5, np.arange(0)).tokens.shape == (0, 15)
    other = np.asarray(TASK.draw(6, DRAWS, split).label["category"])
    assert (other != whole.label["category"]).mean() > 0.3  # another seed, another order of the parts


def test_the_order_in_which_the_parts_are_named_is_no_matter():
    turned = Mixture(dict(reversed(PARTS.items())), SHARES)
    assert describe(turned) == describe(TASK)
    for a, b in zip(jax.tree.leaves(turned.draw(0, DRAWS)), jax.tree.leaves(TASK.draw(0, DRAWS)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_held_out_set_is_the_union_in_shares_and_disjoint():
    heldout = TASK.heldout(100)
    code = np.asarray(heldout.label["category"])
    assert np.bincount(code).tolist() == [20, 30, 50]
    for begin in range(0, 100, 10):  # in turns: every ten have a fair part of each
        assert (np.abs(np.bincount(code[begin : begin + 10], minlength=3) - [2, 3, 5]) <= 1).all()
    assert_disjoint(TASK, heldout, seed=0, draws=5000)
    assert TASK.is_heldout(heldout).all() and not TASK.is_heldout(TASK.draw(0, DRAWS)).any()
    assert len(set(np.asarray(heldout.draw).tolist())) == 100  # keys of sampling are folded from them
    for name, part in PARTS.items():
        own = [part.prompt_text(part.heldout(30), k) for k in range(20)]
        assert own == [t for t, c in zip(texts(TASK, heldout), code, strict=True) if NAMES[c] == name][:20]


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_any_number_of_problems_can_be_held_out(count: int):
    assert len(TASK.heldout(count).row) == count
    assert texts(TASK, TASK.heldout(count, "other")) != texts(TASK, TASK.heldout(count))


def test_a_problem_that_two_parts_hold_out_is_there_once():
    same = Mixture({"a": Chain(operands=3, operators="+"), "b": Chain(operands=3, operators="+")})
    found = texts(same, same.heldout(40))
    assert len(set(found)) == 40
    with pytest.raises(ValueError, match="all held-out problems"):
        same.heldout(200)  # of a thousand sums of three digits about a sixteenth is held out


def test_demonstrations_are_those_of_the_parts():
    shown = TASK.demonstrations(2, DRAWS)
    assert shown.tokens.shape == (600, TASK.completion_width) == (600, 3 * 4 + 3 + 5 + 1)
    np.testing.assert_array_equal(shown.prompts.tokens, TASK.draw(2, DRAWS).tokens)
    for name, part in PARTS.items():
        own = part.demonstrations(2, DRAWS)
        mine = np.flatnonzero(shown.prompts.label["category"] == NAMES.index(name))
        np.testing.assert_array_equal(shown.length[mine], own.length[mine])
        for k in mine:
            assert shown.tokens[k, : own.length[k]].tolist() == own.tokens[k, : own.length[k]].tolist()
            assert (shown.tokens[k, own.length[k] :] == TASK.tokenizer.pad).all()


def answered(task: Mixture, count: int) -> Rollouts:
    """Demonstrations as completions, every third with another answer."""
    shown = task.demonstrations(0, np.arange(count))
    tokens = shown.tokens.copy()
    opening = task.tokenizer.special["<answer>"]
    for n in range(0, count, 3):
        tokens[n, np.flatnonzero(tokens[n] == opening) + 1] = n % 10
    rows = np.arange(count, dtype=np.int32)
    zeros = np.zeros(tokens.shape, np.float32)
    leaves: list[Any] = [rows, 0 * rows, tokens, shown.length, rows >= 0, zeros == 0, zeros, zeros, 0 * rows]
    return Rollouts(shown.prompts, *leaves)


def test_parts_with_several_rewards_are_scored_each_by_its_own_and_as_their_text_is():
    rollouts = answered(TASK, 300)
    token = jax.jit(TASK.reward(format_weight=0.2))(jax.tree.map(jnp.asarray, rollouts))
    rows = records(TASK, rollouts)
    text, _ = score(rows, TASK.text_rewards(format_weight=0.2))
    compare_twins(token, text, rows)
    code = np.asarray(rollouts.prompts.label["category"])
    for number in range(3):
        right = text.components["accuracy"][code == number]
        assert 0.2 < right.mean() < 0.9
    assert describe(TASK.reward()).startswith("grpo_jax.rewards.tokens.by_part(")


def test_parts_with_one_reward_share_it():
    task = Mixture({"a": Chain(operands=3), "b": Chain(operands=6)})
    assert describe(task.reward(format_weight=0.3)) == describe(Chain().reward(format_weight=0.3))


def jsonl(folder: Path, name: str, prompts: list[str], **settings: Any) -> Jsonl:
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({"prompt": p, "answer": p.upper(), "category": "mine", "solution": "s"}) for p in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Jsonl(str(path), prompt_width=16, completion_width=12, **settings)


def test_files_can_be_mixed_and_all_of_them_held_out(tmp_path: Path):
    first = jsonl(tmp_path, "first", [f"x{k}" for k in range(60)], heldout_share=0.3)
    second = jsonl(tmp_path, "second", [f"y{k}" for k in range(40)], heldout_share=0.3)
    task = Mixture({"first": first, "second": second})
    heldout = task.heldout(None)
    assert len(heldout.row) == len(first.heldout(None).row) + len(second.heldout(None).row)
    assert_disjoint(task, heldout, seed=0, draws=400)
    prompts = task.draw(0, np.arange(200))
    found = [text.removesuffix("\n<think>") for text in texts(task, prompts)]
    assert task.answers(prompts) == [text.upper() for text in found]
    assert [m["category"] for m in task.metadata(prompts)] == [{"x": "first", "y": "second"}[t[0]] for t in found]
    assert task.digest == f"first:{first.digest} second:{second.digest}" and TASK.digest == ""
    with pytest.raises(ValueError, match="'first' has no reward on token ids"):
        task.reward()


def test_a_typed_problem_is_read_by_the_part_that_can():
    for text, name in (("1+2", "short"), ("123+456=", "adding"), ("1+2*3-4", "long")):
        ids, row = TASK.read_prompt(text)
        assert row is not None and NAMES[row % 3] in ("long", name)  # a short sum is a chain of seven at most, too
        assert TASK.tokenizer.decode(ids).startswith(text.removesuffix("="))
    with pytest.raises(ValueError, match=r"no part can read it. adding: prompt: .*; long: .*; short: "):
        TASK.read_prompt("12+")


@pytest.mark.parametrize(
    ("parts", "shares", "complaint"),
    [
        ({"a": Chain()}, {}, r"Mixture.parts: got \['a'\]; allowed are two or more"),
        (PARTS, {"short": 1.0}, "Mixture.shares: got .*; allowed is a share above 0 for each of adding, long, short"),
        (PARTS, {"short": 0.5, "adding": 0.2, "long": 0.2}, "Mixture.shares"),
        (PARTS, {"short": 1.5, "adding": -0.7, "long": 0.2}, "Mixture.shares"),
        ({"a": Chain(), "b": Mixture(PARTS)}, {}, "'b' has labels of its own"),
    ],
)
def test_settings_that_make_no_mixture_are_refused(parts: dict, shares: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        Mixture(parts, shares)


def test_parts_have_one_tokenizer():
    class Other(Chain):
        @property
        def tokenizer(self) -> CharacterTokenizer:
            return CharacterTokenizer("0123456789+-*=x")

    with pytest.raises(ValueError, match="'b' has another tokenizer than 'a'"):
        Mixture({"a": Chain(), "b": Other()})


def test_a_row_beyond_the_numbers_is_an_error_and_not_another_row():
    with pytest.raises(ValueError, match="allowed are rows below 715827882 in a mixture of 3 parts"):
        TASK.draw(0, np.array([2**31 - 1]))


def test_a_task_is_its_settings():
    assert {f.name for f in dataclasses.fields(TASK)} == {"parts", "shares"}
    assert Mixture(dict(PARTS), dict(SHARES)) == TASK
