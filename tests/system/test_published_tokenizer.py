"""Runs on the tokens of a published model: padding that is the stop token, several of these, more rows than tokens."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import grpo_jax
from grpo_jax.data import Jsonl
from grpo_jax.experiment import Evaluation, Experiment, Saving, Scoring, Train
from grpo_jax.models import ModelConfig
from grpo_jax.objectives import grpo
from grpo_jax.plan import preview
from grpo_jax.rewards import text
from grpo_jax.rewards.text import Record
from grpo_jax.sampling import Sampling
from grpo_jax.text import Chat, PretrainedTokenizer
from grpo_jax.updates import Optimizer
from tests.text import published

ROWS = 512
"""Of the model; the tokenizer has 394 tokens."""


def short(record: Record) -> float:
    """More for a completion that stops early, so that every step learns something."""
    return -float(len(record.tokens))


def experiment(folder: Path, path: Path, pad: str, **settings: Any) -> Experiment:
    tokenizer = PretrainedTokenizer(str(folder), pad_token=pad)
    chosen: dict[str, Any] = {"prompt_width": 90, "completion_width": 60, "heldout_share": 0.3, **settings}
    data = Jsonl(str(path), tokenizer=tokenizer, chat=Chat(prefix="<think>"), **chosen)
    model = ModelConfig(vocab=ROWS, width=16, layers=1, heads=4, kv_heads=4, head_width=4, hidden=32, rope_theta=100.0)
    # A fresh policy draws each token with about the same chance: with a hundred of them stops, most rows stop.
    return Experiment(
        name="published",
        data=data,
        model=model,
        sampling=Sampling(max_tokens=12, stop=(*tokenizer.stops, *range(100))),
        recipe=grpo(beta=0.0),
        text_rewards={
            "accuracy": (partial(text.accuracy, match="math"), 1.0),
            "format": (partial(text.r1_format, spaces=True), 0.2),
            "short": (short, 0.1),
        },
        train=Train(steps=3, prompts=4, group_size=4),
        optimizer=Optimizer(learning_rate=1e-2),
        evaluation=Evaluation(every=2, prompts=2, full_prompts=None, samples=2, show=1),
        saving=Saving(every=3),
        scoring=Scoring(workers=1),
    )


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    fields = [
        {"prompt": f"What is {k} + 1?", "answer": str(k + 1), "solution": f"{k} + 1 = {k + 1}"} for k in range(20)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in fields))
    return path


@pytest.mark.slow
def test_padding_may_be_the_stop_token_or_any_other(lines: Path, tmp_path: Path):
    folder = published.write(tmp_path / "model", "smollm")
    same, other = (experiment(folder, lines, pad) for pad in ("<|im_end|>", "<|endoftext|>"))
    assert same.data.tokenizer.pad == same.data.tokenizer.eos in same.sampling.stop
    assert other.data.tokenizer.pad != other.data.tokenizer.eos
    summaries = [grpo_jax.run(one, run_dir=tmp_path / name) for one, name in ((same, "same"), (other, "other"))]
    first, second = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("same", "other"))
    assert first == second and summaries[0].state_digest == summaries[1].state_digest
    rows = [json.loads(line) for line in first.splitlines()]
    stopped = [row["length/stopped"] for row in rows if "length/stopped" in row]
    assert stopped and all(share > 0.5 for share in stopped)
    samples = [json.loads(line) for line in (tmp_path / "same" / "samples.jsonl").read_text().splitlines()]
    assert any("\ufffd" in json.dumps(sample, ensure_ascii=False) for sample in samples)


def test_a_preview_of_a_chat_shows_it_and_what_its_rewards_say(lines: Path, tmp_path: Path):
    # A chat around a number of one digit has 47 tokens, around one of two 48.
    fitting = {"too_long": "drop", "prompt_width": 47, "heldout_share": 0.5}
    shown = preview(experiment(published.write(tmp_path / "model", "smollm"), lines, "<|im_end|>", **fitting))
    assert "10 of 20 lines dropped and 0 solutions not shown (data.too_long): prompts have up to 47" in shown.page
    assert shown.trouble is None and "  accuracy 1 (ok), weight 1\n  format 1 (ok), weight 0.2" in shown.page
    prompt = next(line for line in shown.page.splitlines() if line.startswith("prompt: "))
    assert prompt.startswith("prompt: <|im_start|>system") and prompt.endswith("<think>")
