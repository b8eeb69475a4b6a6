"""``show``, ``report``, ``eval`` and ``sample``: their flags, and what they do with the folder of a run."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_jax.cli.files import experiment_of
from grpo_jax.cli.parser import choice_flags, names, numbers
from grpo_jax.lifeline import Exit, page, say
from grpo_jax.origin import origin_of

if TYPE_CHECKING:
    from grpo_jax.experiment import Experiment

SAMPLES = "worst, best, truncated, invalid or disagreement (of verifiers)"


def show_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``show``, which prints what is in the folder of a run."""
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--samples", metavar="WHICH", help=f"completions too: {SAMPLES}; default: none")
    parser.add_argument("--set-name", default="train", metavar="SET", help="train (the default) or heldout")
    parser.add_argument("--step", type=int, metavar="N", help="step of the completions; default the newest")
    parser.add_argument("--most", type=int, default=5, metavar="K", help="completions at most, default 5")
    _verifiers(parser)
    parser.set_defaults(act=_show)


def report_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``report``, which writes a page about runs."""
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


def eval_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``eval``, which evaluates a checkpoint again."""
    _run_flags(parser)
    parser.add_argument("--prompts", type=int, metavar="N", help="held-out problems; default evaluation.full_prompts")
    parser.add_argument("--samples", type=int, metavar="K", help="completions of each; default evaluation.samples")
    parser.add_argument("--sets", metavar="A,B", help="held-out sets; default all")
    parser.add_argument("--ks", type=numbers, metavar="K,K", help="of pass@k and maj@k; default evaluation.ks")
    parser.set_defaults(act=_evaluate)


def sample_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of ``sample``, which prints completions of a checkpoint."""
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
    choice_flags(parser)
    parser.add_argument("--seed", type=int, metavar="S", help="of the sampled tokens; default that of the run")
    parser.add_argument(
        "--checkpoint",
        default="newest",
        metavar="WHICH",
        help="newest (the default), best, a step of GRPO, or warm_start/STEP",
    )


def _show(parsed: argparse.Namespace) -> int:
    from grpo_jax.show import overview, samples

    page(overview(Path(parsed.run)))
    if parsed.samples is not None:
        asked = {"which": parsed.samples, "set_name": parsed.set_name, "step": parsed.step, "most": parsed.most}
        chosen = samples(Path(parsed.run), verifiers=names(parsed.verifiers), **asked)
        page(f"\n{chosen}")
    return int(Exit.DONE)


def _report(parsed: argparse.Namespace) -> int:
    from grpo_jax.report.page import write

    out = Path(parsed.out) if parsed.out else None
    how = {"most": parsed.most, "verifiers": names(parsed.verifiers)}
    for path in write([Path(run) for run in parsed.runs], out=out, **how):
        page(f"{path}\n")
    return int(Exit.DONE)


def _evaluate(parsed: argparse.Namespace) -> int:
    experiment = _of_run(parsed)
    from grpo_jax.revisit import evaluate_again, evaluation_table

    run, sizes = Path(parsed.run), {"prompts": parsed.prompts, "samples": parsed.samples, "seed": parsed.seed}
    what = {"sets": names(parsed.sets), "ks": parsed.ks, "checkpoint": parsed.checkpoint}
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
    return experiment_of(origin.file, origin.variant, origin.assignments)
