"""An ablation on disk: which runs it is made of, what is done already, and everything that is left, one after another.

Every run is the folder ``VARIANT/seed-S`` of an ordinary run, so each can be shown, evaluated and continued by itself.
They share one process and with it compiled programs: a seed is data, and variants of one model share sampler,
evaluation and warm start. Runs of one seed share the warm start itself, by the folder ``warm_starts``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_jax import loop, objectives
from grpo_jax.ablation.tables import Expectation
from grpo_jax.compiled import make_room
from grpo_jax.experiment import Experiment, settings
from grpo_jax.folder import begins_with, move_aside
from grpo_jax.journal import Journal, read, sole_writer, write_json
from grpo_jax.lifeline import Diverged, say
from grpo_jax.origin import Origin

PLAN, ENDED, WARM_STARTS = "plan.json", "ended.jsonl", "warm_starts"
ITSELF = "EXPERIMENT"
"""Name by which the EXPERIMENT of a file may take part beside its VARIANTS."""
BEFORE_PLAN = (".lock", f"{PLAN}.partial")
"""What an ablation killed in its first moments leaves behind."""
Ends = Mapping[tuple[str, int], str]
"""(variant, seed) of a run that has ended -> why it diverged, nothing where it is done."""


@dataclass(frozen=True)
class Run:
    """One run of an ablation."""

    variant: str
    seed: int
    experiment: Experiment

    def within(self, folder: Path) -> Path:
        """Where it lives in the folder of the ablation."""
        return folder / self.variant / f"seed-{self.seed}"


@dataclass(frozen=True)
class Ablation:
    """What is compared: every variant with every seed.

    With `rollouts` the first variant records there, seed by seed, and the others replay. `expected` says where means
    over the seeds have to lie.
    """

    file: str
    variants: Mapping[str, Experiment]
    seeds: tuple[int, ...]
    assignments: tuple[str, ...] = ()
    rollouts: Path | None = None
    expected: tuple[Expectation, ...] = ()

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError(
                f"{self.file}: got no VARIANTS, allowed is a mapping from names to experiments: write VARIANTS ="
                ' {"name": Experiment(...)}'
            )
        for name in self.variants:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name) or name == WARM_STARTS:
                raise ValueError(
                    f"VARIANTS: got the name {name!r}, allowed are 1 to 80 letters, digits, '.', '_' and '-', the first"
                    f" no '.' or '-', and not {WARM_STARTS}: it names a folder, so rename the variant"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"--seeds: got {', '.join(map(str, self.seeds)) or 'none'}, allowed are different whole numbers: write"
                " for instance --seeds 0,1,2"
            )

    def runs(self) -> Iterator[Run]:
        """All runs in their order: one seed after the other, so that what is there first can be compared already."""
        for seed in self.seeds:
            for name, experiment in self.variants.items():
                yield Run(name, seed, replace(experiment, seed=seed))

    def plan(self) -> dict[str, Any]:
        """What `plan.json` stores, and what has to agree for the ablation to go on."""
        return {
            "variants": {
                name: {
                    "settings": {path: text for path, text in settings(experiment).items() if path != "seed"},
                    "source_digest": objectives.source_digest(experiment),
                    "data_digest": experiment.data.digest,
                    **begins_with(experiment),
                }
                for name, experiment in self.variants.items()
            },
            "seeds": list(self.seeds),
            "rollouts": "each its own" if self.rollouts is None else str(self.rollouts),
        }

    def origin(self, run: Run) -> Origin:
        """How the experiment of `run` is made again."""
        variant = None if run.variant == ITSELF else run.variant
        return Origin(self.file, variant, (*self.assignments, f"seed={run.seed}"))


@contextmanager
def open_ablation(folder: Path, ablation: Ablation, *, fresh: bool = False) -> Iterator[Path]:
    """The folder of a new ablation, or of this one to go on with; nobody else may work in it meanwhile.

    Raises ValueError for a folder that holds something else, or another ablation, saying what differs.
    """
    folder, plan = Path(folder).absolute(), ablation.plan()
    with ExitStack() as held:
        try:
            _check_folder(folder)
            if fresh and folder.exists():
                move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(sole_writer(folder))
        except OSError as error:
            raise ValueError(
                f"--dir: got {folder}, which cannot be used ({error.strerror or error}); allowed is a folder that can"
                " be written: choose another --dir"
            ) from None
        lines = differences(_stored(folder / PLAN), plan) if (folder / PLAN).exists() else []
        if lines:
            remedy = "repeat its command to go on with it, or use another --dir, or --fresh to move the old one aside"
            raise ValueError("\n".join([f"--dir: {folder} holds another ablation:", *lines, f"  {remedy}"]))
        write_json(folder / PLAN, plan)
        yield folder


def _check_folder(folder: Path) -> None:
    """Raise a ValueError unless an ablation may live in `folder`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--dir: got {folder}, which is a file; allowed is a folder or a free name: choose another")
    if folder.is_dir() and not (folder / PLAN).exists():
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in BEFORE_PLAN)
        if foreign:
            raise ValueError(
                f"--dir: got {folder}, which holds {foreign[0]!r} and no ablation (no {PLAN}); allowed is an ablation,"
                " an empty folder or a free name: choose another --dir"
            )


