"""A parser whose usage errors end with our exit code, and the flags that several commands share."""

import argparse
import sys
from typing import NoReturn

from grpo_jax.lifeline import Exit


class Parser(argparse.ArgumentParser):
    """argparse with the exit code of a usage error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(int(Exit.CONFIGURATION), f"{self.prog}: {message}\n")


def settings_flag(parser: argparse.ArgumentParser) -> None:
    """``--set A.B=V``."""
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="A.B=V",
        help="change a setting; may be repeated; default: as the file says",
    )


def choice_flags(parser: argparse.ArgumentParser) -> None:
    """Which experiment of a file, with which settings."""
    settings_flag(parser)
    parser.add_argument("--variant", metavar="NAME", help="one of the VARIANTS of the file; default: its EXPERIMENT")


def names(text: str | None) -> list[str] | None:
    """The names in a text with commas between; None stays."""
    return None if text is None else [name for name in text.split(",") if name]


def numbers(text: str) -> list[int]:
    """The whole numbers in a text with commas between. Raises ValueError for anything else."""
    return [int(number) for number in text.split(",")]
