"""The failure that the preset shows really happens, and the alerts say so."""

from pathlib import Path

import pytest

from experiments.collapse import EXPERIMENT, VARIANTS
from grpo_jax import cli
from grpo_jax.alerts import Alerts
from grpo_jax.experiment import settings
from grpo_jax.journal import read

STEPS = 24
SHORTENED = (f"train.steps={STEPS}", "evaluation.prompts=64", "evaluation.full_prompts=256", "evaluation.samples=2")


def train(root: Path, *flags: str, settings: tuple[str, ...] = ()) -> int:
    sets = [part for setting in settings for part in ("--set", setting)]
    return cli.main(["train", str(root / "experiments" / "collapse.py"), *sets, *flags])


def test_the_variant_differs_in_its_warm_start_alone():
    here, there = settings(EXPERIMENT), settings(VARIANTS["gated"])
    assert {name.split(".")[0] for name in here if here[name] != there[name]} == {"name", "warm_start"}
    assert EXPERIMENT.warm_start is not None and EXPERIMENT.warm_start.gate == 0


@pytest.mark.parametrize("flags", [(), ("--variant", "gated")], ids=["collapse", "gated"])
def test_it_says_what_it_would_do(root: Path, capsys: pytest.CaptureFixture, flags: tuple[str, ...]):
    assert train(root, "--dry-run", *flags) == 0
    assert "demonstration: " in capsys.readouterr().out


@pytest.mark.slow
def test_reasoning_is_given_up_and_the_alerts_say_so(root: Path, tmp_path: Path):
    assert train(root, "--run-dir", str(tmp_path / "run"), settings=SHORTENED) == 0
    metrics = read(tmp_path / "run" / "metrics.jsonl")
    steps = [row for row in metrics if row["phase"] == "grpo" and row["step"]]
    assert steps[-1]["length/mean"] < 0.5 * steps[0]["length/mean"]
    assert steps[-1]["reward/mean"] > steps[0]["reward/mean"]
    evaluated = [row for row in metrics if "accuracy/heldout" in row]
    assert evaluated[-1]["accuracy/heldout"] <= evaluated[0]["accuracy/heldout"] + 0.01 < 0.05
    assert evaluated[-1]["format/heldout"] > max(0.9, evaluated[0]["format/heldout"])
    alerts = Alerts(settings(EXPERIMENT))
    said = "\n".join(sentence for row in metrics for sentence in alerts.see(row))
    assert "the policy gives up reasoning for short answers; start from a stronger policy (warm_start.gate" in said
    assert "not one answer was right in 10 steps" in said
