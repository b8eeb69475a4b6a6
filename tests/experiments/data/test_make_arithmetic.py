"""The small data file is what its script writes, and right by an arithmetic of its own."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.data import make_arithmetic
from experiments.from_jsonl import DATA, EXPERIMENT
from grpo_jax.data import assert_disjoint

SIGNS = dict.fromkeys(("gets", "finds", "buys", "wins"), 1) | dict.fromkeys(("loses", "eats", "sells", "drops"), -1)
CATEGORIES = ("one step", "two steps", "three steps")


@pytest.fixture(scope="module")
def path(root: Path) -> Path:
    return root / "experiments" / "data" / "arithmetic.jsonl"


@pytest.fixture(scope="module")
def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def told(prompt: str) -> tuple[int, list[int]]:
    """The first number of a question and its changes, read from the words."""
    found = re.fullmatch(r"[A-Z][a-z]+ has (\d) [a-z]+((?:(?:, | and )[a-z]+ \d)+)\. How many now\?", prompt)
    assert found is not None, prompt
    return int(found[1]), [SIGNS[verb] * int(number) for verb, number in re.findall(r"([a-z]+) (\d)", found[2])]


def test_the_file_is_what_the_script_writes(path: Path, rows: list[dict]):
    assert path.read_bytes() == make_arithmetic.text().encode()
    assert len({row["prompt"] for row in rows}) == len(rows) == 3000
    assert path.stat().st_size < 500_000


def test_every_answer_is_the_sum_of_the_words_and_no_total_leaves_one_digit(rows: list[dict]):
    for row in rows:
        first, changes = told(row["prompt"])
        totals = np.cumsum([first, *changes])
        assert row["answer"] == str(totals[-1]), row
        assert totals.min() >= 0, row
        assert totals.max() <= 9, row
        assert row["category"] == CATEGORIES[len(changes) - 1], row


def test_a_third_of_the_lines_each_has_no_solution_every_step_and_the_last_step(rows: list[dict]):
    kinds: collections.Counter[str] = collections.Counter()
    for row in rows:
        first, changes = told(row["prompt"])
        totals = np.cumsum([first, *changes]).tolist()
        steps = [f"{totals[k]}{change:+d}={totals[k + 1]}" for k, change in enumerate(changes)]
        if "solution" not in row:
            kinds["none"] += 1
        elif len(steps) > 1:
            assert row["solution"] in (" ".join(steps), steps[-1]), row
            kinds["every" if row["solution"] == " ".join(steps) else "last"] += 1
        else:
            assert row["solution"] == steps[0], row
    # 3000 lines in thirds, deviation sqrt(3000 * 2/9) = 26; 2700 have several steps and tell the other two kinds apart.
    assert abs(kinds["none"] - 1000) < 4 * 26
    assert abs(kinds["every"] - 900) < 4 * 25
    assert abs(kinds["last"] - 900) < 4 * 25


def test_the_experiment_holds_out_a_tenth_of_the_questions_and_never_trains_on_them(path: Path):
    assert EXPERIMENT.data is DATA
    assert Path(DATA.path) == path
    held = DATA.heldout(None)
    # 3000 questions, each held out with probability 0.1: 300 with a deviation of sqrt(3000 * 0.09) = 16.
    assert abs(held.length.shape[0] - 300) < 4 * 16
    assert_disjoint(DATA, held, seed=0, draws=6000)
