"""Storage complains to nobody; everybody else is heard."""

import errno
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_jax.checkpoint.quiet import essence, quiet_storage


def test_the_log_of_storage_is_dropped_and_that_of_others_is_not(caplog: pytest.LogCaptureFixture):
    quiet_storage()
    log = logging.getLogger("absl")
    log.error("could not read %s", os.path.join("site", "orbax", "x.py"))
    log.error("something else")
    assert caplog.messages == ["something else"]


def test_what_a_failed_read_leaves_behind_is_quiet_and_other_failures_are_passed_on(monkeypatch: pytest.MonkeyPatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    quiet_storage()
    quiet_storage()  # once is enough: a second call does not wrap the first
    closed: Any = SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed"))
    other: Any = SimpleNamespace(object=None, exc_value=RuntimeError("a mistake"))
    for unraisable in (closed, other):
        sys.unraisablehook(unraisable)
    assert heard == [other]


def test_of_pages_of_complaints_the_word_of_the_system_remains():
    pages = (
        "RESOURCE_EXHAUSTED: Error writing file: [OS error 28: No space left on device] " + "[source locations] " * 900
    )
    assert essence(ValueError(pages)) == "No space left on device"
    assert essence(OSError(errno.EROFS, "Read-only file system", "x")) == "Read-only file system"
    assert essence(RuntimeError("something\n  else")) == "something else"
    assert essence(RuntimeError("x" * 1000)) == "x" * 300 + "..."
