"""What the script of a page is given of a completion is short, visible text and numbers that are numbers."""

import json
from pathlib import Path

from grpo_jax.report.browser import LONGEST, block, entry, kept, static
from grpo_jax.report.runs import gather
from tests.report.run_folder import metrics_of, sample_of, write_run


def test_an_entry_has_what_is_unusual_and_leaves_out_what_is_not():
    row = sample_of(3, 1, 0.0, draw=7, advantage=-0.5, length=4, statuses={"accuracy": "ok"})
    assert entry(2, row) == {
        "run": 2,
        "set": "train",
        "phase": "grpo",
        "step": 3,
        "prompt": "ask 1=",
        "completion": "said 1 in step 3",
        "reward": 0.0,
        "components": [["accuracy", 0.0]],
        "facts": "tokens 4, draw 7, sample 1, advantage -0.5",
    }
    lost = {**row, "valid": False, "stopped": False, "disagreement": True, "statuses": {"accuracy": "timeout"}}
    told = entry(0, lost)
    assert "reward" not in told and told["statuses"] == [["accuracy", "timeout"]]
    assert told["truncated"] and told["invalid"] and told["disagreement"]


def test_a_held_out_completion_has_a_sum_where_nobody_weighed_its_components():
    told = entry(0, {"set": "", "phase": "grpo", "step": 1, "components": {"a": 1.0, "b": 0.5}, "answer": "7"})
    assert (told["reward"], told["summed"], told["answer"], told["set"]) == (1.5, True, "7", "")


def test_numbers_that_are_none_and_texts_that_are_none_harm_nobody():
    row = {
        "set": "train",
        "phase": "grpo",
        "step": 1,
        "components": {"a": float("nan"), "b": "x"},
        "reward": float("inf"),
    }
    told = entry(0, {**row, "prompt": None, "completion": ["\x1b"], "statuses": "no"})
    assert told["components"] == [["a", None], ["b", None]] and "reward" not in told
    json.dumps(told, allow_nan=False)


def test_a_line_of_a_million_letters_is_cut(tmp_path: Path):
    told = entry(0, sample_of(1, 0, 1.0, completion="x" * 1_000_000 + "\x1bend"))
    assert len(told["completion"]) < LONGEST + 100 and told["completion"].endswith("x␛end")
    assert "[…996,004 characters left out…]" in told["completion"]


def test_the_block_names_runs_and_verifiers(tmp_path: Path):
    rows = [sample_of(1, n, 1.0, components={"accuracy": 1.0, "accuracy_b": 0.0}) for n in range(3)]
    one = write_run(tmp_path / "one", metrics_of(0.5), rows)
    two = write_run(tmp_path / "two", metrics_of(0.5), rows[:1])
    text = block(gather([one, two], most=2))
    data = json.loads(text.partition(">")[2].removesuffix("</script>"))
    assert [run["label"] for run in data["runs"]] == ["one", "two"]
    assert data["runs"][0]["verifiers"] == ["accuracy", "accuracy_b"]
    assert [sample["run"] for sample in data["samples"]] == [0, 0, 1]
    assert all(sample["disagreement"] for sample in data["samples"])


def test_some_completions_stand_in_the_page_and_it_says_how_many_are_kept(tmp_path: Path):
    rows = [sample_of(step, n, n / 10) for step in (1, 2) for n in range(10)]
    rows[-1] |= {"completion": "<b>best</b>"}
    runs = gather([write_run(tmp_path / "one", metrics_of(0.5), rows)], most=4)
    page = static(runs)
    # Four are kept of the newest step: three worst and three best are all four.
    assert page.count("<article") == 4 and "said 0 in step 2" in page and "step 1<" not in page
    assert "&lt;b&gt;best&lt;/b&gt;" in page and "<b>" not in page
    assert "one: 8 of 20 of train (2 of 2 steps)" in kept(runs)
    nothing = gather([write_run(tmp_path / "none", metrics_of(0.5), [])], most=4)
    assert static(nothing) == "" and "none: none were recorded" in kept(nothing)
