"""A terminal gets a picture, anything else gets lines, and what goes wrong with either stops nothing."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from grpo_jax.display import Guarded, LiveDisplay, PlainDisplay, Plan, SilentDisplay, choose

RECORD = {"loss": -0.0118, "reward/mean": 0.527, "length/mean": 7.76, "entropy": 0.45, "kl/old": 0.003}
EVALUATION = {"accuracy/heldout": 0.906, "accuracy/heldout/low": 0.9, "greedy/heldout": 0.97, "format/heldout": 1.0}
AT = {"phase": "grpo", "step": 2}
ROWS = [{"prompt": "1+1=", "completion": "2\x1b[2J", "reward": 1.2, "components": {"accuracy": 1.0}}]


class Terminal(io.StringIO):
    """Something that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Broken(SilentDisplay):
    """Fails in the method it is told to, and on closing."""

    def __init__(self, method: str) -> None:
        self.method, self.closed = method, 0

    def _fail(self, method: str) -> None:
        if method == self.method:
            raise RuntimeError(f"no {method}\x1b")

    def step(self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]) -> None:
        self._fail("step")

    def completions(self, rows: object) -> None:
        self._fail("completions")

    def alert(self, sentence: str) -> None:
        self._fail("alert")

    def message(self, text: str) -> None:
        self._fail("message")

    def close(self) -> None:
        self.closed += 1
        raise RuntimeError("cannot even close")


def tell(display: Any) -> None:
    """All that a run tells."""
    display.message("continuing")
    display.step(AT, {**RECORD, **EVALUATION}, seconds={"rollout": 0.5})
    display.completions(ROWS)
    display.alert("97 % of completions reach the length limit")
    display.close()
    display.close()


def live(stream: io.StringIO, times: list[float], width: int = 80) -> LiveDisplay:
    console = Console(file=stream, force_terminal=True, width=width, height=50, color_system=None, legacy_windows=False)
    ticks = iter(times)
    plan, memory = Plan("sums", {"grpo": 100}), (2.0**30, "device")
    return LiveDisplay(console, plan, clock=lambda: next(ticks), memory=lambda: memory)


def test_plain_lines_are_one_a_step():
    stream = io.StringIO()
    tell(PlainDisplay(stream))
    assert stream.getvalue() == (
        "continuing\n"
        "grpo     2  loss -0.012  reward/mean 0.527  length/mean 7.760  entropy 0.450"
        "  accuracy/heldout 0.906  greedy/heldout 0.970  format/heldout 1.000\n"
        "look at this: 97 % of completions reach the length limit\n"
    )


def test_every_plain_line_is_flushed():
    class Counting(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Counting()
    tell(PlainDisplay(stream))
    assert stream.flushed == 3


def test_a_stream_gets_what_it_can_spell():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    PlainDisplay(stream).message("a ± b\x07\nc")
    assert raw.getvalue() == b"a \\xb1 b\nc\n"


def test_a_live_display_draws_the_numbers_and_keeps_alerts_above():
    stream = Terminal()
    tell(live(stream, [10.0, 10.0]))
    text = stream.getvalue()
    for words in ("continuing", "sums  GRPO 2 of 100", "0.527", "90.6 %", "1.00 GiB", "✓ 1.20  1+1="):
        assert words in text
    assert "look at this: 97 % of completions reach the length limit\n" in text
    assert "! step 2: 97 % of completions" in text
    assert "2\x1b[2J" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden once and given back


@pytest.mark.parametrize("width", [40, 80])
def test_a_live_display_keeps_to_its_terminal(width: int):
    stream = Terminal()
    tell(live(stream, [10.0, 10.0], width))
    assert "reward            0.527" in stream.getvalue()
    lines = stream.getvalue().replace("\x1b", "\n\x1b").splitlines()
    assert max(len(line) for line in lines if not line.startswith("\x1b")) <= width


def test_quick_steps_are_not_drawn_one_by_one():
    stream = Terminal()
    display = live(stream, [t for step in range(50) for t in (step * 0.01, step * 0.01)])  # half a second in all
    for step in range(1, 51):
        display.step({"phase": "grpo", "step": step}, RECORD, seconds={})
    assert stream.getvalue().count("GRPO") == 3  # at 0.00, 0.20 and 0.40 s
    display.close()
    assert "GRPO 50 of 100" in stream.getvalue()


def test_standard_output_is_given_back(monkeypatch: pytest.MonkeyPatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=80, height=50), Plan())
    display.step(AT, RECORD, seconds={})
    assert sys.stdout is not stream
    print("a word from a reward")
    display.close()
    assert sys.stdout is stream and "a word from a reward" in stream.getvalue()


@pytest.mark.parametrize("method", ["step", "completions", "alert", "message", "close"])
def test_a_display_that_raises_stops_nothing_and_is_replaced(method: str, capsys: pytest.CaptureFixture[str]):
    broken, rest = Broken(method), io.StringIO()
    guarded = Guarded(broken, PlainDisplay(rest))
    tell(guarded)
    tell(guarded)
    assert capsys.readouterr().err.count("the display failed (RuntimeError: ") == 1
    assert broken.closed == 1 + (method == "close")
    assert rest.getvalue().count("grpo     2") == (2 if method in ("step", "message") else 1)


def test_when_everything_fails_there_is_one_line_and_silence(capsys: pytest.CaptureFixture[str]):
    closed = io.StringIO()
    closed.close()
    guarded = Guarded(Broken("message"), PlainDisplay(closed))
    tell(guarded)
    assert capsys.readouterr().err == (
        "the display failed (RuntimeError: no message); training goes on, metrics.jsonl has everything\n"
    )


def test_an_interrupt_is_not_swallowed():
    class Interrupted(SilentDisplay):
        def message(self, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Interrupted()).message("x")


def shown(environ: dict[str, str], stream: io.StringIO, process: int = 0) -> str:
    display = choose(stream, process, plan=Plan("sums", {"grpo": 100}), environ=environ)
    tell(display)
    return stream.getvalue()


def test_a_terminal_gets_the_picture_unless_it_asks_for_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "GRPO 2 of 100" in shown({"TERM": "xterm"}, Terminal())
    assert "GRPO 2 of 100" in shown({"NO_COLOR": ""}, Terminal())
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = shown(environ, Terminal())
        assert "grpo     2  loss -0.012" in text and "\x1b" not in text


def test_what_is_no_terminal_gets_lines():
    latin = Terminal()
    latin.encoding = "latin-1"
    for stream in (io.StringIO(), latin):
        text = shown({}, stream)
        assert "grpo     2  loss -0.012" in text and "\x1b" not in text


def test_other_processes_and_closed_outputs_are_silent(monkeypatch: pytest.MonkeyPatch):
    assert shown({}, Terminal(), process=1) == ""
    monkeypatch.setattr(sys, "stdout", None)
    tell(choose())


def test_a_reader_who_leaves_costs_neither_the_run_nor_its_exit_code():
    """As with ``| head -1``: nobody reads any more, the program goes on and leaves with 0."""
    program = (
        "import sys, time\n"
        "from grpo_jax.display import choose\n"
        "display = choose()\n"
        "display.message('one')\n"
        "sys.stdin.read()\n"
        "for _ in range(3): display.message('two')\n"
        "print('the summary')\n"
        "sys.stderr.write('done')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdin and process.stdout and process.stderr
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert error.count("the display failed (BrokenPipeError") == 1 and error.endswith("done")
