"""Metrics of a held-out set and of its categories are counts and enumerations of the scores."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from grpo_jax.rewards.text import Record
from grpo_jax.verdict import Verdict, measure, metric_names


def record(completion: str, answer: str = "7") -> Record:
    return Record(prompt="", completion=completion, tokens=(1,), answer=answer)


def test_metrics_are_counts_of_the_scores_by_hand():
    # Two prompts with two samples each, sample by sample; the last could not be scored.
    verdict = Verdict(
        records=[record(f"<answer>{x}</answer>") for x in "7371"],
        components={
            "accuracy": np.array([[1, 1], [0, 0]], np.float32),
            "format": np.array([[1, 0], [0.5, 9]], np.float32),
        },
        valid=np.array([[True, True], [True, False]]),
        length=np.array([[3, 4], [5, 8]]),
        stopped=np.array([[True, True], [True, False]]),
        entropy=np.array([[1.0, 2.0], [3.0, 4.0]]),
    )
    found = measure(verdict, "heldout", greedy=False)
    # Of the three rows that could be scored: 1 + 0 + 0.5 over 3.
    assert found["format/heldout"] == pytest.approx(0.5)
    assert found["length/heldout"] == (3 + 4 + 5 + 8) / 4
    assert found["stopped/heldout"] == 3 / 4
    assert found["entropy/heldout"] == (1 + 2 + 3 + 4) / 4
    assert (found["accuracy/heldout"], found["n/heldout"]) == (0.5, 2)
    assert 0 <= found["accuracy/heldout/low"] <= found["accuracy/heldout"] <= found["accuracy/heldout/high"] <= 1
    greedy = measure(verdict, "other", greedy=True)
    assert {name.partition("/")[0] for name in greedy} == {"greedy", "greedy_format"}


def made(answers: Sequence[Sequence[str]], *, valid: bool = True, **components: Sequence[Sequence[float]]) -> Verdict:
    """That of `answers[p][s]`, of which 7 is right unless `accuracy` says so; "-" says nothing that can be read."""
    table = np.array([list(row) for row in answers])
    prompts, samples = table.shape
    said = [str(table[p, s]) for s in range(samples) for p in range(prompts)]
    scores = {"accuracy": table == "7"} | {name: np.array(rows) for name, rows in components.items()}
    return Verdict(
        records=[record("" if text == "-" else f"<answer>{text}</answer>") for text in said],
        components={name: rows.astype(np.float32) for name, rows in scores.items()},
        valid=np.full(table.shape, valid),
        length=np.full(table.shape, 2),
        stopped=np.ones(table.shape, bool),
        entropy=np.zeros(table.shape),
    )


def enumerated(rows: Sequence[Sequence[str]], right: str, k: int) -> tuple[float, float]:
    """pass@k and maj@k as the mean over all picks of k of the samples of a row, then over rows."""
    passed, won = [], []
    for row in rows:
        picks = list(itertools.combinations(row, k))
        passed.append(sum(right in pick for pick in picks) / len(picks))
        wins = 0.0
        for pick in picks:
            votes = Counter(answer for answer in pick if answer != "-")
            best = [answer for answer, count in votes.items() if count == max(votes.values())]
            wins += best.count(right) / len(best) if best else 0.0
        won.append(wins / len(picks))
    return sum(passed) / len(rows), sum(won) / len(rows)


def test_pass_and_majority_of_every_category_are_those_of_all_picks():
    random = np.random.default_rng(0)
    answers = [["7389-"[i] for i in random.choice(5, 5, p=[0.35, 0.25, 0.2, 0.1, 0.1])] for _ in range(30)]
    labels = [("add", "sub", None)[i] for i in random.integers(0, 3, 30)]
    found = measure(made(answers), "mine", greedy=False, ks=(1, 2, 3, 5, 8), labels=labels)
    groups = {"mine": answers}
    for category in ("add", "sub"):
        groups[f"mine[{category}]"] = [row for row, label in zip(answers, labels, strict=True) if label == category]
    for name, rows in groups.items():
        assert found[f"n/{name}"] == len(rows)
        assert found[f"accuracy/{name}"] == pytest.approx(enumerated(rows, "7", 1)[0])
        for k in (2, 3, 5):
            passed, won = enumerated(rows, "7", k)
            assert found[f"pass@{k}/{name}"] == pytest.approx(passed)
            assert found[f"maj@{k}/{name}"] == pytest.approx(won)
            assert found[f"maj@{k}/{name}/low"] <= won <= found[f"maj@{k}/{name}/high"]
    # There are 5 samples, so nothing is said of 8; pass@1 is the accuracy; and there is no category but those two.
    assert not [name for name in found if "@8" in name or "@1" in name or "[None]" in name]


def test_categories_by_hand():
    verdict = made(["77", "73", "33", "37"])
    found = measure(verdict, "mine", greedy=False, labels=["a", "a", "b", "b"])
    # a: (1 + 1/2) / 2 and both have one right; b: (0 + 1/2) / 2, one of two has one right. 73 ties: half a win.
    assert (found["accuracy/mine[a]"], found["pass@2/mine[a]"], found["maj@2/mine[a]"]) == (0.75, 1.0, 0.75)
    assert (found["accuracy/mine[b]"], found["pass@2/mine[b]"], found["maj@2/mine[b]"]) == (0.25, 0.5, 0.25)
    # Two problems with at least one right each: Wilson's low for 2 of 2 is 1 / (1 + z^2 / 2) = 1 / 2.920729.
    assert found["pass@2/mine[a]/low"] == pytest.approx(0.342380, abs=1e-6)
    greedy = measure(made(["7", "3", "7"]), "mine", greedy=True, labels=["a", "b", "a"])
    assert (greedy["greedy/mine"], greedy["greedy/mine[a]"], greedy["greedy/mine[b]"]) == (pytest.approx(2 / 3), 1, 0)


def test_where_no_row_could_be_scored_nothing_is_claimed():
    nothing = made(["77", "73"], valid=False, format=[[1, 1], [1, 1]])
    found = measure(nothing, "mine", greedy=False)
    for name in ("accuracy", "pass@2", "maj@2", "format"):
        assert math.isnan(found[f"{name}/mine"])
    assert math.isnan(found["accuracy/mine/low"]) and math.isnan(found["accuracy/mine/high"])
    assert found["n/mine"] == 0 and found["length/mine"] == 2


def test_one_answer_judged_both_ways_ends_no_evaluation():
    # A reward of the user's own that looks at more than the answer: two candidates with a vote each.
    split = measure(made(["77"], accuracy=[[1, 0]]), "mine", greedy=False)
    assert (split["pass@2/mine"], split["maj@2/mine"]) == (1, 0.5)


def test_white_space_around_an_answer_makes_no_other_candidate_and_alone_no_vote():
    assert measure(made([["7", " 7", "3"]], accuracy=[[1, 1, 0]]), "mine", greedy=False)["maj@3/mine"] == 1
    assert measure(made([[" ", " ", "7"]]), "mine", greedy=False)["maj@3/mine"] == 1


@pytest.mark.parametrize(("samples", "ks"), [(1, None), (1, (1, 2)), (4, None), (4, (1, 2)), (4, (2, 4, 8))])
def test_the_names_can_be_told_beforehand(samples: int, ks: tuple[int, ...] | None):
    labels: list[str | None] = ["a", None, "b c"]
    names = metric_names({"heldout": labels, "mine": [None] * 2}, ("accuracy",), samples=samples, ks=ks)
    measured = []
    for name, kinds in (("heldout", labels), ("mine", [None] * 2)):
        for greedy, count in ((False, samples), (True, 1)):
            verdict = made(["7" * count] * len(kinds))
            measured += measure(verdict, name, greedy=greedy, ks=ks, labels=kinds)
    assert names == measured and len(set(names)) == len(names)
    assert ("pass@4/heldout[b c]/low" in names) == (samples == 4 and ks != (1, 2))
