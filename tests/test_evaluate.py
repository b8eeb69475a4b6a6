import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest

from grpo_jax.evaluate import Estimate, accuracy, bootstrap, maj_at_k, pass_at_k, share, summarize, wilson


def outcomes(*rows: str) -> np.ndarray:
    """Verdicts written as digits: "110" is right, right, wrong."""
    return np.array([[c == "1" for c in row] for row in rows])


def pass_by_enumeration(correct: list[bool], k: int) -> float:
    picks = list(itertools.combinations(correct, k))
    return sum(any(pick) for pick in picks) / len(picks)


def majority_by_enumeration(answers: list, right: set, k: int) -> float:
    total, picks = 0.0, list(itertools.combinations(answers, k))
    for pick in picks:
        votes = Counter(a for a in pick if a is not None)
        best = [a for a, c in votes.items() if c == max(votes.values())]
        total += sum(a in right for a in best) / len(best) if best else 0.0
    return total / len(picks)


def test_pass_at_k_of_hand_numbers():
    # n = 4, c = 1: 1 - C(3,2)/C(4,2) = 1 - 3/6. c = 2: 1 - C(2,2)/C(4,2) = 1 - 1/6. c = 3: C(1,2) = 0. c = 0: 0.
    got = pass_at_k(outcomes("1000", "0110", "1110", "0000"), 2)
    np.testing.assert_allclose(got, [1 / 2, 5 / 6, 1, 0], rtol=1e-15)
    # The biased formula would say 1 - (3/4)^2 = 7/16 for the first.
    assert got[0] > 7 / 16


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_subsets(k: int):
    correct = np.random.default_rng(0).random((20, 5)) < 0.4
    expected = [pass_by_enumeration(row, k) for row in correct.tolist()]
    np.testing.assert_allclose(pass_at_k(correct, k), expected, atol=1e-14)


def test_pass_at_1_is_the_share_and_pass_at_n_whether_any_is_correct():
    correct = np.random.default_rng(1).random((50, 8)) < 0.2
    np.testing.assert_allclose(pass_at_k(correct, 1), correct.mean(axis=1), atol=1e-14)
    np.testing.assert_array_equal(pass_at_k(correct, 8), correct.any(axis=1))


def test_pass_at_k_of_many_samples_does_not_overflow():
    correct = np.zeros((1, 5000), bool)
    correct[0, 0] = True
    # One correct of n: the chance that it is among the k picked is k / n.
    np.testing.assert_allclose(pass_at_k(correct, 2500), [0.5], rtol=1e-9)


def test_pass_at_k_is_unbiased_where_the_plug_in_formula_is_not():
    # Independent samples with p = 0.3: pass@4 is 1 - 0.7^4 = 0.7599. Mean over all 2^6 outcomes weighted by chance.
    rows = np.array(list(itertools.product([False, True], repeat=6)))
    weight = np.prod(np.where(rows, 0.3, 0.7), axis=1)
    assert weight @ pass_at_k(rows, 4) == pytest.approx(1 - 0.7**4, abs=1e-12)
    assert weight @ (1 - (1 - rows.mean(axis=1)) ** 4) < 0.70


def test_a_sample_that_could_not_be_scored_is_as_if_it_had_not_been_drawn():
    correct, valid = outcomes("1010", "1100"), outcomes("1110", "0001")
    # First prompt: 1, 0, 1 remain: 1 - C(1,2)/C(3,2) = 1. Second: one sample remains, too few for k = 2.
    got = pass_at_k(correct, 2, valid=valid)
    assert got[0] == 1 and math.isnan(got[1])
    np.testing.assert_allclose(pass_at_k(correct, 1, valid=valid), [2 / 3, 0])
    answers = [["a", "b", "a", "b"], ["x", "x", "y", "y"]]
    right = np.array([[a in ("a", "x") for a in row] for row in answers])
    majority = maj_at_k(answers, right, 3, valid=valid)
    assert majority[0] == 1 and math.isnan(majority[1])


def test_majority_of_hand_numbers():
    # Answers a a b, right is a. Pairs: aa wins, ab and ab tie: (1 + 1/2 + 1/2) / 3 = 2/3. All three: a wins.
    answers, correct = [["a", "a", "b"]], outcomes("110")
    np.testing.assert_allclose(maj_at_k(answers, correct, 2), [2 / 3])
    np.testing.assert_allclose(maj_at_k(answers, correct, 3), [1])
    # A majority of wrong answers loses although one is right.
    np.testing.assert_allclose(maj_at_k(answers, outcomes("001"), 3), [0])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_majority_is_the_mean_over_all_subsets(k: int):
    random = np.random.default_rng(k)
    answers = [[("a", "b", "c", "d", None)[i] for i in random.integers(0, 5, 6)] for _ in range(40)]
    correct = np.array([[a == "a" for a in row] for row in answers])
    expected = [majority_by_enumeration(row, {"a"}, k) for row in answers]
    np.testing.assert_allclose(maj_at_k(answers, correct, k), expected, atol=1e-14)


