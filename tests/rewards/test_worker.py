import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_jax.rewards import worker
from grpo_jax.rewards.pool import locate
from grpo_jax.rewards.text import Record, Score, accuracy
from grpo_jax.rewards.worker import load, pack, read_record, score_line, serve, unpack, write_record
from tests.rewards import odd

RECORD = Record("2\ud800\n", "\x00é", (1, 2), "8", {"list": [1, (2, {"a": None})], "share": 0.1}, False)


def written(run: Callable[[int], None]) -> list[Any]:
    """The lines of JSON that `run` writes into a pipe."""
    read, write = os.pipe()
    with open(read, "rb") as lines:
        run(write)
        os.close(write)
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, 1e300, "é\ud800", (), (1, (2,)), [1, (2, [3])], {"a": ({"b": (1,)},)}, {}],
)
def test_a_value_arrives_as_it_was_sent(value: object):
    arrived = unpack(json.loads(json.dumps(pack(value))))
    assert arrived == value and type(arrived) is type(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, {"(tuple)": 1}, np.ones(2), [b"bytes"], np.int32(1)])
def test_a_value_that_cannot_be_sent_is_refused(value: object):
    with pytest.raises(ValueError, match="of type"):
        pack(value)


def test_a_record_arrives_as_it_was_sent_in_one_line():
    line = write_record(RECORD)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_record(line) == RECORD
    array: Any = np.array([1, 2], np.int32)
    assert read_record(write_record(Record("", "", array, ""))).tokens == (1, 2)


def test_a_reward_is_loaded_by_the_name_of_its_module_or_from_its_file(tmp_path: Path):
    loaded = load(locate(partial(accuracy, match="numeric"), name="x"))
    assert isinstance(loaded, partial) and loaded.func is accuracy and loaded.keywords == {"match": "numeric"}
    assert load(locate(odd.length, name="x")) is odd.length

    file = tmp_path / "json.py"  # of a name that leads elsewhere
    file.write_text("class Mine:\n    def reward(record):\n        return 0.5\n", encoding="utf-8")
    address = {**locate(accuracy, name="x"), "module": "json", "file": str(file), "function": "Mine.reward"}
    address |= {"digest": worker.hashlib.sha256(file.read_bytes()).hexdigest()}
    assert load(worker.Address(**address))(RECORD) == 0.5
    assert sys.modules["json"] is json and str(tmp_path) in sys.path
    sys.path.remove(str(tmp_path))
    with pytest.raises(ImportError, match="was changed after the run began"):
        load(worker.Address(**{**address, "digest": "0"}))


@pytest.mark.parametrize(
    ("completion", "value", "status", "detail"),
    [
        ("good", 8.0, "ok", ""),
        ("raise", 0.0, "error", "ZeroDivisionError: division by zero"),
        ("interrupt", 0.0, "error", "KeyboardInterrupt: "),
        ("long", 1.0, "ok", "d" * 4000),
    ],
)
def test_a_score_is_a_line(completion: str, value: float, status: str, detail: str):
    line = score_line(odd.trouble, write_record(Record("q", completion, (), "8")), number=3)
    assert json.loads(line) == [3, value, status, detail]


class Wordless:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError


def wordless(record: Record) -> Score:
    words: Any = Wordless()
    return Score(1.0, "ok", words)


def test_a_detail_that_is_no_text_is_an_error():
    line = score_line(wordless, write_record(RECORD), number=0)
    assert json.loads(line) == [0, 0.0, "error", "its detail is no text: RuntimeError"]


def test_lots_are_served_pair_by_pair_and_numbered_through():
    def lot(wanted: list[list[int]], *records: Record) -> bytes:
        return json.dumps(wanted).encode() + b"\n" + b"".join(map(write_record, records))

    rewards = [odd.length, odd.trouble]
    one, two = Record("q", "one!", (), "1"), Record("q", "of two", (), "2")
    work = io.BytesIO(lot([[0, 1], [1]], one, two) + lot([[0]], two))
    got = written(lambda result: serve(work, result, rewards))
    assert got == [[0, 4.0, "ok", ""], [1, 1.0, "ok", ""], [2, 2.0, "ok", ""], [3, 6.0, "ok", ""]]
