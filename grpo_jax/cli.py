"""The command line: ``grpo-jax train FILE [flags]``, and the same flags for ``python FILE``.

Exit codes are those of `lifeline`: 0 done, 3 diverged, 4 configuration or usage, 5 data or reward, 70 hang, 75 preempted.
"""

import argparse
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from grpo_jax.lifeline import MEANINGS, Exit, RunStopped, say


class _Parser(argparse.ArgumentParser):
    """argparse with the exit code of a usage error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(int(Exit.CONFIGURATION), f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    codes = "; ".join(f"{int(code)} {meaning}" for code, meaning in MEANINGS.items())
    parser = _Parser(
        prog="grpo-jax", description="Group relative policy optimisation in JAX.", epilog=f"Exit codes: {codes}"
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    train = commands.add_parser(
        "train", help="train the experiment in FILE, or continue it", epilog=f"Exit codes: {codes}"
    )
    train.add_argument("file", metavar="FILE", help="Python file with an EXPERIMENT, and perhaps VARIANTS")
    _flags(train)
    return _guarded(parser.parse_args(arguments))


def main_for(file: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """The same for an experiment that is run as a script; ends the process."""
    parser = _Parser(prog=Path(file).name, description="Train this experiment, or continue it.")
    _flags(parser)
    parsed = parser.parse_args(arguments)
    parsed.file = file
    sys.exit(_guarded(parsed))


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="A.B=V", help="change a setting; may be repeated"
    )
    parser.add_argument("--variant", metavar="NAME", help="one of the VARIANTS of the file")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of the run; default runs/NAME")
    parser.add_argument("--fresh", action="store_true", help="move an existing run aside and start anew")


def _guarded(parsed: argparse.Namespace) -> int:
    try:
        return _train(parsed)
    except RunStopped as stop:
        say(f"stopped: {stop.sentence}")
        return int(stop.code)
    except ValueError as error:
        if os.environ.get("GRPO_JAX_TRACEBACK"):
            raise
        say(f"error: {error}\n(GRPO_JAX_TRACEBACK=1 shows where)")
        return int(Exit.CONFIGURATION)


def _train(parsed: argparse.Namespace) -> int:
    # Imported here: a usage error needs no JAX.
    from grpo_jax.experiment import Experiment
    from grpo_jax.loop import run
    from grpo_jax.overrides import override

    module = load(Path(parsed.file))
    experiment = _chosen(module, parsed.variant, parsed.file)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{parsed.file}: EXPERIMENT is a {type(experiment).__name__}, allowed is a grpo_jax.Experiment"
        )
    run(override(experiment, parsed.settings), run_dir=parsed.run_dir, fresh=parsed.fresh)
    return int(Exit.DONE)


def load(path: Path) -> ModuleType:
    """The module in the file `path`, imported under a name that depends on the path alone.

    Raises ValueError for a file that is not there.
    """
    if not path.is_file():
        raise ValueError(
            f"FILE: got {path}, which is no file; allowed is a Python file with an EXPERIMENT: check the path"
        )
    name = f"experiment_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"FILE: got {path}, which Python cannot import; allowed is a file that ends in .py: rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _chosen(module: ModuleType, variant: str | None, file: str) -> object:
    if variant is None:
        if not hasattr(module, "EXPERIMENT"):
            raise ValueError(f"{file}: has no EXPERIMENT; define one: EXPERIMENT = Experiment(...)")
        return module.EXPERIMENT
    variants: Mapping[str, object] = getattr(module, "VARIANTS", {})
    if variant not in variants:
        raise ValueError(
            f"--variant: got {variant!r}, allowed {', '.join(variants) or 'none: the file has no VARIANTS'}"
        )
    return variants[variant]
