"""Whatever a command raises becomes one message and one code; mistakes of the program keep their traceback."""

import os
import re
import signal
import sys
import threading

import pytest

from grpo_jax.endings import Unloadable, guarded
from grpo_jax.lifeline import BadData, DataError, Diverged, Exit, Preempted, say

FULL = OSError(28, "No space left on device", "metrics.jsonl")
ENDS = [
    (Diverged("It diverged."), 3, "stopped: It diverged."),
    (DataError("No data."), 5, "stopped: No data."),
    (Preempted("Saved."), 75, "stopped: Saved."),
    (ValueError("seed: got x"), 4, "error: seed: got x\n(GRPO_JAX_TRACEBACK=1 shows where)"),
    (BadData("file:3: no"), 5, "error: file:3: no"),
    (Unloadable("file.py:3: no"), 4, "error: file.py:3: no"),
    (FULL, 5, "error: metrics.jsonl: No space left on device; allowed is a file that can be read and written: free"),
    (OSError("odd"), 5, "error: odd; allowed is a file"),
    (PermissionError(13, "Permission denied", "x"), 5, "x: Permission denied; .*check the path"),
    (MemoryError(), 4, "memory: the experiment needs more than there is .out of memory.*--dry-run"),
    (RuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nmore"), 4, "needs more than there is .RESOURCE_EXHAUSTED: 9 bytes."),
    (KeyboardInterrupt(), 130, "^interrupted; the same command goes on from the last checkpoint\n$"),
]


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "words"), ENDS, ids=[f"{i}-{type(e[0]).__name__}" for i, e in enumerate(ENDS)]
)
def test_every_end_has_its_code_and_its_words(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
):
    assert guarded(lambda: raising(error)) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(words, said) or words in said, said


def test_a_mistake_of_the_program_is_not_dressed_up():
    for error in (TypeError("a mistake"), RuntimeError("a mistake")):
        with pytest.raises(type(error), match="a mistake"):
            guarded(lambda error=error: raising(error))


def test_a_message_moves_no_cursor(capsys: pytest.CaptureFixture[str]):
    assert guarded(lambda: raising(ValueError("name\x1b[2J: got\x07 a\nb"))) == 4
    assert capsys.readouterr().err.startswith("error: name[2J: got a\nb\n")


def test_sigterm_outside_a_run_asks_for_the_same_command_again(capsys: pytest.CaptureFixture[str]):
    def terminated() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert guarded(terminated) == Exit.PREEMPTED
    assert "run the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(guarded(lambda: 7)))
    thread.start()
    thread.join()
    assert codes == [7]  # where Python allows no handlers there is none


def test_without_standard_error_nothing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody")
    assert guarded(lambda: raising(ValueError("x"))) == 4
