"""Cells, settings that differ, failures and expectations; the same in Markdown and for a terminal."""

import dataclasses
import math

import pytest

from grpo_jax.ablation import tables
from grpo_jax.ablation.coincide import Claim
from grpo_jax.ablation.measure import CLAIMED, OUTCOMES, TIMES
from grpo_jax.ablation.student import Interval
from grpo_jax.ablation.tables import Expectation, Section, said
from grpo_jax.objectives import dr_grpo, grpo
from grpo_jax.updates import SGD, Optimizer
from tests.system.small_run import PLAIN

NAMES = [measure.name for measure in (*CLAIMED, *TIMES)]


def a_run(value: float, **others: float) -> dict[str, float]:
    return {**dict.fromkeys(NAMES, value), **others}


FOUND = {"a": {0: a_run(0.5), 1: a_run(0.75)}, "b": {0: a_run(0.625), 1: a_run(0.875)}}


@pytest.mark.parametrize(
    ("value", "how", "cell"),
    [
        (None, {}, "-"),
        (Interval(0.5, None, 1), {"share": True}, "50.0"),
        (Interval(0.5, 0.0123, 3), {"share": True}, "50.0 ± 1.2"),
        (Interval(1234.5, 20.0, 3), {}, "1.23e+03 ± 20"),
        (Interval(0.0123456, 0.00123, 3), {}, "0.0123 ± 0.0012"),
        (Interval(0.02, 0.01, 3), {"share": True, "sign": True}, "+2.0 ± 1.0 *"),
        (Interval(-0.02, 0.01, 3), {"share": True, "sign": True}, "-2.0 ± 1.0 *"),
        (Interval(-0.02, 0.03, 3), {"share": True, "sign": True}, "-2.0 ± 3.0"),
        (Interval(-0.02, None, 1), {"sign": True}, "-0.02"),
    ],
)
def test_a_cell(value: Interval | None, how: dict, cell: str):
    assert said(value, **how) == cell


def test_a_row_for_every_variant_with_mean_and_interval():
    section = tables.results(FOUND, measures=OUTCOMES[:1], title="Results")
    # mean 0.625, deviation 0.125 sqrt(2), t with 1 degree 12.7062: half 12.7062 * 0.125
    assert section.head == ("variant", "seeds", "accuracy %")
    assert section.rows == (("a", "2", "62.5 ± 158.8"), ("b", "2", "75.0 ± 158.8"))


def test_differences_to_the_first_are_paired():
    section = tables.differences(FOUND, measures=OUTCOMES[:1])
    assert section.title == "Paired differences to a"
    assert section.rows == (("b", "2", "+12.5 ± 0.0 *"),)  # 0.125 with either seed


def test_settings_that_differ_are_grouped_by_value():
    variants = {
        "a": PLAIN,
        "b": dataclasses.replace(PLAIN, name="other", seed=5),
        "c": dataclasses.replace(PLAIN, optimizer=SGD(learning_rate=1e-2, warmup=2, schedule="linear")),
        "d": dataclasses.replace(PLAIN, optimizer=Optimizer(learning_rate=0.5, warmup=2, schedule="linear")),
    }
    rows = tables.settings_table(variants).rows
    assert ("optimizer", "Optimizer", "a, b, d") in rows and ("optimizer", "SGD", "c") in rows
    assert ("optimizer.learning_rate", "0.01", "a, b, c") in rows and ("optimizer.learning_rate", "0.5", "d") in rows
    assert ("optimizer.momentum", "-", "a, b, d") in rows and ("optimizer.momentum", "0.0", "c") in rows
    assert {path for path, _, _ in rows}.isdisjoint({"name", "seed", "optimizer.warmup", "recipe.parts"})
    alike = tables.settings_table({"a": PLAIN, "b": PLAIN})
    assert alike.rows == () and alike.words == ("The variants have the same settings.",)


def test_a_description_loses_its_modules_and_nothing_else():
    variants = {"a": PLAIN, "b": dataclasses.replace(PLAIN, recipe=dr_grpo(constant=2.5))}
    cells = [value for path, value, _ in tables.settings_table(variants).rows if path == "recipe.parts"]
    assert cells[1].startswith("(Part(aggregation=fixed_length(constant=2.5, rows='all'), term=ppo_clip(")
    assert "grpo_jax" not in cells[1] and "high=0.2, low=0.2" in cells[1]
    assert tables.short("f(x=1e-05, y='a.b.c', z=0.25)") == "f(x=1e-05, y='a.b.c', z=0.25)"


def test_a_claim_is_met_by_what_came_out():
    claim = Claim(("a", "b"), "exactly", ("they are the same",))
    (line,) = tables.coincidences([claim], FOUND).words
    assert line == (
        "a and b should coincide exactly: they are the same. Measured: sampled accuracies of one seed differ by 12.5"
        " points at most."
    )
    assert "Measured" not in tables.coincidences([claim], {}).words[0]
    assert tables.coincidences([], FOUND).words == ("No two of these variants have to coincide.",)


