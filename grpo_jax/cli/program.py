"""A command line from its words to its exit code."""

import argparse
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from grpo_jax import __version__
from grpo_jax.cli.looking import eval_flags, report_flags, sample_flags, show_flags
from grpo_jax.cli.parser import Parser
from grpo_jax.cli.training import ablate_flags, train_flags
from grpo_jax.endings import guarded
from grpo_jax.lifeline import MEANINGS, Exit, page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    codes = "; ".join(f"{int(code)} {meaning}" for code, meaning in MEANINGS.items())
    parser = Parser(
        prog="grpo-jax", description="Group relative policy optimisation in JAX.", epilog=f"Exit codes: {codes}"
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    train = commands.add_parser(
        "train", help="train the experiment in FILE, or continue it", epilog=f"Exit codes: {codes}"
    )
    train.add_argument("file", metavar="FILE", help="Python file with an EXPERIMENT, and perhaps VARIANTS")
    train_flags(train)
    ablate = commands.add_parser("ablate", help="train the VARIANTS of FILE with several seeds and compare them")
    ablate.add_argument("file", metavar="FILE", help="Python file with VARIANTS, and perhaps SEEDS")
    ablate_flags(ablate)
    show_flags(commands.add_parser("show", help="what is in the folder of a run: table, curves, alerts, completions"))
    report_flags(commands.add_parser("report", help="write figures and a page of HTML about one run or several"))
    eval_flags(commands.add_parser("eval", help="evaluate a checkpoint of a run again, in other sizes"))
    sample_flags(commands.add_parser("sample", help="print completions of a checkpoint of a run"))
    helping = commands.add_parser("help", help="what a command does, its flags and their defaults")
    helping.add_argument("of", metavar="COMMAND", nargs="?", choices=sorted(commands.choices), help="default: all")
    helping.set_defaults(act=partial(_help, parser, commands.choices))
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        parser.exit(int(Exit.CONFIGURATION), f"{parser.prog}: got no command, allowed are those above: name one\n")
    return guarded(partial(parsed.act, parsed))


def _versions() -> str:
    """Ours, and those that a report of an error should name."""
    return f"grpo-jax {__version__} (jax {version('jax')}, Python {platform.python_version()})"


def _help(parser: Parser, commands: Mapping[str, Parser], parsed: argparse.Namespace) -> int:
    page((commands[parsed.of] if parsed.of else parser).format_help())
    return int(Exit.DONE)


def main_for(file: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """The same for an experiment that is run as a script; ends the process."""
    _script(file, arguments, train_flags, "Train this experiment, or continue it.")


def ablate_for(file: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """``grpo-jax ablate`` for a file that is run as a script; ends the process."""
    _script(file, arguments, ablate_flags, "Train all variants of this file and compare them, or go on with it.")


def _script(
    file: str,
    arguments: Sequence[str] | None,
    flags: Callable[[argparse.ArgumentParser], None],
    description: str,
) -> NoReturn:
    parser = Parser(prog=Path(file).name, description=description)
    flags(parser)
    parsed = parser.parse_args(arguments)
    parsed.file = file
    sys.exit(guarded(partial(parsed.act, parsed)))
