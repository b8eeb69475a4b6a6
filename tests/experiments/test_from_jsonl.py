"""A run on a JSONL file from disk through the command line, its numbers found again from the text alone."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from grpo_jax import cli
from grpo_jax.data import Jsonl
from grpo_jax.data.counter import hashed, unit
from grpo_jax.journal import read

FORMAT_WEIGHT = 0.5
TINY = (
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_width=16",
    "model.hidden=64",
    "model.positions=28",
    "data.prompt_width=16",
    "data.completion_width=12",
    "data.heldout_share=0.25",
    "sampling.max_tokens=12",
    "train.steps=24",
    "train.prompts=8",
    "train.group_size=4",
    "optimizer.learning_rate=3e-3",
    f"text_rewards.format.1={FORMAT_WEIGHT}",
    "evaluation.prompts=8",
    "evaluation.every=12",
    "evaluation.samples=1",
    "saving.every=12",
)
WARM = ("warm_start.steps=40", "warm_start.limit=80", "warm_start.gate=0", "warm_start.optimizer.learning_rate=1e-2")
QUESTIONS = [
    {"prompt": f"{a} or {b}?", "answer": str(max(a, b)), "solution": "hm", "sum": a + b}
    for a in range(10)
    for b in range(10)
]

KINDS = [{**line, "category": "equal" if line["prompt"][0] == line["prompt"][5] else "other"} for line in QUESTIONS]

Train = Callable[..., int]


@pytest.fixture(scope="module")
def train(root: Path) -> Train:
    """``train(lines, folder, settings, flags)``: the command on a file of these lines, in run folder ``folder/run``."""

    def command(lines: Sequence[dict], folder: Path, settings: Sequence[str] = WARM, flags: Sequence[str] = ()) -> int:
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        assignments = [f"data.path={path}", *TINY, *settings]
        flags = [*flags, *(flag for assignment in assignments for flag in ("--set", assignment))]
        return cli.main(
            ["train", str(root / "experiments" / "from_jsonl.py"), *flags, "--run-dir", str(folder / "run")]
        )

    return command


@pytest.fixture(scope="module")
def folder(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from_jsonl")
    assert train(QUESTIONS, folder) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[dict]:
    return [row for row in read(folder / "samples.jsonl") if row["set"] == "train"]


def said(row: dict) -> str:
    """The answer of a completion, without the white space around it; empty where there is none to be read."""
    _, opened, rest = row["completion"].rpartition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer.strip() if opened and (closed or row["stopped"]) else ""


def marks(row: dict) -> tuple[float, float]:
    """Accuracy and format of a completion, from its text, whether it ended, and the line of the file it answers."""
    right = {f"{line['prompt']}\n<think>": line["answer"] for line in QUESTIONS}[row["prompt"]]
    accuracy = said(row) == right
    no_tag = r"(?:(?!</?think>|</?answer>|<eos>).)*"
    shape = re.fullmatch(f"{no_tag}</think><answer>({no_tag})</answer>", row["completion"], re.DOTALL)
    return float(accuracy), float(bool(shape and shape[1].strip() and row["stopped"]))


@pytest.mark.slow
def test_every_reward_of_the_run_is_the_one_that_its_text_deserves(samples: list[dict]):
    assert len(samples) == 24 * 8 * 4
    kinds = set()
    for row in samples:
        accuracy, shape = marks(row)
        assert row["components"] == {"accuracy": accuracy, "format": shape}, row
        np.testing.assert_allclose(row["reward"], accuracy + FORMAT_WEIGHT * shape)
        kinds.add((accuracy, shape))
    assert {(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)} <= kinds  # else the comparison above has shown little


@pytest.mark.slow
def test_a_completion_without_an_answer_is_unparsable_and_counts(samples: list[dict]):
    for row in samples:
        assert row["valid"]
        assert row["statuses"] == {"accuracy": "ok" if said(row) else "unparsable", "format": "ok"}, row
    assert 0 < sum(not said(row) for row in samples) < len(samples)


@pytest.mark.slow
def test_the_metrics_of_a_step_are_the_means_of_its_samples(folder: Path, samples: list[dict]):
    steps = defaultdict(list)
    for row in samples:
        steps[row["step"]].append((row["reward"], *marks(row)))
    metrics = {row["step"]: row for row in read(folder / "metrics.jsonl") if row["phase"] == "grpo"}
    assert sorted(metrics) == list(range(1, 25))
    for step, rows in steps.items():
        reward, accuracy, shape = np.mean(rows, axis=0)
        row = metrics[step]
        np.testing.assert_allclose(row["reward/mean"], reward, rtol=1e-5)
        np.testing.assert_allclose(row["reward/accuracy"], accuracy, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(row["reward/format"], shape, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_completion_is_encouraged_if_it_earned_more_than_its_group(samples: list[dict]):
    groups = defaultdict(list)
    for row in samples:
        groups[row["step"], row["draw"]].append(row)
    mixed = 0
    for rows in groups.values():
        assert len({row["prompt"] for row in rows}) == 1
        assert sorted(row["sample"] for row in rows) == [0, 1, 2, 3]
        rewards = np.array([marks(row)[0] + FORMAT_WEIGHT * marks(row)[1] for row in rows])
        signs = np.sign([row["advantage"] for row in rows])
        np.testing.assert_array_equal(signs, np.sign(np.round(rewards - rewards.mean(), 6)))
        mixed += rewards.max() > rewards.min()
    assert mixed > 20


@pytest.mark.slow
def test_the_policy_comes_to_earn_more(samples: list[dict]):
    earned = np.array([sum(marks(row)) for row in sorted(samples, key=lambda row: row["step"])]).reshape(4, -1).mean(1)
    assert earned[-1] > earned[0] + 0.2, earned


@pytest.mark.slow
def test_held_out_questions_are_evaluated_and_never_trained_on(folder: Path, samples: list[dict]):
    shown = {row["prompt"] for row in read(folder / "samples.jsonl") if row["set"].startswith("heldout")}
    assert shown
    assert not shown & {row["prompt"] for row in samples}
    after = read(folder / "metrics.jsonl")[-1]
    assert after["accuracy/heldout/low"] <= after["accuracy/heldout"] <= after["accuracy/heldout/high"]
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert (summary["steps"], summary["accuracy_after"]) == (24, after["accuracy/heldout"])


@pytest.mark.slow
def test_the_same_command_again_has_nothing_left_to_do(train: Train, folder: Path):
    before = (folder / "samples.jsonl").read_bytes(), json.loads((folder / "summary.json").read_text("utf-8"))
    assert any((folder / "checkpoints").iterdir())
    assert train(QUESTIONS, folder.parent) == 0
    after = (folder / "samples.jsonl").read_bytes(), json.loads((folder / "summary.json").read_text("utf-8"))
    assert (after[0], after[1]["state_digest"]) == (before[0], before[1]["state_digest"])


@pytest.mark.slow
def test_other_data_under_the_same_name_does_not_continue_the_run(
    train: Train, folder: Path, capsys: pytest.CaptureFixture
):
    assert train(QUESTIONS[::-1], folder.parent) == 4
    assert "the data file has changed" in capsys.readouterr().err


@pytest.mark.slow
def test_without_solutions_the_warm_start_must_be_switched_off(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture
):
    bare = [{"prompt": line["prompt"], "answer": line["answer"]} for line in QUESTIONS]
    assert train(bare, tmp_path) == 4
    complaint = capsys.readouterr().err
    assert 'data.jsonl: no training line has a "solution"' in complaint
    assert "warm_start=None" in complaint
    assert not (tmp_path / "run").exists()  # so that the corrected command finds its folder free
    assert train(bare, tmp_path, ("warm_start=None", "train.steps=2")) == 0
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert [(row["phase"], row["step"]) for row in rows] == [("grpo", 0), ("grpo", 1), ("grpo", 2)]
    assert "accuracy/heldout" in rows[0]


BY_CATEGORY = ("--variant", "by_category")
ONE_STEP = ("warm_start=None", "train.steps=1", "evaluation.every=1")


@pytest.mark.slow
def test_the_variant_compares_completions_to_all_questions_of_a_category(train: Train, tmp_path: Path):
    assert train(KINDS, tmp_path, (*WARM, "train.steps=2"), BY_CATEGORY) == 0
    rows = [row for row in read(tmp_path / "run" / "samples.jsonl") if row["set"] == "train"]
    steps = defaultdict(list)
    for row in rows:
        kind = next(line["category"] for line in KINDS if row["prompt"] == f"{line['prompt']}\n<think>")
        steps[row["step"], kind].append(row)
    apart = 0
    for rows in steps.values():
        rewards = np.array([row["reward"] for row in rows])
        expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6) if np.ptp(rewards) else 0 * rewards
        np.testing.assert_allclose([row["advantage"] for row in rows], expected, atol=1e-4)
        assert len({row["group"] for row in rows}) == 1
        apart += len({row["draw"] for row in rows})
    assert apart > len(steps)  # some categories had several questions in a step


@pytest.mark.slow
def test_the_variant_draws_lines_by_how_often_they_were_solved(train: Train, tmp_path: Path):
    assert train(QUESTIONS, tmp_path, (*WARM, "train.steps=8"), ("--variant", "by_difficulty")) == 0
    task = Jsonl(str(tmp_path / "data.jsonl"), prompt_width=16, completion_width=12, heldout_share=0.25)
    order = [task.prompt_text(task.drawable(0, np.arange(1)), k) for k in range(len(task.class_shares()))]
    rate: dict[str, float] = {}
    rows = [row for row in read(tmp_path / "run" / "samples.jsonl") if row["set"] == "train"]
    differ = 0
    for step in range(1, 9):
        mine = [row for row in rows if row["step"] == step]
        weight = np.array(
            [np.float32(rate.get(prompt, 0.5)) * (1 - np.float32(rate.get(prompt, 0.5))) + 0.05 for prompt in order]
        )
        edges = np.cumsum(weight / weight.sum())
        for row in mine:
            u = unit(hashed(-2, 0, np.array([row["draw"]])))[0]
            assert order[int((edges <= u).sum())] == row["prompt"]
            differ += order[int(u * len(order))] != row["prompt"]  # what equal probabilities would have brought
        for prompt in {row["prompt"] for row in mine}:
            share = float(np.mean([row["components"]["accuracy"] == 1 for row in mine if row["prompt"] == prompt]))
            rate[prompt] = 0.7 * rate[prompt] + 0.3 * share if prompt in rate else share
    assert differ > 0
    steps = [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "grpo" and row["step"]]
    assert steps[-1]["difficulty/seen"] == len(rate) / len(order)
    np.testing.assert_allclose(steps[-1]["difficulty/success"], np.mean(list(rate.values())), atol=1e-6)


def test_a_line_without_the_category_is_named(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert train([KINDS[0], QUESTIONS[1]], tmp_path, ONE_STEP, BY_CATEGORY) == 5
    complaint = capsys.readouterr().err
    assert "data.jsonl:2: label \"category\": got no such key among ['sum']" in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_label_is_chosen_by_a_setting(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture):
    other = ("data.labels=sum", "recipe.grouping.name=sum")
    assert train(QUESTIONS, tmp_path, (*ONE_STEP, *other), BY_CATEGORY) == 0
    assert train(QUESTIONS, tmp_path, (*ONE_STEP, "data.labels=sum"), BY_CATEGORY) == 4
    assert "by_label.name: got 'category', allowed sum" in capsys.readouterr().err


def test_a_reward_that_fails_on_every_row_ends_the_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = [{"prompt": line["prompt"], "answer": "larger"} for line in QUESTIONS]
    settings = ("warm_start=None", "train.steps=2", "text_rewards.accuracy.0.match=numeric")
    assert train(words, tmp_path, settings) == 5
    complaint = capsys.readouterr().err
    assert "on a right completion before the run began" in complaint and "'larger' is not a number" in complaint
    assert train(words, tmp_path, (*settings, "scoring.canary=False")) == 5
    complaint = capsys.readouterr().err
    assert "'accuracy' failed on every row" in complaint
    assert "'larger' is not a number" in complaint


def test_a_malformed_line_is_named_from_wherever_the_command_is_given(root: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": "1+2?"}\n', encoding="utf-8")
    script = root / "experiments" / "from_jsonl.py"
    command = [sys.executable, str(script), "--set", "data.path=bad.jsonl"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 5
    assert 'bad.jsonl:2: field "answer" is missing' in ended.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.jsonl"]
