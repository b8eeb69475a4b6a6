"""The small data file is what its script writes, and right by an arithmetic of its own."""

import collections
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.data import make_arithmetic
from experiments.from_jsonl import DATA, EXPERIMENT, VARIANTS
from grpo_jax.data import assert_disjoint
from grpo_jax.rewards.text import Record, accuracy

SIGNS = dict.fromkeys(("gets", "finds", "buys", "wins"), 1) | dict.fromkeys(("loses", "eats", "sells", "drops"), -1)
COUNTS = {"add": 200, "take away": 200, "compare": 200, "choose": 250, "two steps": 1100, "three steps": 500}
LINES = 2450


@pytest.fixture(scope="module")
def path(root: Path) -> Path:
    return root / "experiments" / "data" / "arithmetic.jsonl"


@pytest.fixture(scope="module")
def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def told(prompt: str) -> tuple[list[int], str]:
    """The running totals of a story, read from its words, and the question that follows."""
    found = re.fullmatch(r"[A-Z][a-z]+ has (\d) [a-z]+((?:, [a-z]+ \d)+)\. (.*\?)", prompt)
    assert found is not None, prompt
    changes = [SIGNS[verb] * int(number) for verb, number in re.findall(r"([a-z]+) (\d)", found[2])]
    return np.cumsum([int(found[1]), *changes]).tolist(), found[3]


def compared(prompt: str) -> tuple[str, int, str, int]:
    found = re.fullmatch(r"([A-Z][a-z]+) has (\d) [a-z]+, ([A-Z][a-z]+) (\d)\. Has ([A-Z][a-z]+) more\?", prompt)
    assert found is not None and found[5] == found[1], prompt
    return found[1], int(found[2]), found[3], int(found[4])


def stories(rows: list[dict]) -> Iterator[tuple[dict, list[int], str]]:
    for row in rows:
        if row["category"] != "compare":
            totals, question = told(row["prompt"])
            assert min(totals) >= 0 and max(totals) <= 9, row
            yield row, totals, question


def test_the_file_is_what_the_script_writes(path: Path, rows: list[dict]):
    assert path.read_bytes() == make_arithmetic.text().encode()
    assert len({row["prompt"] for row in rows}) == len(rows) == LINES
    assert path.stat().st_size < 310_000
    assert collections.Counter(row["category"] for row in rows) == COUNTS


def test_how_many_there_are_now_is_the_sum_of_the_words(rows: list[dict]):
    steps = {"add": 1, "take away": 1, "two steps": 2, "three steps": 3}
    for row, totals, question in stories(rows):
        if row["category"] != "choose":
            assert (row["answer"], question) == (str(totals[-1]), "Now?"), row
            assert len(totals) - 1 == steps[row["category"]], row
            assert {"add": totals[-1] > totals[0], "take away": totals[-1] < totals[0]}.get(row["category"], True), row


def test_the_letter_is_that_of_the_option_that_holds(rows: list[dict]):
    letters = collections.Counter()
    for row, totals, question in stories(rows):
        if row["category"] != "choose":
            assert not {"options", "match"} & row.keys()
            continue
        found = re.fullmatch(r"A\) over (\d) B\) (\d) C\) under (\d)\?", question)
        assert found is not None and len({*found.groups()}) == 1, row
        number = int(found[1])
        assert row["options"] == [f"over {number}", str(number), f"under {number}"]
        holds = {"A": totals[-1] > number, "B": totals[-1] == number, "C": totals[-1] < number}
        assert holds[row["answer"]] and row["match"] == "choice" and len(totals) == 2, row
        letters[row["answer"]] += 1
        text = row["options"]["ABC".index(row["answer"])]
        for said, right in ((row["answer"].lower(), 1.0), (text, 1.0), ("B" if row["answer"] != "B" else "A", 0.0)):
            record = Record(row["prompt"], f"<answer>{said}</answer>", (), row["answer"], row)
            assert accuracy(record, match="stated").value == right, (row, said)
    # A third each, deviation sqrt(200 * 2/9) = 6.7; a side that is empty is drawn again, which moves them a bit.
    assert min(letters.values()) > 66 - 5 * 6.7


def test_yes_is_the_answer_where_the_first_has_more(rows: list[dict]):
    for row in rows:
        if row["category"] == "compare":
            here, first, there, second = compared(row["prompt"])
            assert here != there and first != second
            assert row["answer"] == ("yes" if first > second else "no"), row
            assert row.get("solution", f"{first}{'>' if first > second else '<'}{second}") == (
                f"{first}{'>' if first > second else '<'}{second}"
            )


def test_solutions_show_every_step_or_the_last_one(rows: list[dict]):
    kinds: collections.Counter[str] = collections.Counter("none" for row in rows if "solution" not in row)
    for row, totals, question in stories(rows):
        steps = [f"{a}{b - a:+d}={b}" for a, b in itertools.pairwise(totals)]
        if row["category"] == "choose":
            number = int(re.findall(r"\d", question)[0])
            steps.append(f"{totals[-1]}{'>=<'['ABC'.index(row['answer'])]}{number}")
        if "solution" in row and len(steps) > 1:
            assert row["solution"] in (" ".join(steps), steps[-1]), row
            kinds["every" if row["solution"] == " ".join(steps) else "last"] += 1
        assert row.get("solution", steps[0]) == steps[0] or len(steps) > 1, row
    # A sixth of 2450 lines have none: 408, deviation sqrt(2450 * 5/36) = 18.4. Of the 2000 with several steps 5/12
    # show all and 5/12 the last, 833 each; deviation sqrt(2000 * 35/144) = 22.0.
    assert abs(kinds["none"] - 408) < 4 * 18.4
    assert abs(kinds["every"] - 833) < 4 * 22.0
    assert abs(kinds["last"] - 833) < 4 * 22.0


def test_the_experiment_holds_out_a_tenth_of_the_questions_and_never_trains_on_them(path: Path):
    assert EXPERIMENT.data is DATA
    assert Path(DATA.path) == path
    held = DATA.heldout(None)
    # 2450 questions, each held out with probability 0.1: 245 with a deviation of sqrt(2450 * 0.09) = 14.8.
    assert abs(held.length.shape[0] - 245) < 4 * 14.8
    assert_disjoint(DATA, held, seed=0, draws=6000)


def test_the_variant_labels_every_question_by_its_category():
    task = VARIANTS["by_category"].data
    prompts = task.draw(0, np.arange(500))
    names = [str(metadata["category"]) for metadata in task.metadata(prompts)]
    assert prompts.label["category"].tolist() == [sorted(COUNTS).index(name) for name in names]