def test_two_spellings_of_the_right_answer_are_two_candidates_and_both_are_right():
    answers = [["8", "08", "9", "9"]]
    correct = outcomes("1100")
    # 9 has two votes and wins all four.
    np.testing.assert_allclose(maj_at_k(answers, correct, 4), [0])
    # Pairs: (8,08) right; (8,9) x2 and (08,9) x2 tie: half; (9,9) wrong: (1 + 4/2 + 0) / 6.
    np.testing.assert_allclose(maj_at_k(answers, correct, 2), [0.5])
    assert majority_by_enumeration(answers[0], {"8", "08"}, 2) == pytest.approx(0.5)


def test_where_nobody_votes_the_majority_is_wrong():
    assert maj_at_k([[None, None]], outcomes("00"), 2).tolist() == [0]


def test_majority_of_one_is_pass_of_one_for_readable_answers():
    answers = np.random.default_rng(0).integers(0, 3, (30, 7))
    correct = answers == 0
    np.testing.assert_allclose(maj_at_k(answers.tolist(), correct, 1), pass_at_k(correct, 1), atol=1e-14)


def test_majority_over_many_samples_and_prompts_is_fast():
    answers = np.random.default_rng(0).integers(0, 10, (200, 16))
    start = time.process_time()
    maj_at_k(answers.tolist(), answers == 3, 8)
    assert time.process_time() - start < 5


def test_one_answer_cannot_be_both_right_and_wrong():
    with pytest.raises(ValueError, match="prompt 1 has 'a' both correct and wrong"):
        maj_at_k([["a", "b"], ["a", "a"]], outcomes("10", "10"), 2)
    with pytest.raises(ValueError, match="answers: got 1 rows"):
        maj_at_k([["a", "b"]], outcomes("10", "10"), 2)


def test_wilson_of_hand_numbers():
    # p = 8/10, z = 1.959964, z^2 = 3.841459:
    # centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 * sqrt(0.016 + 0.00960365) / 1.384146 = 1.959964 * 0.160011 / 1.384146 = 0.226577.
    got = wilson(8, 10)
    np.testing.assert_allclose(got, (0.8, 0.716740 - 0.226577, 0.716740 + 0.226577, 10), atol=2e-6)


def test_wilson_at_the_ends_is_not_a_point():
    # p = 0: low 0, high z^2/n / (1 + z^2/n) = 3.841459 / 103.841459 = 0.036993; p = 1 mirrors it.
    assert wilson(0, 100).low == 0 and wilson(0, 100).high == pytest.approx(0.036993, abs=1e-6)
    assert wilson(100, 100).high == 1 and wilson(100, 100).low == pytest.approx(1 - 0.036993, abs=1e-6)


def test_wilson_bounds_are_where_the_score_test_just_accepts():
    value, low, high, n = wilson(30, 70, level=0.9)
    z = 1.6448536
    for bound in (low, high):
        # |p - bound| / sqrt(bound (1 - bound) / n) = z
        assert abs(value - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(z, rel=1e-6)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    chances = [math.comb(50, c) * 0.1**c * 0.9 ** (50 - c) for c in range(51)]
    bounds = [wilson(c, 50) for c in range(51)]
    covered = sum(chance for chance, e in zip(chances, bounds, strict=True) if e.low <= 0.1 <= e.high)
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int):
    with pytest.raises(ValueError, match="successes: got"):
        wilson(successes, n)
    with pytest.raises(ValueError, match="level: got 95"):
        wilson(1, 2, level=95)


def test_the_bootstrap_interval_is_about_as_wide_as_the_normal_one():
    values = np.random.default_rng(0).random(400)
    got = bootstrap(values)
    error = values.std() / 20
    assert got.value == pytest.approx(values.mean()) and got.n == 400
    # 2,000 resamples place a 2.5 % quantile to about 4 % of the interval.
    np.testing.assert_allclose(
        [got.low, got.high], [got.value - 1.96 * error, got.value + 1.96 * error], atol=0.2 * error
    )


def test_an_interval_is_no_point_where_all_prompts_agree():
    # 5 of 5: Wilson's low is 1 / (1 + z^2 / 5) = 5 / 8.841459.
    np.testing.assert_allclose(share(np.ones(5)), (1, 0.565518, 1, 5), atol=1e-6)
    np.testing.assert_allclose(share(np.zeros(5)), (0, 0, 1 - 0.565518, 5), atol=1e-6)
    # One prompt, half of its samples right: centre (0.5 + 1.920729) / 4.841459 = 0.5,
    # half 1.959964 * sqrt(0.25 + 0.960365) / 4.841459 = 0.445379.
    np.testing.assert_allclose(share(np.array([0.5])), (0.5, 0.054621, 0.945379, 1), atol=1e-6)
    different = np.random.default_rng(0).random(20)
    assert share(different) == bootstrap(different)
    assert share(np.array([math.nan])).n == 0


