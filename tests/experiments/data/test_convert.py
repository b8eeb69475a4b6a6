import json
from pathlib import Path

import pytest

from experiments.data.convert import main


def test_a_file_is_converted_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = tmp_path / "train.jsonl", tmp_path / "ours.jsonl"
    source.write_text(json.dumps({"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}) + "\n")
    assert main(["gsm8k", str(source), str(target)]) == 0
    wanted = {"prompt": "1+1?", "answer": "2", "solution": "1+1=2", "match": "math"}
    assert json.loads(target.read_text()) == wanted
    assert capsys.readouterr().out == f"1 lines in {target}\n"


def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "train.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2"}\n')
    assert main(["gsm8k", str(source), str(tmp_path / "ours.jsonl")]) == 5
    assert f"{source}:1: " in capsys.readouterr().err
    assert main(["gsm8k", str(tmp_path / "none.jsonl"), str(tmp_path / "ours.jsonl")]) == 5
