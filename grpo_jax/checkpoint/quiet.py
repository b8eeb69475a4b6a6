"""The log of storage, kept off the terminal of a run, and what matters of its complaints."""

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_STORAGE = f"{os.sep}orbax{os.sep}"


def _not_storage(record: logging.LogRecord) -> bool:
    return _STORAGE not in record.pathname and _STORAGE not in record.getMessage()


def _unraisable(before: Callable[[Any], object], unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    left = str(unraisable.exc_value) == "Event loop is closed" or (code and _STORAGE in code.co_filename)
    if not left:
        before(unraisable)


def quiet_storage() -> None:
    """Keeps the log and the pages of complaints of storage off the terminal: what matters is raised, in a sentence.

    A failed read leaves reads of other arrays behind, which complain whenever they happen to be collected.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_storage)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def essence(error: BaseException) -> str:
    """What the system said, out of the pages that storage makes of it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = " ".join(str(error).split())
    known = next((os.strerror(number) for number in _OF_DISKS if os.strerror(number) in told), None)
    return known or (told if len(told) <= 300 else told[:300] + "...")
