"""The tables of a page hold the numbers of the records, and nothing of a run is markup in them."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo_jax.report import tables
from grpo_jax.report.runs import Run, gather
from tests.report.run_folder import metrics_of, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    times = [
        {
            "phase": "grpo",
            "step": s,
            "attempt": s,
            "seconds": 2.0 * s,
            "phases": {"rollout": 1.5},
            "memory_bytes": 2**30,
            "tokens_per_second": 9,
        }
        for s in (1, 2)
    ]
    origin = {"file": "/tmp/<sums>.py", "variant": None, "assignments": ["seed=1", "a=<b>"]}
    one = write_run(tmp_path / "one", metrics_of(0.75, **{"n/heldout": 1234.0}), [], timing=times, origin=origin)
    more = {"accuracy/heldout[a&b]": 0.5, "pass@2/heldout": 0.875, "pass@2/heldout[a&b]": 0.75}
    return gather([one, write_run(tmp_path / "two", metrics_of(0.5, **more), [], settings={"seed": "<1>"})], most=1)


def cells(page: str) -> list[list[list[str]]]:
    """Table -> row -> text of each cell."""
    root = ElementTree.fromstring(f"<x>{page}</x>")
    return [
        [[" ".join("".join(cell.itertext()).split()) for cell in row] for row in table.iter("tr")]
        for table in root.iter("table")
    ]


def test_one_run_is_shown_before_and_after(runs: list[Run]):
    ends, sets, training = cells(tables.numbers(runs[:1]))
    # 25 % to 75 % is +50 points; the metrics of one step 4 are 1 and 1/4.
    assert ends == [
        ["", "before", "after", "change"],
        ["accuracy, sampled", "25.0 %", "75.0 % (70.0 to 80.0)", "+50.0 points"],
    ]
    assert sets == [
        ["held-out set", "accuracy", "problems", "step"],
        ["heldout", "75.0 % (70.0 to 80.0)", "1,234", "4"],
    ]
    # The last ten steps are all four: rewards 1/4, 2/4, 3/4, 1; entropy (1 + 1/2 + 1/3 + 1/4) / 4 = 25/48.
    assert training == [["run", "reward", "entropy, nats a token"], ["one", "0.625", "0.521"]]


def test_several_runs_have_a_row_each(runs: list[Run]):
    ends, sets, more, training = cells(tables.numbers(runs))
    assert ends == [
        ["run", "GRPO steps", "accuracy before", "accuracy, sampled"],
        ["one", "4", "25.0 %", "75.0 % (70.0 to 80.0)"],
        ["two", "4", "25.0 %", "50.0 % (45.0 to 55.0)"],
    ]
    assert sets == [
        ["run", "accuracy, heldout [a&b]", "pass@2, heldout"],
        ["one", "-", "-"],
        ["two", "50.0 %", "87.5 %"],
    ]
    assert more == [["run", "pass@2, heldout [a&b]"], ["one", "-"], ["two", "75.0 %"]]
    assert [row[0] for row in training] == ["run", "one", "two"]


def test_a_number_can_be_found_by_its_run_and_metric(runs: list[Run]):
    page = tables.numbers(runs)
    assert re.search(r'<td data-run="1" data-metric="accuracy/heldout">50.0 % ', page)
    assert '<td data-run="1" data-metric="accuracy/heldout[a&amp;b]">50.0 %</td>' in page


def test_settings_that_differ_come_first(runs: list[Run]):
    different, same = cells(tables.settings(runs))
    assert different == [["setting", "one", "two"], ["seed", "0", "<1>"]]
    assert same == [["setting", "value"], ["name", "'sums'"], ["optimizer.learning_rate", "0.001"]]
    (everything,) = cells(tables.settings(runs[:1]))
    assert [row[0] for row in everything] == ["setting", "name", "seed", "optimizer.learning_rate"]


def test_time_and_memory_are_told_phase_by_phase(runs: list[Run]):
    (times,) = cells(tables.timing(runs))
    # 2 s and 4 s: 6 in all, 3 on average; of a rate or of memory there is no sum. The run was begun twice.
    assert times[1:] == [
        ["one", "grpo: memory, GiB", "-", "1", "1", "2", "2"],
        ["one", "grpo: seconds", "6.0", "3", "4", "2", "2"],
        ["one", "grpo: seconds of rollout", "3.0", "1.5", "1.5", "2", "2"],
        ["one", "grpo: tokens per second", "-", "9", "9", "2", "2"],
    ]
    assert tables.timing(runs[1:]) == ""


def test_origin_and_versions_stand_beside_each_other(runs: list[Run]):
    (facts,) = cells(tables.origins(runs))
    known = {row[0]: row[1:] for row in facts}
    assert known["origin: file"] == ["/tmp/<sums>.py", "-"] and known["origin: assignments"] == ["seed=1 a=<b>", "-"]
    assert known["version: jax"] == ["0.10.1", "0.10.1"] and known["experiment"] == ["sums", "sums"]


def test_alerts_are_said_run_by_run(tmp_path: Path):
    cut = [{**row, "length/mean": 8.0, "length/stopped": 0.25} for row in metrics_of(0.5)]
    folder = write_run(tmp_path / "cut", cut, [], settings={"sampling.max_tokens": "<8>"})
    page = tables.alerts(gather([folder], most=1))
    # 1 - 0.25 of the completions were cut off.
    assert "<li>step 1: 75 % of completions reach" in page and "sampling.max_tokens (now &lt;8&gt;)" in page
    calm = write_run(tmp_path / "calm", metrics_of(0.5), [])
    assert tables.alerts(gather([folder, calm], most=1)).endswith("calm</h3><p>None.</p>\n")


@pytest.mark.parametrize("make", [tables.numbers, tables.alerts, tables.settings, tables.timing, tables.origins])
def test_a_run_that_has_just_begun_has_its_tables(make: Callable[[Sequence[Run]], str], tmp_path: Path):
    folder = write_run(tmp_path / "new", [], [])
    ElementTree.fromstring(f"<x>{make(gather([folder], most=1))}</x>")
