"""An ablation before training: the gradients of all recipes on one batch of rollouts, compared in seconds.

    python experiments/compare_gradients.py                          # every recipe, on the quickstart
    python experiments/compare_gradients.py --run runs/quickstart    # the same at the newest checkpoint of a run
    python experiments/compare_gradients.py --categories             # one recipe, the categories of mixed.py

A table says of every recipe how large its gradient is, how much of it is noise, how many rows and tokens it is made of
and how much clipping took away; `gradients.svg` shows which recipes pull in the same direction. With ``--categories``
it is about one recipe: do the categories of a mixture help each other or pull against each other (`conflicts.svg`)?
`docs/compare_gradients.md` explains every column.

The policy is that of the warm start (which is trained first and kept), or of a run. It samples a batch; then, by
``--drift-steps`` updates of the experiment's own recipe on that batch, it moves away from the policy that sampled, as
it does in training after the first updates on a batch: without that every ratio is 1, and recipes that differ in what
they do with ratios alone have the same gradient. The reference of a KL penalty is the policy that sampled.
"""

import argparse
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.table import Table
from rich.text import Text

from grpo_jax import cli, report
from grpo_jax.compiled import check_backend, keep_programs
from grpo_jax.contrast import Sample, absent, categories, check, compare_at, conflict_at, sampled
from grpo_jax.endings import guarded
from grpo_jax.experiment import Evaluation, Experiment, step_settings
from grpo_jax.folder import PHASES, visit
from grpo_jax.journal import write_json
from grpo_jax.lifeline import Exit, page, say
from grpo_jax.loop import run
from grpo_jax.objectives import RECIPES, Comparison, Conflict
from grpo_jax.origin import origin_of
from grpo_jax.report.heatmap import clustered, draw
from grpo_jax.report.saving import replace as write_text
from grpo_jax.revisit import NEWEST, restore
from grpo_jax.train import host
from grpo_jax.types import Params

HERE = Path(__file__).resolve().parent
COLUMNS = (
    ("norm", "norm", ".3g"),
    ("variance", "variance", ".3g"),
    ("snr", "SNR", ".2f"),
    ("ess_ratio", "ESS ratios", "%"),
    ("ess_advantage", "ESS rows", "%"),
    ("ess_gradient", "ESS tokens", "%"),
    ("clipped", "clipped", "%"),
    ("silent", "silent", "%"),
)
"""Field of a `Comparison`, heading, format."""


# The policy and its rollouts


def experiment_of(asked: argparse.Namespace) -> tuple[Experiment, Path]:
    """The experiment that the flags name, and the folder of a run of it."""
    if asked.run is not None:
        origin = origin_of(Path(asked.run), assignments=asked.settings)
        return cli.experiment_of(origin.file, origin.variant, origin.assignments), Path(asked.run)
    name = "quickstart" if asked.categories is None else "mixed"
    return cli.experiment_of(str(HERE / f"{name}.py"), None, asked.settings), Path(asked.dir) / f"policy-{name}"


def policy_of(
    experiment: Experiment, folder: Path, asked: argparse.Namespace
) -> tuple[Params, Params | None, dict[str, Any], int]:
    """A policy of the experiment, trained and frozen part, where that is from, and the draws that it has made."""
    if asked.run is None:
        small: Evaluation = replace(
            experiment.evaluation, full_prompts=experiment.evaluation.prompts, samples=1, show=0
        )
        experiment = replace(experiment, train=replace(experiment.train, steps=0), evaluation=small)
        if not (folder / "summary.json").exists():  # else the warm start was done before
            run(experiment, folder)
    with visit(folder, experiment) as kept:
        found = restore(kept, experiment, asked.checkpoint)
    draws = int(found.state.cursor) if found.meta["phase"] == PHASES[-1] else 0
    at = {"run": str(folder), **{n: found.meta[n] for n in ("phase", "step")}}
    return host(found.state.params), host(found.frozen), at, draws


def chosen(asked: str | None, sample: Sample) -> tuple[str, ...]:
    """The names of the recipes to compare: those that were asked for, or all that can run here."""
    missing = {name: absent(recipe, sample) for name, recipe in RECIPES.items()}
    if asked is None:
        left = "; ".join(f"{name} (reads {', '.join(read)})" for name, read in missing.items() if read)
        if left:
            say(f"left out: {left}")
        return tuple(name for name, read in missing.items() if not read)
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names:
        _check(name, sample, "--recipes")
    return names


def _check(name: str, sample: Sample, flag: str) -> None:
    missing = absent(RECIPES[name], sample)
    if missing:
        raise ValueError(
            f"{flag}: got {name}, which reads {', '.join(missing)}; allowed are recipes that read what this experiment"
            " fills: leave it out, or give --run a run whose model and reward have that"
        )


def _known(name: str, flag: str) -> None:
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        raise ValueError(
            f"{flag}: got {name!r}, allowed {', '.join(RECIPES)}: "
            + (f"did you mean {near[0]}?" if near else "choose some of these, with commas between")
        )


# What is shown


def comparison_table(found: Comparison) -> str:
    """A row for every recipe; its cosine to the first one at the end."""
    first = found.names[0]
    table = _table("recipe", *(heading for _, heading, _ in COLUMNS), f"cosine to {first}")
    for k, name in enumerate(found.names):
        cells = [_said(float(getattr(found, field)[k]), form) for field, _, form in COLUMNS]
        table.add_row(name, *cells, _said(float(found.cosine[k, 0]), ".3f"))
    return report.rendered(table, width=report.WIDTH)


