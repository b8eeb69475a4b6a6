"""``export`` and ``import`` hand their flags on and say what was written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_jax import cli, exchange
from grpo_jax.text import PretrainedTokenizer
from tests.system import small_run
from tests.text import published

SMALL = str(Path(small_run.__file__))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that knows its file and nothing else."""
    origin = {"file": SMALL, "variant": "cold", "assignments": []}
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}, "versions": {}, "origin": origin}))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the functions behind the commands were called with."""
    calls: list[tuple[Any, ...]] = []

    def export(run: Path, experiment: Any, **how: Any) -> dict[str, Any]:
        calls.append((run, experiment.warm_start, how))
        return {"architecture": "Some", "phase": "grpo", "step": 3, "folder": str(how["out"])}

    def import_weights(source: str, out: Path, **how: Any) -> Any:
        calls.append((source, out, how))
        return SimpleNamespace(family="Some", param_dtype="bfloat16")

    monkeypatch.setattr(exchange, "export", export)
    monkeypatch.setattr(exchange, "import_weights", import_weights)
    return calls


def test_export_takes_a_run_and_a_checkpoint(run: Path, asked: list, capsys: pytest.CaptureFixture[str]):
    flags = ["--checkpoint", "best", "--dtype", "bfloat16", "--tokenizer-from", "there"]
    assert cli.main(["export", str(run), "--out", "new", *flags]) == 0
    how = {"out": Path("new"), "checkpoint": "best", "dtype": "bfloat16", "tokenizer_from": "there"}
    assert asked == [(run, None, how)]
    assert capsys.readouterr().out == "Some of grpo step 3 in new\n"
    assert cli.main(["export", str(run), "--out", "new"]) == 0
    assert asked[1][2] == {"out": Path("new"), "checkpoint": "newest", "dtype": None, "tokenizer_from": None}


def test_the_tokenizer_of_a_run_that_has_a_folder_goes_along(
    run: Path, asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = published.write(tmp_path / "tokenizer", "qwen3")
    task = SimpleNamespace(tokenizer=PretrainedTokenizer(str(folder)))
    experiment = SimpleNamespace(**{**vars(small_run.PLAIN), "data": task})
    monkeypatch.setattr("grpo_jax.cli.weights.of_run", lambda parsed: experiment)
    assert cli.main(["export", str(run), "--out", "new"]) == 0
    assert asked[0][2]["tokenizer_from"] == str(folder)


def test_import_takes_a_folder(asked: list, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["import", "owner/name", "--out", "new", "--revision", "main", "--dtype", "bfloat16"]) == 0
    assert asked == [("owner/name", Path("new"), {"revision": "main", "dtype": "bfloat16"})]
    assert capsys.readouterr().out == "Some in new, bfloat16\n"


def test_a_place_to_write_has_to_be_named(run: Path, capsys: pytest.CaptureFixture[str]):
    for words in (["export", str(run)], ["import", "owner/name"], ["import", "a", "--out", "b", "--dtype", "int8"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 4
    error = capsys.readouterr().err
    assert "the following arguments are required: --out" in error and "invalid choice: 'int8'" in error
