"""Claim: a reward that waits 1 ms a record adds about 5 % to a step of 256 rows: it scores while one samples.

    python benchmarks/scoring_overlap.py [--rounds 12] [--rewards instant sleeping busy] [--chunks 1 4 8]
                                         [--workers 2 8]

Model, data and sizes of a step are those of `experiments/from_jsonl.py`. All kinds of reward take turns within one
process, step by step, each with the same prompts, so that whatever else the machine does hits all of them; a step is
rollout, reward and update, to the end of the update. Reported are medians over the rounds and, as `added_percent`, the
median of the ratio to the first case in the same round, usually the instant reward in one chunk. The busy reward is a
number of its own: where sampling keeps every core busy, work on a core cannot be hidden, and that is what it shows.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _record import write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _waiting

from experiments.from_jsonl import EXPERIMENT
from grpo_jax.experiment import Experiment, Scoring, step_settings
from grpo_jax.loop.phases import PHASES, Phases, Stopwatch
from grpo_jax.loop.setup import judge, problems, workers
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.train import init_state, place_state

KINDS = {"instant": _waiting.instant, "sleeping": _waiting.sleeping, "busy": _waiting.busy}
Case = tuple[str, int, int]
"""Kind of reward, worker processes, chunks of a step."""
WARMING = 2
"""Rounds that are not counted: programs are compiled, processes get going."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rewards", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8])
    asked = parser.parse_args()
    cases: list[Case] = list(itertools.product(asked.rewards, asked.workers, asked.chunks))
    with ExitStack() as held:
        steps = {case: stepper(held, *case) for case in cases}
        rounds = [{case: step(number) for case, step in steps.items()} for number in range(asked.rounds + WARMING)]
    counted = rounds[WARMING:]
    plain = cases[0]
    results = [summary(case, plain, counted) for case in cases]
    command = f"python benchmarks/scoring_overlap.py --rounds {asked.rounds}"
    for name in ("rewards", "chunks", "workers"):
        command += f" --{name} {' '.join(map(str, getattr(asked, name)))}"
    rows = EXPERIMENT.train.prompts * EXPERIMENT.train.group_size
    against = {"kind": plain[0], "workers": plain[1], "chunks": plain[2]}
    write("scoring_overlap", {"command": command, "rows": rows, "compared_with": against, "cases": results})


def stepper(held: ExitStack, kind: str, processes: int, chunks: int) -> Callable[[int], dict[str, float]]:
    """A function of the number of a step that does it and says how long it took, in all and by phase."""
    rewards = {**EXPERIMENT.text_rewards, "own": (KINDS[kind], 0.0)}
    scoring = Scoring(workers=processes, chunks=chunks)
    experiment: Experiment = dataclasses.replace(EXPERIMENT, text_rewards=rewards, scoring=scoring)
    pool = held.enter_context(workers(experiment))
    clock, settings = Stopwatch(), step_settings(experiment)
    judging = judge(experiment, problems(experiment), pool)
    phases = Phases(settings, judging, None, clock=clock, failures=FailureLimit(), chunks=chunks)
    kept: dict[str, Any] = {"state": place_state(init_state(0, settings.gradient), experiment.model, None)}

    def step(number: int) -> dict[str, float]:
        count = experiment.train.prompts
        prompts = experiment.data.draw(0, np.arange(number * count, (number + 1) * count))
        clock.lap()
        clock.mark("before")
        begin, cpu = time.perf_counter(), time.process_time()
        scored = phases.score(kept["state"], phases.rollout(kept["state"], prompts))
        kept["state"], learned = phases.learn(kept["state"], scored)
        jax.block_until_ready((kept["state"], learned.metrics))
        clock.mark("update")
        found = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        return found | {name: value for name, value in clock.lap().items() if name in PHASES}

    return step


def summary(case: Case, plain: Case, rounds: Sequence[Mapping[Case, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians of one case over the rounds, and what it adds to the plain one."""
    kind, processes, chunks = case
    names = rounds[0][case]
    ratios = [found[case]["seconds"] / found[plain]["seconds"] for found in rounds]
    return {
        "kind": kind,
        "workers": processes,
        "chunks": chunks,
        "added_percent": round(100 * (statistics.median(ratios) - 1), 1),
        **{name: round(statistics.median(found[case][name] for found in rounds), 4) for name in names},
    }


if __name__ == "__main__":
    main()
