"""Where the words of a run go: a live picture in a terminal, plain lines elsewhere, nothing on other processes.

A display never stops training: `choose` returns one that swallows what goes wrong after a word about it. The journals
are the source of truth, a display only tells.
"""

import codecs
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from grpo_jax.display.frame import Plan, View, chosen, frame, held_out
from grpo_jax.lifeline import give_up, say
from grpo_jax.memory import peak_memory
from grpo_jax.report import clean

REFRESH_S = 0.2
"""Seconds between two pictures; steps that are quicker do not wait for a terminal."""


class Display(Protocol):
    """What a run tells."""

    def step(self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]) -> None:
        """A step was done: {"phase", "step"}, its metrics, and the seconds of its phases by name."""
        ...

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records of `samples.jsonl`, all of a step or of an evaluation; a few of them are shown."""
        ...

    def alert(self, sentence: str) -> None:
        """Something looks wrong."""
        ...

    def message(self, text: str) -> None:
        """Something is worth knowing."""
        ...

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        ...


class SilentDisplay:
    """Says nothing: processes other than the first."""

    def step(
        self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]
    ) -> None: ...

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def alert(self, sentence: str) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


class PlainDisplay:
    """A line a step, at once, in what `stream` can spell."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def step(self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]) -> None:
        del seconds  # the line is the same whoever computes it
        names = ["loss", "reward/mean", "length/mean", "entropy"]
        sets = [name for name in held_out(record) if "[" not in name]  # without their categories
        names += [f"{kind}/{name}" for name in sets for kind in ("accuracy", "greedy", "format")]
        words = "  ".join(f"{name} {record[name]:.3f}" for name in names if name in record)
        self._print(f"{position['phase']} {position['step']:>5}  {words}")

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Not among the lines: `samples.jsonl` has them all."""

    def alert(self, sentence: str) -> None:
        self._print(f"look at this: {clean(sentence)}")

    def message(self, text: str) -> None:
        self._print(_lines(text))

    def close(self) -> None: ...

    def _print(self, text: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self.stream.flush()
        except OSError:
            give_up(self.stream)
            raise


class LiveDisplay:
    """One picture of the run at the foot of a terminal, drawn again after every step; alerts stay above it.

    It is drawn by the thread that trains and by no other, so an error surfaces where it can be swallowed. What is
    printed meanwhile appears above; stderr is left alone, because the watchdog must get through.
    """

    def __init__(
        self,
        console: Console,
        plan: Plan,
        *,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], tuple[float, str]] = peak_memory,
    ) -> None:
        self.console, self.view = console, View(plan)
        self._clock, self._memory = clock, memory
        self._drawn = -float("inf")
        self._live: Live | None = None

    def step(self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]) -> None:
        self.view.see(position, record, seconds, self._clock())
        self.view.memory = self._memory()
        self._draw()

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.view.rows = chosen(rows)

    def alert(self, sentence: str) -> None:
        self.view.alerts.append(f"step {self.view.step}: {sentence}")
        self.console.print(Text(f"look at this: {clean(sentence)}", style="yellow"))

    def message(self, text: str) -> None:
        self.console.print(Text(_lines(text)))

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.update(frame(self.view, self.console.width), refresh=True)
            finally:
                live.stop()

    def _draw(self) -> None:
        now = self._clock()
        if now - self._drawn < REFRESH_S:
            return
        self._drawn = now
        picture = frame(self.view, self.console.width)
        if self._live is None:
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                redirect_stdout=self.console.file is sys.stdout,
                redirect_stderr=False,
                vertical_overflow="ellipsis",
            )
            self._live.start()
        self._live.update(picture, refresh=True)


class Guarded:
    """A display whose failures stop nothing: one line on stderr, then `fallback`, and in the end silence."""

    def __init__(self, display: Display, fallback: Display | None = None) -> None:
        self._displays: list[Display] = [display, *([fallback] if fallback else []), SilentDisplay()]
        self._warned = False

    def step(self, position: Mapping[str, Any], record: Mapping[str, float], *, seconds: Mapping[str, float]) -> None:
        self._call("step", position, record, seconds=seconds)

    def completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._call("completions", rows)

    def alert(self, sentence: str) -> None:
        self._call("alert", sentence)

    def message(self, text: str) -> None:
        self._call("message", text)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any, **keywords: Any) -> None:
        while True:
            try:
                return getattr(self._displays[0], method)(*arguments, **keywords)
            except Exception as error:
                broken = self._displays.pop(0)
                with contextlib.suppress(Exception):
                    broken.close()
                if not self._warned:
                    self._warned = True
                    what = f"{type(error).__name__}: {error}".rstrip(": ")
                    say(f"the display failed ({clean(what)}); training goes on, metrics.jsonl has everything")


def _lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.splitlines())


def choose(
    stream: TextIO | None = None,
    process_index: int = 0,
    *,
    plan: Plan | None = None,
    environ: Mapping[str, str] | None = None,
) -> Display:
    """The display for `stream` (default: standard output), guarded.

    Live in a terminal that can move its cursor and spell UTF-8; plain lines otherwise and wherever NO_COLOR is set to
    anything; silent on processes other than 0.
    """
    stream = sys.stdout if stream is None else stream
    if process_index or stream is None:  # Python has no standard output where its descriptor is closed
        return Guarded(SilentDisplay())
    if _capable(stream, os.environ if environ is None else environ):
        return Guarded(LiveDisplay(Console(file=stream), plan or Plan()), PlainDisplay(stream))
    return Guarded(PlainDisplay(stream))


def _capable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty() and codecs.lookup(stream.encoding).name == "utf-8"
    except (AttributeError, LookupError, OSError, TypeError, ValueError):
        return False
