"""``train`` and ``ablate`` hand their flags to a run and to an ablation."""

from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli, loop
from grpo_jax.origin import Origin
from tests.system import small_run

SMALL = str(Path(small_run.__file__))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The experiments that were run, and how, without running them."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(loop, "run", lambda experiment, **how: calls.append((experiment, how)))
    return calls


def test_an_experiment_is_run_as_it_stands(ran: list, tmp_path: Path):
    assert cli.main(["train", SMALL]) == 0
    ((experiment, how),) = ran
    # Loaded from its file it is not the object of the imported module, but it is the same experiment.
    assert experiment.name == "small" and experiment.train == small_run.PLAIN.train
    assert how == {"run_dir": None, "fresh": False, "accept_code_change": False, "origin": Origin(SMALL)}


def test_flags_choose_the_variant_the_settings_and_the_folder(ran: list, tmp_path: Path):
    flags = ["--variant", "cold", "--set", "train.steps=3", "--set", "seed=7", "--run-dir", str(tmp_path), "--fresh"]
    assert cli.main(["train", SMALL, *flags]) == 0
    ((experiment, how),) = ran
    assert (experiment.warm_start, experiment.train.steps, experiment.seed) == (None, 3, 7)
    origin = Origin(SMALL, "cold", ("train.steps=3", "seed=7"))
    assert how == {"run_dir": str(tmp_path), "fresh": True, "accept_code_change": False, "origin": origin}


def test_a_script_takes_the_same_flags(ran: list):
    with pytest.raises(SystemExit) as end:
        cli.main_for(SMALL, ["--variant", "text", "--set", "train.steps=2"])
    assert end.value.code == 0
    assert (ran[0][0].reward, ran[0][0].train.steps) == (None, 2)


def test_accepting_changed_code_reaches_the_run(ran: list):
    assert cli.main(["train", SMALL, "--accept-code-change"]) == 0
    assert ran[0][1]["accept_code_change"] is True


def test_an_ablation_takes_its_flags_from_the_command_line_and_from_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    asked: list[tuple] = []

    def ablate(ablation: Any, folder: Path, *, fresh: bool, show: Any) -> int:
        asked.append((list(ablation.variants), ablation.seeds, ablation.rollouts, str(folder), fresh))
        return 3

    monkeypatch.setattr("grpo_jax.ablation.command.ablate", ablate)
    flags = ["--variants", "plain,text", "--seeds", "4,5", "--set", "train.steps=2", "--fresh"]
    where = ["--rollouts", str(tmp_path / "r"), "--dir", str(tmp_path / "x")]
    assert cli.main(["ablate", SMALL, *flags, *where]) == 3
    assert asked == [(["plain", "text"], (4, 5), tmp_path / "r", str(tmp_path / "x"), True)]
    with pytest.raises(SystemExit) as end:
        cli.ablate_for(SMALL, ["--variants", "plain"])
    assert end.value.code == 3 and asked[1] == (["plain"], (0,), None, "runs/small_run-ablation", False)
    assert cli.main(["ablate", SMALL, "--variants", "plain,penalty", "--dry-run"]) == 0
    assert "2 runs in runs/small_run-ablation" in capsys.readouterr().out and len(asked) == 2
    assert cli.main(["ablate", SMALL, "--seeds", "x"]) == 4