def _stored(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text("utf-8"))
    except ValueError:
        plan = None
    if not isinstance(plan, dict) or not {"variants", "seeds", "rollouts"} <= plan.keys():
        raise ValueError(
            f"--dir: {path} is damaged or was edited; allowed is the file that the ablation wrote: restore it, or use"
            " --fresh to move the ablation aside"
        )
    return plan


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two plans, a line each. Variants and seeds that are added behind the old ones do not."""
    lines = []
    for what in ("variants", "seeds"):
        was, now = list(old[what]), list(new[what])
        if now[: len(was)] != was:
            lines.append(
                f"  {what}: the folder has {', '.join(map(str, was))}; this command {', '.join(map(str, now))}"
            )
    if old["rollouts"] != new["rollouts"]:
        lines.append(f"  rollouts: the folder has {old['rollouts']}; this command {new['rollouts']}")
    for name in [name for name in old["variants"] if name in new["variants"]]:
        was, now = old["variants"][name], new["variants"][name]
        lines += [
            f"  {name}: {path}: the folder has {was['settings'].get(path, 'nothing')}; this command"
            f" {now['settings'].get(path, 'nothing')}"
            for path in sorted({*was["settings"], *now["settings"]})
            if was["settings"].get(path) != now["settings"].get(path)
        ]
        if was["source_digest"] != now["source_digest"]:
            lines.append(f"  {name}: the code of a function of this variant has changed")
        if was["data_digest"] != now["data_digest"]:
            lines.append(f"  {name}: the data file has changed")
        if was.get("weights") != now.get("weights"):
            lines.append(f"  {name}: the weights that it begins with have changed")
    return lines


def ends(folder: Path) -> dict[tuple[str, int], str]:
    """The runs that have come to an end; one whose folder was taken away has not."""
    rows = {(row["variant"], row["seed"]): row["sentence"] for row in read(folder / ENDED)}
    there = {key: folder / key[0] / f"seed-{key[1]}" for key in rows}
    return {key: sentence for key, sentence in rows.items() if sentence or (there[key] / "summary.json").exists()}


def carry_out(folder: Path, ablation: Ablation) -> dict[tuple[str, int], str]:
    """Do every run that has not ended, going on where one was interrupted; how all of them ended.

    A run that diverges is noted and the next one begins; whatever else stops a run stops the ablation.
    """
    journal, done = Journal(folder / ENDED), ends(folder)
    try:
        runs = list(ablation.runs())
        for number, run in enumerate(runs, start=1):
            if (run.variant, run.seed) not in done:
                say(f"\nrun {number} of {len(runs)}: {run.variant}, seed {run.seed}")
                make_room()
                sentence = _one(folder, ablation, run)
                journal.write({"variant": run.variant, "seed": run.seed, "sentence": sentence})
                journal.sync()
    finally:
        journal.close()
    return ends(folder)


def _one(folder: Path, ablation: Ablation, run: Run) -> str:
    try:
        loop.run(
            run.experiment,
            run.within(folder),
            origin=ablation.origin(run),
            warm_starts=folder / WARM_STARTS,
            rollouts=ablation.rollouts,
        )
    except Diverged as error:
        say(f"stopped: {error.sentence}")
        return error.sentence
    return ""
