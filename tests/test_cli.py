"""A command line that cannot be carried out ends with code 4 and a sentence, never with a stack of calls."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import grpo_jax
from grpo_jax import __main__ as program
from grpo_jax import __version__, cli, lifeline, loop
from grpo_jax.endings import guarded
from grpo_jax.origin import Origin
from tests.system import small_run

SMALL = str(Path(small_run.__file__))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The experiments that were run, and how, without running them."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(loop, "run", lambda experiment, **how: calls.append((experiment, how)))
    return calls


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where a test may write an experiment; the module made of it is forgotten."""
    yield tmp_path / "some_experiment.py"
    sys.modules.pop("some_experiment", None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command line that is refused."""
    assert cli.main(["train", *arguments]) == 4
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


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


def test_a_missing_file_is_named(ran: list, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert f"FILE: got {tmp_path / 'none.py'}, which is no file" in refused(capsys, str(tmp_path / "none.py"))
    assert "which is no file" in refused(capsys, str(tmp_path))
    (tmp_path / "experiment.txt").write_text("EXPERIMENT = 1")
    assert "allowed is a file that ends in .py" in refused(capsys, str(tmp_path / "experiment.txt"))
    (tmp_path / "json.py").write_text("EXPERIMENT = 1")
    assert "whose name is that of the module 'json'" in refused(capsys, str(tmp_path / "json.py"))
    assert ran == []


CONTENTS = [
    ("x = 1", "got no EXPERIMENT, allowed is a file that defines one"),
    ("EXPERIMENT = 3", "EXPERIMENT holds a int, allowed is a grpo_jax.Experiment"),
    ("x = 1\nif x\n", "some_experiment.py:2: SyntaxError: expected ':': if x"),
    ("x = 1\ny = x.nothing\n", "some_experiment.py:2: AttributeError: 'int' object has no attribute 'nothing'"),
    ("import json\njson.loads(3)\n", "some_experiment.py:2: TypeError: "),
    ("import no_such_package", "some_experiment.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
    ("open('/no/such/file')", "some_experiment.py:1: FileNotFoundError"),
    ("from grpo_jax.data import Chain\nChain(operands=1)", "Chain.operands: got 1; allowed: 2 to 64"),
    ("from grpo_jax.experiment import Experiment\nExperiment(nam=1)", "unexpected keyword argument 'nam'"),
]


@pytest.mark.parametrize(("content", "sentence"), CONTENTS)
def test_a_file_without_an_experiment_is_refused_with_its_line(
    content: str, sentence: str, file: Path, capsys: pytest.CaptureFixture[str]
):
    file.write_text(content)
    assert re.search(re.escape(sentence), refused(capsys, str(file)))
    assert "some_experiment" not in sys.modules or content in ("x = 1", "EXPERIMENT = 3")


def test_a_file_that_is_no_text_is_refused(file: Path, capsys: pytest.CaptureFixture[str]):
    file.write_bytes(b"\xff\xfe\x00")
    assert str(file) in refused(capsys, str(file))


def test_unknown_variants_and_settings_name_the_nearest(ran: list, capsys: pytest.CaptureFixture[str], file: Path):
    assert "--variant: got 'tex', allowed plain, penalty, text" in (error := refused(capsys, SMALL, "--variant", "tex"))
    assert "did you mean 'text'?" in error
    assert "did you mean train.steps?" in refused(capsys, SMALL, "--set", "train.step=3")
    assert "allowed is a value of type int" in refused(capsys, SMALL, "--set", "train.steps=many")
    file.write_text("EXPERIMENT = 1")
    assert "allowed none, the file has no VARIANTS" in refused(capsys, str(file), "--variant", "a")
    file.write_text("VARIANTS = 1")
    assert "VARIANTS is a int, allowed is a mapping" in refused(capsys, str(file), "--variant", "a")
    file.write_text("VARIANTS = {'a': 1}")
    assert "VARIANTS holds a int" in refused(capsys, str(file), "--variant", "a")
    assert ran == []


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train"], ["train", SMALL, "--unknown"], ["train", SMALL, "--set"]]
)
def test_a_usage_error_has_the_code_of_a_configuration_error(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 4 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (lifeline.Diverged("It diverged."), 3, "stopped: It diverged."),
        (ValueError("seed: got x"), 4, "error: seed: got x"),
        (lifeline.DataError("No data."), 5, "stopped: No data."),
        (OSError(28, "No space left on device", "file"), 5, "error: file: No space left on device"),
        (lifeline.Preempted("Saved."), 75, "stopped: Saved."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_end_has_its_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def ending(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "run", ending)
    assert cli.main(["train", SMALL]) == code
    assert words in capsys.readouterr().err


def test_the_trace_of_a_refusal_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, file: Path):
    file.write_text("x = 1")
    monkeypatch.setenv("GRPO_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="got no EXPERIMENT"):
        cli.main(["train", str(file)])


def test_errors_of_the_program_itself_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(loop, "run", broken)
    with pytest.raises(TypeError, match="a mistake"):
        cli.main(["train", SMALL])


def test_help_answers_without_a_compiler():
    program = (
        "import sys, grpo_jax.cli\n"
        "try: grpo_jax.cli.main(['train', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "75 stopped from outside" in re.sub(r"\s+", " ", done.stdout)
    module = subprocess.run([sys.executable, "-m", "grpo_jax", "trian"], capture_output=True, text=True, check=False)
    assert module.returncode == 4 and "invalid choice: 'trian'" in module.stderr


def test_without_a_command_it_is_told_which_there_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    told = capsys.readouterr().err
    assert end.value.code == 4 and "got no command, allowed are those above: name one" in told
    assert all(f"\n    {command} " in told for command in ("train", "show", "eval", "sample", "help"))


def test_help_can_be_asked_for_as_a_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["help"]) == 0
    assert "Exit codes: 0 the run reached" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert cli.main(["help", "train"]) == 0
    assert "--accept-code-change" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        cli.main(["help", "trian"])
    assert end.value.code == 4


def test_the_version_names_those_that_matter(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    told = rf"grpo-jax {re.escape(__version__)} \(jax {re.escape(version('jax'))}, Python \d+\.\d+\.\d+\)\n"
    assert end.value.code == 0 and re.fullmatch(told, capsys.readouterr().out)


@pytest.mark.parametrize("command", ["train", "show", "eval", "sample"])
def test_the_help_of_every_flag_says_what_is_without_it(command: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["help", command]) == 0
    options = capsys.readouterr().out.split("options:\n")[1].split("\nExit codes")[0]
    flags = re.split(r"\n  (?=-)", "\n" + options)[1:]
    silent = [flag.split()[0] for flag in flags if not re.search(r"default|-h, --help", flag)]
    assert silent == []


def test_accepting_changed_code_reaches_the_run(ran: list):
    assert cli.main(["train", SMALL, "--accept-code-change"]) == 0
    assert ran[0][1]["accept_code_change"] is True


def test_it_can_be_stopped_while_it_is_loading(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted() -> int:
        raise KeyboardInterrupt

    def terminated() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(grpo_jax, "cli", SimpleNamespace(main=interrupted))
    assert program.main() == 130
    assert capsys.readouterr().err == "interrupted before anything was begun\n"
    monkeypatch.setattr(grpo_jax, "cli", SimpleNamespace(main=partial(guarded, terminated)))
    assert program.main() == 75
    assert capsys.readouterr().err.startswith("stopped: SIGTERM")


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
