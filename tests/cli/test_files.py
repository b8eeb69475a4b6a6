"""The file of an experiment: which one is taken from it, and every way in which it can be none."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_jax import cli, loop
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
    assert "VARIANTS['a'] holds a int" in refused(capsys, str(file), "--variant", "a")
    assert ran == []


def test_the_trace_of_a_refusal_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, file: Path):
    file.write_text("x = 1")
    monkeypatch.setenv("GRPO_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="got no EXPERIMENT"):
        cli.main(["train", str(file)])
