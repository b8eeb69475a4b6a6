"""What is said of a run beforehand is what the run then has, and saying it leaves nothing behind."""

import dataclasses
import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax import cli
from grpo_jax.data import Jsonl
from grpo_jax.experiment import step_settings
from grpo_jax.plan import Preview, demonstration, preview, sizes
from grpo_jax.rewards.text import Record
from grpo_jax.train import init_state
from tests.system import small_run
from tests.system.small_run import DATA, PLAIN
from tests.system.small_text import always

SMALL = str(Path(small_run.__file__))
# Tables of 20 tokens at both ends. The layer: q, k, v, o; up and down without a gate; two norms. One norm at the end.
PARAMETERS = 2 * 20 * 16 + (4 * 16 * 16 + 2 * 16 * 32 + 2 * 16) + 16


def test_sizes_are_those_of_the_settings_by_hand():
    found = sizes(PLAIN)
    assert [found[letter] for letter in "PGNSTV"] == [8, 4, 32, 7, PLAIN.data.completion_width, 20]
    assert found["parameters"] == PARAMETERS
    assert found["parameters_mb"] == pytest.approx(4 * PARAMETERS / 1e6)
    # Adam keeps two numbers of four bytes for each parameter, and counts its steps.
    assert 0 <= found["optimizer_mb"] * 1e6 - 8 * PARAMETERS <= 64


def test_a_critic_is_counted():
    # A value head: a number for each of 16 units and one more. A tower: all but the output matrix of 20 tokens too.
    head, tower = (
        dataclasses.replace(small_run.CRITIC, model=dataclasses.replace(PLAIN.model, critic=kind))
        for kind in ("head", "tower")
    )
    assert sizes(head)["parameters"] == PARAMETERS + 17
    assert sizes(tower)["parameters"] == 2 * PARAMETERS - 20 * 16 + 17
    assert sizes(tower)["optimizer_mb"] * 1e6 >= 8 * (2 * PARAMETERS - 20 * 16 + 17)


def test_the_command_prints_settings_sizes_and_a_scored_demonstration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", SMALL, "--dry-run", "--set", "train.prompts=4", "--run-dir", "here"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train.prompts = 4" in lines and "name = 'small'" in lines
    assert f"{PARAMETERS:,} parameters" in lines
    assert any(line.startswith("P = 4, G = 4, N = 16, S = 7") for line in lines)
    assert "16 held-out problems" in lines
    record, ids = demonstration(PLAIN)
    assert f"prompt: {record.prompt}" in lines and f"  {len(ids)} tokens: {list(ids)}" in lines
    # The rewards of this experiment by their definition: the first token is below 7, how many tokens are digits.
    right, digits = float(record.tokens[0] < 7), sum(token < 10 for token in record.tokens)
    assert f"  accuracy {right:.3g} (ok), weight 1" in lines and f"  digits {digits} (ok), weight 0.25" in lines
    assert f"  reward {right + 0.25 * digits:.4g}" in lines
    assert list(tmp_path.iterdir()) == []


def test_a_whole_demonstration_earns_the_whole_reward():
    data = dataclasses.replace(DATA, styles=(0.0, 0.0, 1.0), dropped_tag=0.0)
    experiment = dataclasses.replace(PLAIN, data=data, text_rewards=data.text_rewards(), reward=data.reward())
    page, trouble = preview(experiment)
    lines = page.splitlines()
    record, _ = demonstration(experiment)
    assert re.fullmatch(rf"\d\d</think><answer>{record.answer}</answer>", record.completion) and record.stopped
    # The answer is worth 1, the format 0.2; junk is worth nothing, and that is no trouble.
    right = ["  accuracy 1 (ok), weight 1", "  format 1 (ok), weight 0.2", "  reward 1.2"]
    junk = ["  accuracy 0 (unparsable: no answer), weight 1", "  format 0 (ok), weight 0.2", "  reward 0"]
    assert lines[-8:] == [
        "text rewards of this demonstration:",
        *right,
        "text rewards of the prompt said again:",
        *junk,
    ]
    assert trouble is None


def lost(record: Record, *, on: str) -> float:
    """Cannot read completions that hold `on`."""
    if on in record.completion:
        raise LookupError("no idea")
    return 1.0


@pytest.mark.parametrize(("on", "what"), [("</think>", "a right completion"), ("=", "the prompt said again")])
def test_a_reward_that_fails_is_found_before_a_run_does(on: str, what: str, capsys, monkeypatch):
    data = dataclasses.replace(DATA, styles=(0.0, 0.0, 1.0), dropped_tag=0.0)
    rewards = {**data.text_rewards(), "mine": (partial(lost, on=on), 1.0)}
    monkeypatch.setattr("grpo_jax.plan.workers", lambda _: nullcontext())
    experiment = dataclasses.replace(PLAIN, data=data, text_rewards=rewards, reward=None)
    page, trouble = preview(experiment)
    sentence = f"text_rewards['mine']: got error for {what} (LookupError: no idea), allowed is a number for every"
    assert trouble is not None and trouble.startswith(sentence)
    assert "  mine 0 (error: LookupError: no idea), weight 1" in page.splitlines()
    monkeypatch.setattr("grpo_jax.plan.preview", lambda _: Preview(page, trouble))
    assert cli.main(["train", SMALL, "--dry-run"]) == 5
    out, error = capsys.readouterr()
    assert out == page and error.startswith("error: text_rewards")


def test_a_reward_that_cannot_tell_right_from_wrong_is_pointed_out():
    data = dataclasses.replace(DATA, styles=(0.0, 0.0, 1.0), dropped_tag=0.0)
    page, trouble = preview(
        dataclasses.replace(PLAIN, data=data, text_rewards={"accuracy": (always, 1.0)}, reward=None)
    )
    assert trouble is None and page.splitlines()[-1].startswith("look at this: the prompt said again earns as much")


def test_data_without_demonstrations_shows_the_right_answer_alone(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", "answer": str(k)}) + "\n" for k in range(50)))
    data = Jsonl(str(path), prompt_width=16, completion_width=8)
    model = dataclasses.replace(PLAIN.model, vocab=data.tokenizer.vocab_size)
    evaluation = dataclasses.replace(PLAIN.evaluation, prompts=1, full_prompts=None)
    sampling = PLAIN.sampling.replace(max_tokens=8, stop=(data.tokenizer.eos,))
    experiment = dataclasses.replace(
        PLAIN, data=data, model=model, sampling=sampling, evaluation=evaluation, warm_start=None, reward=None
    )
    page, trouble = preview(dataclasses.replace(experiment, text_rewards=data.text_rewards()))
    answer = data.answers(data.draw(PLAIN.seed, np.arange(1)))[0]
    assert "?↵<think>" in page and f"right answer as: </think><answer>{answer}</answer>" in page
    # 1 for the answer, 0.2 for the form.
    assert page.splitlines().count("  reward 1.2") == 1 and trouble is None


def test_the_state_that_was_announced_is_the_one_that_is_made():
    found, state = sizes(PLAIN), init_state(0, step_settings(PLAIN).gradient)
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(state.params))
    assert found["optimizer_mb"] * 1e6 == pytest.approx(sum(x.nbytes for x in jax.tree.leaves(state.opt_state)))
