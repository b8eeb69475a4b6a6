"""Signals, hangs and bad batches end a run with its code, in words, and at once where that is promised."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from grpo_jax import lifeline
from grpo_jax.lifeline import (
    MEANINGS,
    DataError,
    Diverged,
    Exit,
    Guard,
    Heartbeat,
    Preempted,
    RunStopped,
    Signals,
    give_up,
    page,
    read_dump,
    write_dump,
)


def started(script, *arguments):
    """A process of its own that runs `script`."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    """Exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


def line_of(process):
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_exit_codes_are_the_documented_ones_and_each_has_a_meaning():
    assert {code.name: int(code) for code in Exit} == {
        "DONE": 0,
        "DIVERGED": 3,
        "CONFIGURATION": 4,
        "DATA": 5,
        "HANG": 70,
        "PREEMPTED": 75,
    }
    assert set(MEANINGS) == set(Exit) and all(MEANINGS.values())


def test_reasons_to_stop_carry_their_code_and_sentence():
    for kind, code in ((Diverged, 3), (DataError, 5), (Preempted, 75)):
        error = kind("so it was.")
        assert isinstance(error, RunStopped) and error.code == code and str(error) == error.sentence == "so it was."


def test_the_module_needs_no_jax():
    script = "import sys, grpo_jax.lifeline, grpo_jax.journal; sys.exit('jax' in sys.modules)"
    assert finished(started(script))[0] == 0


# Signals


def test_sigterm_becomes_a_request_and_handlers_are_put_back():
    before, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with Signals() as signals:
        assert not signals.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(wakeup) == wakeup
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_off_the_main_thread_signals_do_nothing():
    seen = []

    def use():
        with Signals() as signals:
            seen.append(signals.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) is before


def test_the_first_sigterm_lets_the_loop_save_and_leave_with_75():
    process = started("""
        import sys, time
        from grpo_jax.lifeline import Preempted, RunStopped, Signals
        try:
            with Signals() as signals:
                print("ready", flush=True)
                while not signals.requested:
                    time.sleep(0.01)
                raise Preempted("saved")
        except RunStopped as stop:
            sys.exit(int(stop.code))
    """)
    assert line_of(process) == "ready"
    process.terminate()
    assert finished(process) == (75, "")


def test_a_second_sigterm_leaves_at_once_even_out_of_compiled_code():
    # Hashing lets go of the interpreter lock and never looks at signals, as a compiled step does.
    process = started("""
        import hashlib
        from grpo_jax.lifeline import Signals
        with Signals():
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
    """)
    assert line_of(process) == "ready"
    process.terminate()
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    begun = time.monotonic()
    code, errors = finished(process)
    assert code == 75 and "second SIGTERM" in errors and time.monotonic() - begun < 10


# Heartbeat

HANGING = """
    import sys, time
    from pathlib import Path
    from grpo_jax.lifeline import Heartbeat

    def the_step_that_hangs():
        time.sleep(60)

    with Heartbeat(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])) as heartbeat:
        for _ in range(int(sys.argv[4])):
            heartbeat.beat()
        the_step_that_hangs()
"""


def test_a_step_that_hangs_ends_with_70_and_the_stacks_in_a_file(tmp_path):
    path = tmp_path / "stacks.txt"
    code, errors = finished(started(HANGING, path, 0.3, 50.0, 2))
    assert code == 70 and "a step took more than 0.3 s" in errors and str(path) in errors
    assert "the_step_that_hangs" in path.read_text() and "a step took more than 0.3 s" in path.read_text()


def test_before_the_first_beat_the_allowance_is_that_of_compiling_and_is_said(tmp_path):
    code, errors = finished(started(HANGING, tmp_path / "stacks.txt", 50.0, 0.3, 0))
    assert code == 70 and "compiling and running the first step took more than 0.3 s" in errors


def test_a_folder_that_cannot_be_written_does_not_keep_a_hang_alive(tmp_path):
    code, errors = finished(started(HANGING, tmp_path / "absent" / "stacks.txt", 0.2, 50.0, 1))
    assert code == 70 and "not written" in errors


