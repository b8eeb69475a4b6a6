"""``grpo-jax ablate``: from a file with VARIANTS and SEEDS to runs, tables and a figure."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_jax.ablation import figure, tables
from grpo_jax.ablation.coincide import claims
from grpo_jax.ablation.measure import (
    CLAIMED,
    OUTCOMES,
    OUTCOMES_ARE,
    REWARDS,
    REWARDS_ARE,
    TIMES,
    TRAINING,
    TRAINING_IS,
    curve,
    means,
    numbers,
    paired,
)
from grpo_jax.ablation.study import ITSELF, Ablation, Ends, carry_out, open_ablation
from grpo_jax.ablation.tables import EVERY, Expectation, Results, Section
from grpo_jax.arguments import Maker, is_maker, made
from grpo_jax.experiment import Experiment
from grpo_jax.journal import write_json
from grpo_jax.lifeline import Exit
from grpo_jax.plan import sizes

WIDTH = 116
"""Columns of the tables on the terminal: means with intervals are wide."""


def planned(
    file: Path,
    module: ModuleType,
    *,
    variants: str | None = None,
    seeds: str | None = None,
    assignments: Sequence[str] = (),
    rollouts: str | None = None,
) -> Ablation:
    """The ablation that the flags of the command line ask of the file `file`, loaded as `module`.

    Without `variants` those of VARIANTS take part, and not EXPERIMENT, which has to be named as a variant or given as
    ``--variants EXPERIMENT,...``. Without `seeds` those of SEEDS count, and without these that of the experiments.

    Raises:
        ValueError: a name, a seed or a setting is unknown or of no use, and which are.
    """
    known = _known(file, module)
    names = _names(variants, known, list(getattr(module, "VARIANTS", {})))
    fixed = [text for text in assignments if text.partition("=")[0].strip() == "seed"]
    if fixed:
        raise ValueError(f"--set {fixed[-1]}: allowed are settings that all runs share: give seeds with --seeds 0,1,2")
    chosen = {name: made(known[name], assignments, what=_place(file, name)) for name in names}
    return Ablation(
        file=str(file.resolve()),
        variants=chosen,
        seeds=_seeds(seeds, getattr(module, "SEEDS", None), chosen),
        assignments=tuple(assignments),
        rollouts=None if rollouts is None else Path(rollouts).absolute(),
        expected=_expected(getattr(module, "EXPECTED", ()), known),
    )


def _expected(claims: object, known: Mapping[str, object]) -> tuple[Expectation, ...]:
    names = [measure.name for measure in CLAIMED]
    example = 'write EXPECTED = (("grpo", "clipped", 0.02, 0.2),)'
    fits = isinstance(claims, tuple | list) and all(isinstance(row, tuple) and len(row) in (4, 5) for row in claims)
    if not fits or not isinstance(claims, tuple | list):
        raise ValueError(
            f"EXPECTED: got {claims!r}, allowed are rows (variant, measure, lowest, highest), perhaps with a reason"
            f" behind: {example}"
        )
    for variant, measure, *_ in claims:
        if variant not in (*known, EVERY) or measure not in names:
            raise ValueError(
                f"EXPECTED: got {variant!r} and {measure!r}, allowed are the variants {', '.join(known)}, {EVERY!r} for"
                f" every one, and the measures {', '.join(names)}: {example}"
            )
    return tuple(Expectation(*row) for row in claims)


def _place(file: Path, name: str) -> str:
    return f"{file}: {name if name == ITSELF else f'VARIANTS[{name!r}]'}"


def _known(file: Path, module: ModuleType) -> dict[str, Experiment | Maker]:
    """What may take part, by name: experiments, and functions that return one."""
    variants = getattr(module, "VARIANTS", {})
    if not isinstance(variants, Mapping) or not variants:
        raise ValueError(
            f"{file}: got {f'VARIANTS of type {type(variants).__name__}' if variants else 'no VARIANTS'}, allowed is a"
            ' mapping from names to experiments: write VARIANTS = {"name": Experiment(...)}'
        )
    known = dict(variants)
    if hasattr(module, ITSELF):
        known.setdefault(ITSELF, module.EXPERIMENT)
    wrong = {
        name: type(value).__name__
        for name, value in known.items()
        if not (isinstance(value, Experiment) or is_maker(value))
    }
    for name, kind in wrong.items():
        raise ValueError(
            f"{file}: {name} is a {kind}, allowed is a grpo_jax.Experiment, or a function that returns one: write"
            f" {name!r}: Experiment(...)"
        )
    return known


def _names(asked: str | None, known: Mapping[str, object], usual: Sequence[str]) -> list[str]:
    names = list(usual) if asked is None else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"--variants: got {name!r}, allowed {', '.join(known)}: "
                + (f"did you mean {near[0]!r}?" if near else "choose some of these, with commas between")
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"--variants: got {asked!r}, allowed are different names of {', '.join(known)}: write some of them"
        )
    return names


def _seeds(asked: str | None, usual: object, chosen: Mapping[str, Experiment]) -> tuple[int, ...]:
    if asked is not None:
        parts = [part.strip() for part in asked.split(",") if part.strip()]
        wrong = [part for part in parts if not part.isdecimal()]
        if wrong:
            raise ValueError(
                f"--seeds: got {wrong[0]!r}, allowed are whole numbers from 0 with commas between: write --seeds 0,1,2"
            )
        return tuple(int(part) for part in parts)
    if usual is None:
        own = {experiment.seed for experiment in chosen.values()}
        if len(own) > 1:
            raise ValueError(
                f"--seeds: got none, and the variants have {', '.join(map(str, sorted(own)))}, allowed is one set for"
                " all: write SEEDS = (0, 1, 2) in the file, or --seeds 0,1,2"
            )
        return tuple(own)
    if not isinstance(usual, tuple | list) or not all(isinstance(seed, int) and seed >= 0 for seed in usual):
        raise ValueError(f"SEEDS: got {usual!r}, allowed is a tuple of whole numbers from 0: write SEEDS = (0, 1, 2)")
    return tuple(usual)


def ablate(ablation: Ablation, folder: Path, *, fresh: bool = False, show: Callable[[str], object] = print) -> int:
    """Carry out `ablation` in `folder`, write and print what came of it; the exit code.

    Raises ValueError at the very end where a mean is not what the file expects, unless settings were changed.
    """
    with open_ablation(folder, ablation, fresh=fresh) as folder:
        ended = carry_out(folder, ablation)
        show(conclude(folder, ablation, ended))
        _, wrong = tables.expected(ablation.expected, results(folder, ablation, ended))
    if wrong and not ablation.assignments:
        raise ValueError(f"EXPECTED: {'; '.join(wrong)}: change the settings of the file, or what it expects")
    return int(Exit.DIVERGED if any(ended.values()) else Exit.DONE)


def results(folder: Path, ablation: Ablation, ended: Ends) -> dict[str, dict[int, dict[str, float]]]:
    """Variant -> seed -> measures of the runs that are done, in the order of the variants."""
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in ablation.variants}
    for run in ablation.runs():
        if ended.get((run.variant, run.seed)) == "":
            weights = {name: weight for name, (_, weight) in run.experiment.text_rewards.items()}
            found[run.variant][run.seed] = numbers(run.within(folder), weights)
    return {name: seeds for name, seeds in found.items() if seeds}


def conclude(folder: Path, ablation: Ablation, ended: Ends) -> str:
    """Write `ablation.json`, `table.md`, `times.md` and `figure.svg`; the same tables for a terminal.

    What is not the same every time, seconds, stands in `ablation.json` and `times.md` alone.
    """
    found = results(folder, ablation, ended)
    sections = page(ablation, found, ended)
    measured = [tables.times(found)] if found else []
    heading = f"# Ablation of {Path(ablation.file).name}\n\n"
    (folder / "table.md").write_text(heading + tables.markdown(sections), encoding="utf-8")
    (folder / "times.md").write_text(tables.markdown(measured) if measured else "", encoding="utf-8")
    write_json(folder / "ablation.json", _document(ablation, found, ended))
    curves: dict[str, list[figure.Curve]] = {name: [] for name in found}
    for run in ablation.runs():
        if run.seed in found.get(run.variant, {}):
            curves[run.variant].append(curve(run.within(folder)))
    figure.write(folder / "figure.svg", curves, title=f"Held-out accuracy, sampled: {Path(ablation.file).stem}")
    where = (
        f"\ntables in {folder / 'table.md'}, curves in {folder / 'figure.svg'}, numbers in {folder / 'ablation.json'}\n"
    )
    return tables.terminal([*sections, *measured], width=WIDTH) + where


def page(ablation: Ablation, found: Results, ended: Ends) -> list[Section]:
    """The sections of `table.md`, which are the same every time."""
    shared = ablation.rollouts is not None
    words = [
        f"{len(ablation.variants)} variants, {len(ablation.seeds)} seeds ({', '.join(map(str, ablation.seeds))});"
        " means over the seeds with 95 % intervals by Student's t.",
        OUTCOMES_ARE,
    ]
    if any(experiment.warm_start for experiment in ablation.variants.values()):
        words.append("Runs of one seed that warm up by the same settings begin GRPO at the same parameters.")
    if shared:
        words.append(
            "Rollouts are shared: all variants of a seed were trained on the same ones, which the first of them sampled"
            " unless they had been recorded before."
        )
    sections = [tables.results(found, measures=OUTCOMES, title="Results", words=words)]
    rewards = tables.results(found, measures=REWARDS, title="Sampled reward", words=(REWARDS_ARE,))
    sections.append(tables.beside(rewards, ablation.expected, measure="rise"))
    if len(found) > 1:
        sections.append(tables.differences(found, measures=tables.PAIRED, words=(tables.ASTERISK,)))
    sections.append(tables.results(found, measures=TRAINING, title="Training", words=(TRAINING_IS,)))
    expected, _ = tables.expected(ablation.expected, found)
    sections += [section for section in (expected, tables.failures(ended)) if section]
    sections.append(tables.coincidences(claims(ablation.variants, own_rollouts=not shared), found))
    return [*sections, tables.settings_table(ablation.variants)]


def _document(ablation: Ablation, found: Results, ended: Ends) -> dict[str, Any]:
    """All numbers, for programs."""
    measures = (*CLAIMED, *TIMES)
    first = next(iter(found), None)
    return {
        "file": ablation.file,
        "seeds": list(ablation.seeds),
        "rollouts": None if ablation.rollouts is None else str(ablation.rollouts),
        "runs": {name: {str(seed): dict(row) for seed, row in seeds.items()} for name, seeds in found.items()},
        "means": {name: _intervals(means(list(seeds.values()), measures)) for name, seeds in found.items()},
        "differences": {
            name: _intervals(paired(seeds, found[first], measures))
            for name, seeds in found.items()
            if first is not None and name != first
        },
        "reference": first,
        "diverged": [{"variant": n, "seed": s, "sentence": why} for (n, s), why in ended.items() if why],
        "coincide": [asdict(claim) for claim in claims(ablation.variants, own_rollouts=ablation.rollouts is None)],
        "settings": tables.varying(ablation.variants),
    }


def _intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else asdict(value) for name, value in values.items()}


def preview(ablation: Ablation, folder: Path) -> str:
    """What the ablation would be: its runs, sizes, what should coincide, settings that differ. Nothing is trained."""
    runs, seeds = len(ablation.variants) * len(ablation.seeds), ", ".join(map(str, ablation.seeds))
    lines = [f"{runs} runs in {folder}: {len(ablation.variants)} variants with the seeds {seeds}"]
    for name, experiment in ablation.variants.items():
        train = experiment.train
        lines.append(
            f"  {name}: {sizes(experiment)['parameters']:,} parameters, {train.steps} steps of {train.prompts} x"
            f" {train.group_size} rows, {train.epochs * train.minibatches} updates each"
        )
    own = ablation.rollouts is None
    sections = [
        tables.coincidences(claims(ablation.variants, own_rollouts=own), {}),
        tables.settings_table(ablation.variants),
    ]
    return "\n".join(lines) + "\n" + tables.terminal(sections, width=WIDTH)
