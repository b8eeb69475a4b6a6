"""Held-out sets of several tasks make one batch, and their categories are names that a metric can have."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from grpo_jax.data import Chain, Jsonl, Mixture
from grpo_jax.questions import CATEGORIES, Questions, further_sets, together

SHORT, LONG = Chain(operands=2), Chain(operands=4)


def questions(path: Path, categories: Sequence[object]) -> Jsonl:
    """A task that holds out a file with one line for each of `categories`; None leaves the key out."""
    train, held = path / "train.jsonl", path / "held.jsonl"
    train.write_text(json.dumps({"prompt": "a?", "answer": "a"}) + "\n")
    lines = [
        {"prompt": f"{k}?", "answer": "x", **({} if kind is None else {"category": kind})}
        for k, kind in enumerate(categories)
    ]
    held.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Jsonl(str(train), prompt_width=16, completion_width=8, heldout_share=0.0, heldout_path=str(held))


def made(task: Jsonl) -> Questions:
    return together({"heldout": (task, task.heldout(None))}, "category")["heldout"]


def test_prompts_of_all_sets_are_as_wide_as_the_widest_and_say_the_same():
    sets = together({"heldout": (SHORT, SHORT.heldout(6)), "long": (LONG, LONG.heldout(5))}, None)
    assert list(sets) == ["heldout", "long"]
    narrow, wide = sets["heldout"].prompts, sets["long"].prompts
    # 2 numbers, 2 operators or "=", "<think>" make 5; 4 make 9.
    assert (narrow.tokens.shape, wide.tokens.shape) == ((6, 9), (5, 9))
    given = SHORT.heldout(6)
    np.testing.assert_array_equal(narrow.tokens[:, :5], given.tokens)
    assert (np.asarray(narrow.tokens)[:, 5:] == SHORT.tokenizer.pad).all()
    assert [SHORT.prompt_text(narrow, p) for p in range(6)] == [SHORT.prompt_text(given, p) for p in range(6)]
    assert sets["heldout"].labels == (None,) * 6
    first = sets["long"].first(2)
    assert (first.prompts.tokens.shape, first.labels) == ((2, 9), (None, None))
    assert sets["long"].first(None).prompts.tokens.shape == (5, 9)


def test_labels_are_those_of_the_first_set_and_the_problems_of_others_have_none():
    mixture = Mixture({"short": SHORT, "long": LONG})
    sets = together({"heldout": (mixture, mixture.heldout(6)), "long": (LONG, LONG.heldout(5))}, "category")
    kinds = {name: [str(code) for code in questions.prompts.label["category"]] for name, questions in sets.items()}
    # Parts are numbered in the order of their names, and every part gives its share of the problems.
    assert sorted(kinds["heldout"]) == ["0", "0", "0", "1", "1", "1"] and kinds["long"] == ["-1"] * 5
    named = {"0": "long", "1": "short"}
    assert [named[code] for code in kinds["heldout"]] == list(sets["heldout"].labels)
    other = together({"heldout": (LONG, LONG.heldout(5)), "mixed": (mixture, mixture.heldout(6))}, "category")
    assert [dict(questions.prompts.label) for questions in other.values()] == [{}, {}]
    assert set(other["mixed"].labels) == {"long", "short"}


def test_a_category_is_a_word_or_a_number_and_may_be_missing(tmp_path: Path):
    found = made(questions(tmp_path, ["two steps", None, 7, "1.5-a_b", "Länge"]))
    rows = np.asarray(found.prompts.row).tolist()  # 1 is the first held-out line
    assert [found.labels[rows.index(1 + k)] for k in range(5)] == ["two steps", None, "7", "1.5-a_b", "Länge"]


@pytest.mark.parametrize("kind", ["a/b", "a[b]", "", " a", "a ", "a\nb", "x" * 61, 1.5, ["a"], True], ids=repr)
def test_what_cannot_be_part_of_a_name_is_refused_with_its_problem(kind: object, tmp_path: Path):
    with pytest.raises(ValueError, match=r"heldout set heldout: '1\?.*has the category .*allowed are 1 to 60") as error:
        made(questions(tmp_path, ["fine", kind]))
    assert "evaluation.category=None" in str(error.value)


def test_more_categories_than_anybody_reads_are_refused(tmp_path: Path):
    assert len(set(made(questions(tmp_path, [str(k) for k in range(CATEGORIES)])).labels)) == CATEGORIES
    with pytest.raises(ValueError, match="which has 65 values in the set heldout, allowed up to 64"):
        made(questions(tmp_path, [str(k) for k in range(CATEGORIES + 1)]))


def test_a_small_set_is_taken_whole_and_a_large_one_in_part(tmp_path: Path):
    task = questions(tmp_path, ["a"] * 5)
    for count, expected in ((3, 3), (5, 5), (100, 5), (None, 5)):
        ((own, prompts),) = further_sets({"mine": task}, count=count).values()
        assert own is task and prompts.length.shape == (expected,)
    assert further_sets({}, count=4) == {}


def test_what_a_task_cannot_give_is_an_error_that_names_the_set():
    with pytest.raises(ValueError, match=r"heldout\.mine: count: got None; allowed is 1 or more"):
        further_sets({"mine": LONG}, count=None)
    with pytest.raises(ValueError, match=r"heldout\.mine: count: got 0"):
        further_sets({"mine": LONG}, count=0)
    with pytest.raises(ValueError, match=r"heldout\.mine: count: got 5000; allowed are 1 to \d+, all held-out"):
        further_sets({"mine": SHORT}, count=5000)


def test_the_labels_of_the_prompts_stay():
    mixture = Mixture({"short": SHORT, "long": LONG})
    sets = together({"heldout": (mixture, mixture.heldout(6)), "longer": (Chain(operands=6), SHORT.heldout(1))}, None)
    assert sets["heldout"].prompts.label["category"].tolist() == mixture.heldout(6).label["category"].tolist()
