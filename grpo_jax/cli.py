"""The command line: ``grpo-jax train FILE [flags]``, and the same flags for ``python FILE``.

``ablate FILE`` trains all variants of a file with several seeds and compares them.

``show RUN``, ``report RUN...``, ``eval RUN`` and ``sample RUN`` look at the folder of a run: its files, its newest
checkpoint.

Exit codes are those of `lifeline`: 0 done, 3 diverged, 4 configuration or usage, 5 data or reward, 70 hang, 75
preempted.
"""

import argparse
import difflib
import importlib.util
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from grpo_jax import __version__
from grpo_jax.endings import Unloadable, guarded
from grpo_jax.lifeline import MEANINGS, BadData, Exit, page, say
from grpo_jax.origin import Origin, origin_of

if TYPE_CHECKING:
    from grpo_jax.experiment import Experiment

SAMPLES = "worst, best, truncated, invalid or disagreement (of verifiers)"


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
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    train = commands.add_parser(
        "train", help="train the experiment in FILE, or continue it", epilog=f"Exit codes: {codes}"
    )
    train.add_argument("file", metavar="FILE", help="Python file with an EXPERIMENT, and perhaps VARIANTS")
    _flags(train)
    ablate = commands.add_parser("ablate", help="train the VARIANTS of FILE with several seeds and compare them")
    ablate.add_argument("file", metavar="FILE", help="Python file with VARIANTS, and perhaps SEEDS")
    _ablate_flags(ablate)
    _show_flags(commands.add_parser("show", help="what is in the folder of a run: table, curves, alerts, completions"))
    _report_flags(commands.add_parser("report", help="write figures and a page of HTML about one run or several"))
    _eval_flags(commands.add_parser("eval", help="evaluate a checkpoint of a run again, in other sizes"))
    _sample_flags(commands.add_parser("sample", help="print completions of a checkpoint of a run"))
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


def _help(parser: _Parser, commands: Mapping[str, _Parser], parsed: argparse.Namespace) -> int:
    page((commands[parsed.of] if parsed.of else parser).format_help())
    return int(Exit.DONE)


def main_for(file: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """The same for an experiment that is run as a script; ends the process."""
    _script(file, arguments, _flags, "Train this experiment, or continue it.")


def ablate_for(file: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """``grpo-jax ablate`` for a file that is run as a script; ends the process."""
    _script(file, arguments, _ablate_flags, "Train all variants of this file and compare them, or go on with it.")


def _script(
    file: str,
    arguments: Sequence[str] | None,
    flags: Callable[[argparse.ArgumentParser], None],
    description: str,
) -> NoReturn:
    parser = _Parser(prog=Path(file).name, description=description)
    flags(parser)
    parsed = parser.parse_args(arguments)
    parsed.file = file
    sys.exit(guarded(partial(parsed.act, parsed)))


def _flags(parser: argparse.ArgumentParser) -> None:
    _choices(parser)
    parser.add_argument(
        "--run-dir", metavar="DIR", help="folder of the run; default runs/ and the name of the experiment"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="move an existing run aside and start anew; default: continue it"
    )
    parser.add_argument(
        "--accept-code-change",
        action="store_true",
        help="continue although a function of the experiment has changed, and write that down; default: refuse",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, sizes, memory and scored examples; default: train",
    )
    parser.set_defaults(act=_train)


def _ablate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variants", metavar="A,B", help="some of the VARIANTS, or EXPERIMENT; default all VARIANTS")
    parser.add_argument("--seeds", metavar="0,1,2", help="default the SEEDS of the file, else that of the experiments")
    _settings(parser)
    parser.add_argument("--dir", metavar="DIR", help="folder of the ablation; default runs/FILE-ablation")
    parser.add_argument("--rollouts", metavar="FILE", help="the first variant records, the others learn from the same")
    parser.add_argument("--fresh", action="store_true", help="move an existing ablation aside and start anew")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how they differ; train nothing")
    parser.set_defaults(act=_ablate)


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="A.B=V",
        help="change a setting; may be repeated; default: as the file says",
    )


def _choices(parser: argparse.ArgumentParser) -> None:
    _settings(parser)
    parser.add_argument("--variant", metavar="NAME", help="one of the VARIANTS of the file; default: its EXPERIMENT")


def _show_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--samples", metavar="WHICH", help=f"completions too: {SAMPLES}; default: none")
    parser.add_argument("--set-name", default="train", metavar="SET", help="train (the default) or heldout")
    parser.add_argument("--step", type=int, metavar="N", help="step of the completions; default the newest")
    parser.add_argument("--most", type=int, default=5, metavar="K", help="completions at most, default 5")
    _verifiers(parser)
    parser.set_defaults(act=_show)


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run; of several the page shows all")
    parser.add_argument(
        "--out", metavar="FILE", help="the page; default RUN/report.html with RUN/figure.svg, of several ./report.html"
    )
    parser.add_argument(
        "--most", type=int, default=12, metavar="K", help="completions of a set and step at most, default 12"
    )
    _verifiers(parser)
    parser.set_defaults(act=_report)


def _verifiers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verifiers", metavar="A,B", help="components that may disagree; default accuracy... of 0 and 1"
    )


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument("--prompts", type=int, metavar="N", help="held-out problems; default evaluation.full_prompts")
    parser.add_argument("--samples", type=int, metavar="K", help="completions of each; default evaluation.samples")
    parser.add_argument("--sets", metavar="A,B", help="held-out sets; default all")
    parser.add_argument("--ks", type=_numbers, metavar="K,K", help="of pass@k and maj@k; default evaluation.ks")
    parser.set_defaults(act=_evaluate)