def test_what_diverged_stands_with_its_sentence():
    section = tables.failures({("a", 0): "", ("b", 1): "It diverged."})
    assert section is not None and section.rows == (("b", "1", "It diverged."),)
    assert tables.failures({("a", 0): ""}) is None


def test_a_mean_outside_of_what_is_expected_is_said():
    claims = (Expectation("a", "clipped", 0.02, 0.2), Expectation("b", "reward", 0.5, 1.0))
    section, wrong = tables.expected(claims, FOUND)
    assert section is not None and len(section.head) == 4
    assert section.rows[0] == ("a: clipped %", "2.0 to 20.0", "62.5 ± 158.8", "no")
    assert section.rows[1][-1] == "yes"
    assert wrong == ["a: clipped is 62.5 ± 158.8 %, expected 2.0 to 20.0 %"]
    assert tables.expected((Expectation("c", "clipped", 0.0, 1.0),), FOUND) == (None, [])


def test_an_expectation_may_be_open_hold_for_every_variant_and_have_a_reason():
    found = {"a": {0: a_run(0.0, rise=0.25, skipped=0.0)}, "b": {0: a_run(0.0, rise=0.01, skipped=2.0)}}
    claims = (
        Expectation("*", "skipped", 0.0, 0.0),
        Expectation("a", "rise", 0.05, math.inf),
        Expectation("b", "rise", -math.inf, 0.05, "small steps"),
        Expectation("b", "rise", 0.02, math.inf),
        Expectation("b", "skipped", -math.inf, math.inf),
    )
    section, wrong = tables.expected(claims, found)
    assert section is not None and section.head[-1] == "why"
    assert section.rows == (
        ("every variant: skipped", "0", "0 to 2", "no", ""),
        ("a: rise", "at least 0.05", "0.25", "yes", ""),
        ("b: rise", "at most 0.05", "0.01", "yes", "small steps"),
        ("b: rise", "at least 0.02", "0.01", "no", ""),
        ("b: skipped", "any", "2", "yes", ""),
    )
    assert wrong == ["b: skipped is 2, expected 0", "b: rise is 0.01, expected at least 0.02"]


def test_equal_expectations_share_a_row_and_stand_beside_their_variants():
    found = {"a": {0: a_run(0.0, rise=0.25)}, "b": {0: a_run(0.0, rise=0.01)}, "c": {0: a_run(0.0, rise=0.5)}}
    claims = (*(Expectation(name, "rise", 0.05, math.inf) for name in "abx"), Expectation("c", "rise", 0, 1, "slow"))
    section, wrong = tables.expected(claims, found)
    assert section is not None and section.rows == (
        ("2 variants: rise", "at least 0.05", "0.01 to 0.25", "no", ""),
        ("c: rise", "0 to 1", "0.5", "yes", "slow"),
    )
    assert wrong == ["b: rise is 0.01, expected at least 0.05"]
    plain = Section("T", (), ("variant", "x"), (("a", "1"), ("c", "2"), ("d", "3")))
    assert tables.beside(plain, claims, measure="rise") == Section(
        "T",
        (),
        ("variant", "x", "rise expected", "why"),
        (("a", "1", "at least 0.05", ""), ("c", "2", "0 to 1", "slow"), ("d", "3", "-", "")),
    )
    assert tables.beside(plain, claims[:3], measure="rise").head == ("variant", "x", "rise expected")
    assert tables.beside(plain, claims, measure="reward") == plain


SECTION = Section("Title", ("Words \x1b[31m.",), ("variant", "x"), (("a|b", "1"), ("c", "-0.5 ± 1")))


def test_markdown_aligns_numbers_and_escapes_bars():
    assert tables.markdown([SECTION]) == (
        "## Title\n\nWords [31m.\n\n| variant | x |\n| :--- | ---: |\n| a\\|b | 1 |\n| c | -0.5 ± 1 |\n"
    )


def test_the_terminal_never_breaks_a_name_or_a_number():
    page = tables.terminal([SECTION, tables.results(FOUND, measures=OUTCOMES, title="Results")], width=116)
    assert "\x1b" not in page and "a|b" in page
    assert any(line.startswith("a ") and "62.5 ± 158.8" in line for line in page.splitlines())


def test_times_stand_apart():
    section = tables.times({"a": {0: a_run(2.0), 1: a_run(3.0)}, "b": {0: a_run(4.0, cpu_seconds=7.0)}})
    assert section.head == ("variant", "seeds", "seconds", "CPU s")
    assert section.words[-1] == "All runs together: 9 s, 12 CPU s."


def test_a_part_of_a_partial_is_shown_by_its_keywords():
    variants = {"a": PLAIN, "b": dataclasses.replace(PLAIN, recipe=grpo(beta=0.5))}
    assert any("by=0.5" in value for _, value, _ in tables.settings_table(variants).rows)
