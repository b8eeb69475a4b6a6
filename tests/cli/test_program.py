"""A command line that cannot be carried out ends with code 4 and a sentence, never with a stack of calls."""

import re
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

import grpo_jax
from grpo_jax import __main__ as program
from grpo_jax import __version__, cli, lifeline, loop
from grpo_jax.endings import guarded
from tests.system import small_run

SMALL = str(Path(small_run.__file__))


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