def _sample_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument(
        "--prompt", dest="prompts", nargs="+", action="extend", default=[], metavar="TEXT", help="default held-out ones"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="completions of each, default 1")
    parser.add_argument("--temperature", type=float, metavar="T", help="default that of training; 0 is greedy")
    parser.set_defaults(act=_sample)


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--file", metavar="FILE", help="file of the experiment; default the one the run was started by")
    _choices(parser)
    parser.add_argument("--seed", type=int, metavar="S", help="of the sampled tokens; default that of the run")
    parser.add_argument(
        "--checkpoint",
        default="newest",
        metavar="WHICH",
        help="newest (the default), best, a step of GRPO, or warm_start/STEP",
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _train(parsed: argparse.Namespace) -> int:
    # Imported here: a usage error needs no JAX.
    from grpo_jax.compiled import check_backend, keep_programs
    from grpo_jax.loop import run
    from grpo_jax.plan import preview

    keep_programs()
    check_backend()
    experiment = _experiment(parsed.file, parsed.variant, parsed.settings)
    if parsed.dry_run:
        found = preview(experiment)
        page(found.page)
        if found.trouble is not None:
            raise BadData(found.trouble)
        return int(Exit.DONE)
    origin = Origin(str(Path(parsed.file).resolve()), parsed.variant, tuple(parsed.settings))
    how = {"run_dir": parsed.run_dir, "fresh": parsed.fresh, "accept_code_change": parsed.accept_code_change}
    run(experiment, **how, origin=origin)
    return int(Exit.DONE)


def _ablate(parsed: argparse.Namespace) -> int:
    from grpo_jax.ablation import command
    from grpo_jax.compiled import keep_programs

    keep_programs()
    file = Path(parsed.file)
    chosen = {"variants": parsed.variants, "seeds": parsed.seeds, "rollouts": parsed.rollouts}
    ablation = command.planned(file, load(file), assignments=parsed.settings, **chosen)
    folder = Path(parsed.dir or Path("runs") / f"{file.stem}-ablation")
    if parsed.dry_run:
        page(command.preview(ablation, folder))
        return int(Exit.DONE)
    return command.ablate(ablation, folder, fresh=parsed.fresh, show=page)


def _show(parsed: argparse.Namespace) -> int:
    from grpo_jax.show import overview, samples

    page(overview(Path(parsed.run)))
    if parsed.samples is not None:
        asked = {"which": parsed.samples, "set_name": parsed.set_name, "step": parsed.step, "most": parsed.most}
        chosen = samples(Path(parsed.run), verifiers=_names(parsed.verifiers), **asked)
        page(f"\n{chosen}")
    return int(Exit.DONE)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _report(parsed: argparse.Namespace) -> int:
    from grpo_jax.report.page import write

    out = Path(parsed.out) if parsed.out else None
    how = {"most": parsed.most, "verifiers": _names(parsed.verifiers)}
    for path in write([Path(run) for run in parsed.runs], out=out, **how):
        page(f"{path}\n")
    return int(Exit.DONE)


def _evaluate(parsed: argparse.Namespace) -> int:
    experiment = _of_run(parsed)
    from grpo_jax.revisit import evaluate_again, evaluation_table

    run, sizes = Path(parsed.run), {"prompts": parsed.prompts, "samples": parsed.samples, "seed": parsed.seed}
    what = {"sets": _names(parsed.sets), "ks": parsed.ks, "checkpoint": parsed.checkpoint}
    page(evaluation_table(evaluate_again(run, experiment, **sizes, **what)))
    if os.access(run, os.W_OK):
        page(f"numbers in {run / 'eval.json'}\n")
    return int(Exit.DONE)


def _sample(parsed: argparse.Namespace) -> int:
    experiment = _of_run(parsed)
    from grpo_jax.revisit import sample_again, sample_page

    how = {"samples": parsed.samples, "temperature": parsed.temperature, "seed": parsed.seed}
    how["checkpoint"] = parsed.checkpoint
    page(sample_page(sample_again(Path(parsed.run), experiment, texts=parsed.prompts, **how)))
    return int(Exit.DONE)


def _of_run(parsed: argparse.Namespace) -> "Experiment":
    """The experiment of a run that is there, made again from its file."""
    origin = origin_of(Path(parsed.run), file=parsed.file, variant=parsed.variant, assignments=parsed.settings)
    say(f"experiment: {origin.file}")
    from grpo_jax.compiled import check_backend, keep_programs

    keep_programs()
    check_backend()
    return _experiment(origin.file, origin.variant, origin.assignments)


def _experiment(file: str, variant: str | None, assignments: Sequence[str]) -> "Experiment":
    from grpo_jax.experiment import Experiment
    from grpo_jax.overrides import override, repeated

    experiment = _chosen(load(Path(file)), variant, file)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{file}: {'VARIANTS' if variant else 'EXPERIMENT'} holds a {type(experiment).__name__},"
            " allowed is a grpo_jax.Experiment: write EXPERIMENT = Experiment(...)"
        )
    for path, texts in repeated(assignments).items():
        say(f"--set {path}: got {', '.join(texts)}; the last counts")
    return override(experiment, assignments)


