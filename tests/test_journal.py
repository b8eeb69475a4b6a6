"""A journal is whole lines of valid JSON, and after a rewind the bytes of a run that was never interrupted."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from grpo_jax import journal
from grpo_jax.journal import Journal, each, encode, looking, plain, read, sole_writer, write_json
from grpo_jax.lifeline import DataError, Exit, RunStopped


def strict(line):
    """Parsed by a reader that knows no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_numbers_are_written_in_their_shortest_form_and_come_back_bit_for_bit():
    record = {
        "f32": np.float32(0.1),
        "f64": 0.1,
        "np64": np.float64(1 / 3),
        "b": np.bool_(True),
        "i": np.int64(2**53 + 1),
    }
    line = encode(record)
    assert line == b'{"f32": 0.1, "f64": 0.1, "np64": 0.3333333333333333, "b": true, "i": 9007199254740993}\n'
    values = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    back = np.array(strict(encode({"x": values}))["x"], np.float64).astype(np.float32)
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_what_is_not_finite_becomes_null_and_is_named():
    record = {"loss": float("nan"), "x": [1.0, np.float32("inf")], "d": {"y": -np.inf}, "ok": 1.5}
    assert strict(encode(record)) == {
        "loss": None,
        "x": [1.0, None],
        "d": {"y": None},
        "ok": 1.5,
        "nonfinite": {"loss": "nan", "x[1]": "inf", "d.y": "-inf"},
    }
    with pytest.raises(ValueError, match="nonfinite"):
        encode({"nonfinite": 1})


def test_text_of_any_kind_is_one_ascii_line():
    text = 'zwölf \u2028 "\n\\ \x00 \ud800 😀'
    line = encode({"completion": text})
    assert line.count(b"\n") == 1 and line.isascii() and strict(line)["completion"] == text


def test_arrays_are_lists_and_jax_arrays_and_bfloat16_are_numbers():
    record = {"a": np.arange(4).reshape(2, 2), "j": jnp.float32(2.5), "h": ml_dtypes.bfloat16(0.5), "n": None}
    assert plain(record) == {"a": [[0, 1], [2, 3]], "j": 2.5, "h": 0.5, "n": None}


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, {"a": {2}}, np.array(["x"]), 1j, b"x"],
    ids=["object", "number as key", "set", "array of text", "complex", "bytes"],
)
def test_what_json_does_not_have_is_refused(value):
    with pytest.raises(ValueError, match="record"):
        encode({"x": value})


def test_a_torn_last_line_is_skipped_on_reading_and_moved_on_opening(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3, "los')
    assert [record["step"] for record in read(path)] == [1, 2]
    book = Journal(path)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert book.superseded.read_bytes() == b'{"step": 3, "los\n'
    book.write({"step": 3})
    book.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3]


def test_a_line_without_its_newline_is_torn_even_if_it_parses(tmp_path):
    # The number may have been longer: 1 of 12.
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert read(path) == [{"step": 1}]


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read(path)
    with pytest.raises(DataError, match="line 2"):
        Journal(path)


def test_records_can_be_read_one_by_one_without_the_torn_end(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    records = each(tmp_path / "a.jsonl")
    assert next(records) == {"a": 1} and list(records) == [{"a": 2}]


def test_an_absent_file_has_no_records_and_is_not_made_by_reading(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
    Journal(tmp_path / "none.jsonl").close()
    assert os.listdir(tmp_path) == []


def test_after_a_rewind_the_file_is_what_an_uninterrupted_run_had(tmp_path):
    whole, broken = Journal(tmp_path / "whole.jsonl"), Journal(tmp_path / "broken.jsonl")
    for step in range(1, 7):
        whole.write({"step": step, "x": np.float32(step) / np.float32(3)})
    for step in range(1, 6):
        broken.write({"step": step, "x": np.float32(step) / np.float32(3)})
    broken.close()
    with open(broken.path, "ab") as file:
        file.write(b'{"step": 6, "x"')
    moved = broken.rewind(lambda record: record["step"] <= 3)
    assert moved == 3  # steps 4 and 5, and the torn one
    assert [json.loads(line)["step"] for line in broken.superseded.read_text().splitlines()[:2]] == [4, 5]
    for step in range(4, 7):
        broken.write({"step": step, "x": np.float32(step) / np.float32(3)})
    assert broken.path.read_bytes() == whole.path.read_bytes()
    assert broken.rewind(lambda record: record["step"] <= 5) == 1
    assert len(broken.superseded.read_text().splitlines()) == 4
    whole.close()
    broken.close()
    assert sorted(os.listdir(tmp_path)) == ["broken.jsonl", "broken.jsonl.superseded", "whole.jsonl"]


def test_a_rewind_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    book = Journal(tmp_path / "a.jsonl")
    for step in range(3):
        book.write({"step": step})
    before = book.path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        book.rewind(lambda record: record["step"] < 1)
    assert book.path.read_bytes() == before


def test_a_disk_that_refuses_ends_the_run_with_its_code(tmp_path):
    book = Journal(tmp_path / "a.jsonl")
    book.write({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match="cannot be written") as raised:
            book.write({"text": "x" * 2000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    book.close()
    assert raised.value.code == Exit.DATA == 5
    assert read(book.path) == [{"step": 1}]


def test_a_killed_writer_leaves_whole_lines_in_order(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from grpo_jax.journal import Journal
        book = Journal(Path(sys.argv[1]))
        step = 0
        while True:
            book.write({"step": step, "text": "x" * (step % 300)})
            step += 1
            if step == 50:
                print("many", flush=True)
    """
    path = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "many\n"
        process.send_signal(signal.SIGKILL)
    steps = [record["step"] for record in read(path)]
    assert len(steps) >= 50 and steps == list(range(len(steps)))


def test_a_document_is_replaced_in_one_piece(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1, "b": np.float32(0.5), "c": float("nan")})
    assert strict(path.read_text()) == {"a": 1, "b": 0.5, "c": None, "nonfinite": {"c": "nan"}}
    before = path.read_bytes()

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DataError, match="Input/output error"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == before


def test_a_second_run_in_a_folder_is_refused_and_the_first_is_named(tmp_path):
    with sole_writer(tmp_path):
        with pytest.raises(RunStopped, match=f"in use by process {os.getpid()} on ") as raised, sole_writer(tmp_path):
            raise AssertionError
        assert raised.value.code == Exit.CONFIGURATION
    with sole_writer(tmp_path):
        pass


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from grpo_jax.journal import sole_writer
        with sole_writer(Path(sys.argv[1])):
            if os.fork() == 0:
                os.write(1, b"child\\n")
                signal.alarm(30)
                signal.pause()
            signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "child\n"
            with pytest.raises(RunStopped, match=f"process {process.pid} on"), sole_writer(tmp_path):
                raise AssertionError
            process.kill()
            process.wait()
            with sole_writer(tmp_path):  # while the forked child lives on
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(journal.fcntl, "flock", unsupported)
    with sole_writer(tmp_path):
        pass
    assert "cannot be locked" in capsys.readouterr().err


def test_a_folder_is_looked_at_by_many_and_never_while_it_is_written(tmp_path):
    with looking(tmp_path):  # nobody ever wrote there
        pass
    assert list(tmp_path.iterdir()) == []
    in_use = f"is in use by process {os.getpid()}"
    with sole_writer(tmp_path), pytest.raises(RunStopped, match=in_use), looking(tmp_path):
        pass
    # Whoever only looks has left no name, and that of the last writer is gone.
    nobody = "is in use by another process"
    with looking(tmp_path), looking(tmp_path), pytest.raises(RunStopped, match=nobody), sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):
        pass
