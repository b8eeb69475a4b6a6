"""Every metric finds a panel: several of one run together, one of several runs together."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.report.panels import curves
from grpo_jax.report.runs import gather
from tests.report.run_folder import metrics_of, write_run


def drawn(tmp_path: Path, *runs: Sequence[Mapping[str, Any]]) -> tuple[ElementTree.Element, ElementTree.Element]:
    folders = [write_run(tmp_path / f"run{n}", metrics, []) for n, metrics in enumerate(runs)]
    first, rest = curves(gather(folders, most=1))
    return ElementTree.fromstring(f"<x>{first}</x>"), ElementTree.fromstring(f"<x>{rest}</x>")


def titles(root: ElementTree.Element) -> list[str | None]:
    return [figure.findtext("svg/title") for figure in root.iter("figure")]


def test_one_run_has_its_metrics_together_and_the_rest_apart(tmp_path: Path):
    main, rest = drawn(tmp_path, metrics_of(0.75, **{"accuracy/heldout[a]": 0.5, "accuracy/hard": 0.25, "<odd>": 3.0}))
    assert titles(main) == [
        "Accuracy",
        "Accuracy by category, heldout",
        "Accuracy, hard",
        "Reward, mean",
        "Entropy, nats a token",
    ]
    assert titles(rest) == ["<odd>"]
    # Held-out accuracy went from 25 % to 75 %; entropy was 2, then 1/1 to 1/4.
    told = [figure.findtext("svg/desc") for figure in main.iter("figure")]
    assert told[0] == "held out: 25.0 % to 75.0 %, lowest 25.0 %, highest 75.0 %, 2 values."
    assert told[-1] == "training: 2 to 0.25, lowest 0.25, highest 2, 5 values."


def test_several_runs_share_a_panel_for_each_metric_in_their_own_colours(tmp_path: Path):
    main, _ = drawn(tmp_path, metrics_of(0.75), metrics_of(0.5), metrics_of(0.25))
    assert titles(main) == ["Accuracy: held out", "Reward, mean", "Entropy, nats a token: training"]
    first = next(main.iter("figure"))
    points = [circle.get("fill") for circle in first.iter("circle")]
    assert points == ["var(--s0)"] * 2 + ["var(--s1)"] * 2 + ["var(--s2)"] * 2
    said = [circle.findtext("title") for circle in first.iter("circle")]
    assert said[1] == "run0, step 4: 75.0 % (70.0 to 80.0)" and said[2] == "run1, step 8: 25.0 %"


def test_a_ninth_run_is_told_from_the_first_by_its_dashes(tmp_path: Path):
    main, _ = drawn(tmp_path, *[metrics_of(0.5)] * 9)
    reward = list(main.iter("figure"))[1]
    bold = [line for line in reward.iter("polyline") if line.get("stroke-width") == "1.8"]
    assert len(bold) == 9 and bold[0].get("stroke") == bold[8].get("stroke") == "var(--s0)"
    assert [line.get("stroke-dasharray") for line in bold] == [None] * 8 + ["6 3"]


def test_curves_stay_small_and_identifiers_are_there_once(tmp_path: Path):
    long = [{"phase": "grpo", "step": s, **{f"m{n}": float(s) for n in range(70)}} for s in range(1, 2001)]
    folder = write_run(tmp_path / "run", [*long, {"phase": "grpo", "step": 2001, "reward/mean": 1.0}], [])
    first, rest = curves(gather([folder], most=1))
    assert rest.count("<figure>") == 60 and "10 more metrics are in metrics.jsonl" in rest and len(rest) < 400_000
    names = re.findall(r' id="([^"]+)"', first + rest)
    assert len(set(names)) == len(names)


def test_a_run_without_numbers_has_no_panels(tmp_path: Path):
    folder = write_run(tmp_path / "run", [], [])
    assert curves(gather([folder], most=1)) == ("", "")