def test_beats_and_announced_phases_keep_a_run_alive(tmp_path):
    left = []
    with Heartbeat(tmp_path / "stacks.txt", 0.5, 60.0, leave=left.append) as heartbeat:
        time.sleep(0.7)  # compiling
        for _ in range(4):
            heartbeat.beat()
            time.sleep(0.2)
        with heartbeat.during("evaluating", 60.0):
            time.sleep(0.7)
        heartbeat.beat()
        assert left == []
        with heartbeat.during("evaluating", 0.1):
            time.sleep(0.5)
    assert left == [70] and "evaluating took more than 0.1 s" in (tmp_path / "stacks.txt").read_text()


def test_time_during_which_the_process_was_stopped_does_not_count(tmp_path):
    process = started(
        """
        import sys, time
        from pathlib import Path
        from grpo_jax.lifeline import Heartbeat
        with Heartbeat(Path(sys.argv[1]), 1.0, 1.0) as heartbeat:
            print("ready", flush=True)
            time.sleep(0.3)
            print("awake", flush=True)
    """,
        tmp_path / "stacks.txt",
    )
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert finished(process) == (0, "")


@pytest.mark.parametrize("limits", [(0, 1), (1, -1), (float("nan"), 1)], ids=str)
def test_limits_are_positive_numbers_of_seconds(limits, tmp_path):
    with pytest.raises(ValueError, match="above 0"):
        Heartbeat(tmp_path / "stacks.txt", *limits)


# Dumps and the guard


def test_a_dump_gives_back_arrays_bit_for_bit_and_needs_no_pickle(tmp_path):
    arrays = {
        "tokens": np.arange(6, dtype=np.int32).reshape(2, 3),
        "file": np.array([np.nan, -0.0, np.inf], np.float32),
        "reward/mean": np.float64(0.25),
        "half": np.array([0.5, -3.0], ml_dtypes.bfloat16),
        "mask": np.array([True, False]),
    }
    written = write_dump(tmp_path / "bad" / "step-7", arrays, {"step": 7, "names": ["loss"]})
    back, info = read_dump(tmp_path / "bad" / "step-7")
    assert written == tmp_path / "bad" / "step-7.npz" and info == {"step": 7, "names": ["loss"]}
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        expected = np.asarray(array, np.float32) if name == "half" else np.asarray(array)
        assert back[name].dtype == expected.dtype and back[name].tobytes() == expected.tobytes()
    assert json.loads((tmp_path / "bad" / "step-7.json").read_text())["dtypes"]["half"] == "bfloat16"
    assert sorted(os.listdir(tmp_path / "bad")) == ["step-7.json", "step-7.npz"]


def test_a_dump_of_what_is_no_number_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="'who'"):
        write_dump(tmp_path / "x", {"who": np.array([object()])}, {})
    assert os.listdir(tmp_path) == []


def test_the_guard_stops_at_the_limit_and_names_the_dump(tmp_path):
    dumped = []

    def dump():
        dumped.append(write_dump(tmp_path / "step-9", {"x": np.zeros(1)}, {"step": 9}))
        return dumped[-1]

    guard = Guard(limit=3)
    for skipped in (0, 1, 2):
        guard.check(skipped, step=9, dump=dump)
    assert dumped == []
    with pytest.raises(Diverged, match=r"Step 9: the last 3 updates .*step-9\.npz") as raised:
        guard.check(3, step=9, dump=dump)
    assert raised.value.code == 3 and dumped[0].exists()


def test_a_dump_that_fails_does_not_hide_the_reason():
    def dump():
        raise OSError("disk full")

    with pytest.raises(Diverged, match=r"could not be written: disk full"):
        Guard(limit=1).check(1, step=2, dump=dump)
    with pytest.raises(ValueError, match="from 1"):
        Guard(limit=0)


def test_a_closed_terminal_stops_nothing(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    lifeline.say("nobody hears this")


def test_a_reader_who_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        page("much\n" * 100_000)
        page("more\n")  # goes nowhere, and so does what Python flushes on leaving


def test_a_page_is_spelt_as_standard_output_can(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    page("a \N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} b")
    assert raw.getvalue() == b"a ? b"
    monkeypatch.setattr(sys, "stdout", None)
    page("nobody")


def test_what_cannot_be_redirected_is_left():
    give_up(io.StringIO())


def test_standard_output_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            page("much\n")