def conflict_table(found: Conflict) -> str:
    """A row for every category: its prompts, its gradient, its cosines to the others and the share of opposed pairs."""
    names = [report.clean(name) for name in found.names]
    table = _table("category", "prompts", "telling", "norm", "share of the whole", *names)
    for i, name in enumerate(names):
        counts = (f"{found.prompts[i]:.0f}", f"{found.telling[i]:.0f}", _said(float(found.norm[i]), ".3g"))
        pairs = [
            f"{_said(float(found.cosine[i, j]), '.2f')} ({_said(float(found.opposed[i, j]), '%')})"
            for j in range(len(names))
        ]
        table.add_row(name, *counts, _said(float(found.share[i]), "%"), *pairs)
    negative = _said(float(found.negative), "%")
    words = f"cosines of categories, in brackets the share of pairs of prompts that pull against each other; {negative}"
    return report.rendered(table, Text(f"{words} of the cosines between categories are negative"), width=report.WIDTH)


def _table(first: str, *rest: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column(first)
    for heading in rest:
        table.add_column(Text(heading), justify="right")
    return table


def _said(value: float, form: str) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f}%" if form == "%" else f"{value:{form}}"


def _numbers(found: Comparison | Conflict) -> dict[str, Any]:
    """The fields as lists; what is no number is null."""

    def plain(x: Any) -> Any:
        return [plain(y) for y in x] if isinstance(x, list) else x if math.isfinite(x) else None

    return {name: plain(np.asarray(x).tolist()) for name, x in vars(found).items() if name != "names"}


# The command


def act(asked: argparse.Namespace) -> int:
    """Everything, from the flags to the files."""
    for flag, names in (("--recipes", asked.recipes), ("--categories", asked.categories)):
        for name in [] if names is None else names.split(","):
            _known(name.strip(), flag)
    if asked.seed is not None and not 0 <= asked.seed < 2**31:
        raise ValueError(f"--seed: got {asked.seed}, allowed 0 to 2^31 - 1: change it to a number in that range")
    experiment, folder = experiment_of(asked)
    size = experiment.train.prompts * experiment.train.group_size
    how: dict[str, int] = {"rows": size if asked.rows is None else asked.rows, "drift": asked.drift_steps}
    how |= {"seed": experiment.seed if asked.seed is None else asked.seed}
    check(experiment, rows=how["rows"], drift=how["drift"])  # before a policy is trained
    keep_programs()
    check_backend()
    params, frozen, at, draws = policy_of(experiment, folder, asked)
    experiment = replace(experiment, mesh=None)
    settings, folder = step_settings(experiment).gradient, Path(asked.dir)
    sample = sampled(experiment, params, draws=draws, frozen=frozen, **how)
    at = {**at, "first_draw": draws, **how}
    page(report.clean(f"{experiment.name}: {', '.join(f'{name} {value}' for name, value in at.items())}") + "\n\n")
    if asked.categories is None:
        found = compare_at(sample, {name: RECIPES[name] for name in chosen(asked.recipes, sample)}, settings)
        _leave(folder, "gradients", found, at, comparison_table(found))
    else:
        _check(asked.categories, sample, "--categories")
        codes, names = categories(experiment, sample.rollouts)
        found = conflict_at(sample, RECIPES[asked.categories], settings, category=codes, names=names)
        _leave(folder, "conflicts", found, {**at, "recipe": asked.categories}, conflict_table(found))
    return int(Exit.DONE)


def _leave(folder: Path, stem: str, found: Comparison | Conflict, at: Mapping[str, Any], table: str) -> None:
    """The table on the terminal, the numbers and the figure in the folder."""
    page(table)
    folder.mkdir(parents=True, exist_ok=True)
    order = clustered(found.cosine.tolist()) if stem == "gradients" else list(range(len(found.names)))
    names, cosine = [found.names[i] for i in order], np.asarray(found.cosine)[np.ix_(order, order)]
    about = f"at {at['phase'].replace('_', ' ')} step {at['step']}, {at['rows']} completions, drift {at['drift']}"
    title = "Cosines between the gradients of recipes" if stem == "gradients" else "Cosines between categories"
    note = about if stem == "gradients" else f"gradients under {at['recipe']}, {about}"
    write_text(folder / f"{stem}.svg", draw(cosine.tolist(), names, title=title, note=note))
    write_json(folder / f"{stem}.json", {**at, "names": list(found.names), "order": names, **_numbers(found)})
    page(f"\nnumbers in {folder / f'{stem}.json'}, figure in {folder / f'{stem}.svg'}\n")


class _Parser(argparse.ArgumentParser):
    """argparse with the exit code of a usage error."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(int(Exit.CONFIGURATION), f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _Parser(prog=Path(__file__).name, description="Compare the gradients of recipes on one batch of rollouts.")
    add = parser.add_argument
    add("--run", metavar="RUN", help="folder of a run; default: the warm start of the quickstart, or of mixed.py")
    add("--checkpoint", default=NEWEST, metavar="WHICH", help="newest (the default), best, a step, or warm_start/STEP")
    add("--recipes", metavar="A,B", help="default: all that can run; cosines are to the first")
    add("--categories", nargs="?", const="grpo", metavar="RECIPE", help="conflict of categories under it, default grpo")
    add("--rows", type=int, metavar="N", help="completions; default those of a step of the experiment")
    add("--seed", type=int, metavar="S", help="of the problems and of the sampled tokens; default the experiment's")
    add("--drift-steps", type=int, default=2, metavar="N", help="updates away from the policy that sampled; default 2")
    add(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="A.B=V",
        help="change a setting of the experiment",
    )
    add("--dir", default="runs/compare_gradients", metavar="DIR", help="where files go; default runs/compare_gradients")
    return guarded(partial(act, parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