def moment(a: float, b: float, k: int) -> float:
    """E[p^k] of p ~ Beta(a, b): the product over j < k of (a + j) / (a + b + j)."""
    return math.prod((a + j) / (a + b + j) for j in range(k))


@pytest.mark.slow
def test_intervals_of_several_samples_cover_the_truth_about_as_often_as_they_say():
    # 256 prompts whose difficulties come from Beta(0.6, 1.4), 3 samples each; a wrong sample has one wrong answer.
    a, b, seeds = 0.6, 1.4, 250
    truth = {
        "pass@1": moment(a, b, 1),
        "pass@3": 1 - moment(b, a, 3),  # 1 - E[(1 - p)^3]
        "maj@3": 3 * moment(a, b, 2) - 2 * moment(a, b, 3),  # at least 2 of 3
    }
    covered = Counter()
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        correct = random.random((256, 3)) < random.beta(a, b, 256)[:, None]
        found = summarize(correct, (3,), answers=correct.tolist())
        covered.update(name for name, value in truth.items() if found[name].low <= value <= found[name].high)
    assert {name: 0.92 < covered[name] / seeds < 0.98 for name in truth} == dict.fromkeys(truth, True), covered


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_the_interval_of_one_sample_covers_the_truth_exactly_as_often(p: float):
    # All outcomes of 256 trials with their chance.
    covered = 0.0
    for c in range(257):
        chance = math.exp(
            math.lgamma(257) - math.lgamma(c + 1) - math.lgamma(257 - c) + c * math.log(p) + (256 - c) * math.log1p(-p)
        )
        found = wilson(c, 256)
        covered += chance * (found.low <= p <= found.high)
    assert 0.92 < covered < 0.98


def test_the_bootstrap_is_deterministic_in_its_seed():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap(values, level=0.5).high < bootstrap(values).high


def test_prompts_are_resampled_and_not_samples():
    # Two prompts, one always right and one always wrong: 16 samples of each do not make the interval narrow.
    got = accuracy(np.repeat([[True], [False]], 16, axis=1))
    assert (got.value, got.low, got.high, got.n) == (0.5, 0.0, 1.0, 2)


def test_values_that_are_not_there_are_not_counted():
    assert bootstrap(np.array([1.0, math.nan, 1.0])) == Estimate(1.0, 1.0, 1.0, 2)
    nothing = bootstrap(np.array([math.nan]))
    assert nothing.n == 0 and all(math.isnan(x) for x in nothing[:3])


@pytest.mark.parametrize("settings", [{"level": 1.0}, {"resamples": 0}])
def test_the_bootstrap_refuses_settings_that_make_no_sense(settings: dict):
    with pytest.raises(ValueError, match="bootstrap: got"):
        bootstrap(np.ones(3), **settings)


def test_accuracy_of_one_sample_a_prompt_is_a_proportion_with_its_interval():
    correct, valid = outcomes(*"1101100111"), outcomes(*"1111111110")
    assert accuracy(correct) == wilson(7, 10)
    # The last prompt was correct but could not be scored: 6 of 9.
    assert accuracy(correct, valid=valid) == wilson(6, 9)
    assert accuracy(correct, valid=np.zeros((10, 1), bool)).n == 0


def test_a_summary_has_every_name_once():
    answers = np.random.default_rng(0).integers(0, 4, (12, 8))
    got = summarize(answers == 0, (1, 2, 8), answers=answers.tolist())
    assert list(got) == ["pass@1", "pass@2", "maj@2", "pass@8", "maj@8"]
    assert got["pass@1"].value <= got["pass@2"].value <= got["pass@8"].value
    assert all(e.low <= e.value <= e.high and e.n == 12 for e in got.values())
    assert list(summarize(answers == 0, (4,))) == ["pass@1", "pass@4"]


@pytest.mark.parametrize(
    ("correct", "k", "complaint"),
    [
        (np.ones((2, 3)), 1, r"correct: got float64\[2, 3\]"),
        (np.ones(3, bool), 1, r"correct: got bool\[3\]"),
        (np.ones((2, 3), bool), 0, "k: got 0; allowed are 1 to n = 3"),
        (np.ones((2, 3), bool), 4, "k: got 4"),
    ],
)
def test_what_is_no_table_of_verdicts_is_refused(correct: np.ndarray, k: int, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        pass_at_k(correct, k)