def load(path: Path) -> ModuleType:
    """The module in the file `path`, imported under the name of the file.

    A script that is run itself goes by the same name in descriptions, so both ways continue each other's runs. Raises
    ValueError for a file that is not there, or whose name hides another module.
    """
    if not path.is_file():
        raise ValueError(
            f"FILE: got {path}, which is no file; allowed is a Python file with an EXPERIMENT: check the path"
        )
    path, name = path.resolve(), path.stem
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) != str(path):
        raise ValueError(
            f"FILE: got {path}, whose name is that of the module {name!r}; allowed is a name of its own: rename the"
            " file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"FILE: got {path}, which Python cannot import; allowed is a file that ends in .py: rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, BadData) or not isinstance(error, Exception | SystemExit) or _explained(error):
            raise
        raise Unloadable(_blamed(path, error)) from error
    return module


def _explained(error: BaseException) -> bool:
    """Whether `error` is a ValueError that this package raised, which says itself what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    return ours and isinstance(error, ValueError) and not isinstance(error, UnicodeError)


def _blamed(path: Path, error: BaseException) -> str:
    """Which line of the file `path` led to `error`, and what that was."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, what = error.lineno, f"{error.msg}: {(error.text or '').strip()}"
    elif isinstance(error, OSError) and error.filename == str(path):
        return f"FILE: {path} cannot be read ({error.strerror}); allowed is a Python file: make it readable"
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, what = frames[-1].lineno if frames else None, str(error)
    where = f"{path}:{line}" if line else str(path)
    return f"{where}: {type(error).__name__}: {what}; allowed is a file that Python can import: correct it"


def _chosen(module: ModuleType, variant: str | None, file: str) -> object:
    variants = getattr(module, "VARIANTS", {})
    if not isinstance(variants, Mapping):
        raise ValueError(
            f"{file}: VARIANTS is a {type(variants).__name__}, allowed is a mapping from names to experiments: write"
            ' VARIANTS = {"name": Experiment(...)}'
        )
    if variant is None:
        if not hasattr(module, "EXPERIMENT"):
            raise ValueError(
                f"{file}: got no EXPERIMENT, allowed is a file that defines one: write EXPERIMENT = Experiment(...)"
            )
        return module.EXPERIMENT
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, n=1)
        raise ValueError(
            f"--variant: got {variant!r}, allowed {', '.join(map(str, variants)) or 'none, the file has no VARIANTS'}: "
            + (f"did you mean {near[0]!r}?" if near else "choose one of these or leave it out")
        )
    return variants[variant]
