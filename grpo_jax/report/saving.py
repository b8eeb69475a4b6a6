"""Files that a report leaves behind: whole or not at all, and never in the place of somebody else's."""

import contextlib
import os
from pathlib import Path

MARK = '<meta name="generator" content="grpo-jax report">'
"""What every page carries near its beginning, by which it is known as one that may be written again."""
_NEAR = 1000


def replace(path: Path, text: str) -> None:
    """`text` at `path`, by way of a new file beside it: a link at `path` is replaced, not followed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_place(path: Path) -> None:
    """ValueError where a page cannot be written to `path`, or a file stands there that is none of ours."""
    if not path.parent.is_dir():
        raise ValueError(f"--out: got {path}, whose folder is not there; allowed is a file in a folder: make it first")
    if path.is_dir():
        raise ValueError(
            f"--out: got {path}, which is a folder; allowed is a file: say for instance {path / 'report.html'}"
        )
    if not os.path.lexists(path):
        return
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            if MARK in file.read(_NEAR):
                return
    raise ValueError(
        f"--out: got {path}, where a file stands that is no report of grpo-jax; allowed is a new name, or an older"
        " report: choose another with --out FILE, or move that file away"
    )
