"""A run looked at again: one of its checkpoints evaluated in other sizes, or asked for completions.

The run is only read; what an evaluation came to is added to its `eval.json` where that can be written.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.text import Text

from grpo_jax import heldout, report
from grpo_jax.checkpoint import Checkpoints, abstract
from grpo_jax.compiled import compiled
from grpo_jax.data import Task, records
from grpo_jax.data.tasks import numpy_prompts
from grpo_jax.experiment import OWN_SET, Experiment, Saving
from grpo_jax.folder import FROZEN, PHASES, visit
from grpo_jax.journal import write_json
from grpo_jax.lifeline import say
from grpo_jax.loop.setup import first_states, judge, problems, workers
from grpo_jax.models import join
from grpo_jax.rewards.text import Record
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.train import host
from grpo_jax.types import Params, Prompts, Rollouts, TrainState

EVALUATIONS = "eval.json"
NEWEST, BEST = "newest", "best"
SHOWN = 4
"""Held-out problems whose completions are shown where no prompt is given."""


def evaluate_again(
    run: Path,
    experiment: Experiment,
    *,
    prompts: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    sets: Sequence[str] | None = None,
    ks: Sequence[int] | None = None,
    checkpoint: str = NEWEST,
) -> dict[str, Any]:
    """Metrics of a checkpoint of `run` on `prompts` problems of each of `sets`, `samples` completions each.

    None is what the experiment says of a full evaluation, and every set; of the newest checkpoint the numbers are then
    those that the run wrote itself. `ks` are those of pass@k and maj@k; `checkpoint` is "newest", "best", a GRPO step
    or "warm_start/STEP". The result is returned and added to `eval.json` in the run, unless that is read-only. Raises
    ValueError for what is out of range or not there, and for an experiment that is not that of the run.
    """
    sizes = experiment.evaluation
    prompts = sizes.full_prompts if prompts is None else prompts
    samples = sizes.samples if samples is None else samples
    seed = _checked_seed(experiment, seed)
    _check_count("--prompts", prompts)
    _check_count("--samples", samples)
    chosen = _checked_sets(experiment, sets)
    ks = sizes.ks if ks is None else _checked_ks(ks, samples)
    evaluations(run)  # before any work is done: what is there has to be readable, or nothing could be added
    # `prompts` is the size of the small evaluations of training, which are not made here.
    asked = dataclasses.replace(sizes, prompts=1, full_prompts=prompts, samples=samples, ks=None)
    asked_of = dataclasses.replace(experiment, evaluation=asked, saving=Saving())
    given = problems(asked_of)
    with visit(run, experiment) as kept, workers(experiment) as pool:
        restored = restore(kept, experiment, checkpoint)
        judging = dataclasses.replace(judge(asked_of, given, pool), seed=seed, ks=None if ks is None else tuple(ks))
        metrics, _ = heldout.evaluate(restored.policy, judging, prompts=None, samples=samples, show=0, sets=chosen)
        result = {
            "checkpoint": {key: restored.meta[key] for key in ("phase", "step")},
            "prompts": int(given.length.shape[0]),
            "sets": {name: len(judging.sets[name].labels) for name in chosen},
            "samples": samples,
            "ks": None if ks is None else list(ks),
            "seed": seed,
            "metrics": metrics,
        }
    _add(run, result)
    return result


def _add(run: Path, result: Mapping[str, Any]) -> None:
    if not os.access(run, os.W_OK):
        say(f"{run} is read-only: the numbers are printed and {EVALUATIONS} is left as it is")
        return
    folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(folder, fcntl.LOCK_EX)  # two evaluations that end together are both kept
        write_json(run / EVALUATIONS, {"evaluations": [*evaluations(run), result]})
    finally:
        os.close(folder)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """What `eval.json` in the run holds: every evaluation made of it afterwards, the oldest first.

    Raises ValueError for a file that was damaged or edited.
    """
    path = run / EVALUATIONS
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if isinstance(content, dict) and "metrics" in content:  # a single one, as they were once written
        content = {"evaluations": [content]}
    rows = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"RUN: {path} is damaged or was edited; allowed is the file that `grpo-jax eval` wrote: move it away"
        )
    return rows


def evaluation_table(result: Mapping[str, Any]) -> str:
    """What `evaluate_again` returned, as text for the terminal: a row for each set and category."""
    at = result["checkpoint"]
    head = (
        f"checkpoint of {at['phase']} step {at['step']}: {sum(result['sets'].values())} held-out problems,"
        f" {result['samples']} completions each, seed {result['seed']}; intervals are at 95 %"
    )
    return report.rendered(Text(head), report.sets_table(result["metrics"]), width=report.WIDTH)


def _checked_sets(experiment: Experiment, sets: Sequence[str] | None) -> list[str]:
    known = [OWN_SET, *experiment.heldout]
    for name in known if sets is None else sets:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"--sets: got {name!r}, allowed {', '.join(known)}: "
                + (f"did you mean {near[0]}?" if near else "choose some of these, with commas between")
            )
    return [name for name in known if sets is None or name in sets]


def _checked_ks(ks: Sequence[int], samples: int) -> tuple[int, ...]:
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"--ks: got {k}, allowed 1 to the number of samples, {samples}: raise --samples or lower k"
            )
    return tuple(ks)


def sample_again(
    run: Path,
    experiment: Experiment,
    *,
    texts: Sequence[str] = (),
    samples: int = 1,
    temperature: float | None = None,
    seed: int | None = None,
    checkpoint: str = NEWEST,
) -> list[dict[str, Any]]:
    """`samples` completions of each prompt of `texts`, or of the first held-out problems, from a checkpoint.

    One dict a completion, prompt by prompt: `prompt`, `sample`, `completion`, `length`, `stopped`, and where the answer
    is known `answer` and `scores` by name. Temperature 0 is the most likely token; None is that of training. Raises
    ValueError for a text that cannot be a prompt and for numbers out of range.
    """
    temperature = float(experiment.sampling.temperature) if temperature is None else temperature
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"--temperature: got {temperature}, allowed is 0 or more: 0 takes the most likely token")
    seed = _checked_seed(experiment, seed)
    _check_count("--samples", samples)
    prompts, known = typed(experiment.data, texts) if texts else _first_heldout(experiment)
    with visit(run, experiment) as kept, workers(experiment) as pool:
        params, scorer = restore(kept, experiment, checkpoint).policy, judge(experiment, prompts, pool)
        settings = {"model": experiment.model, "sampling": experiment.sampling.replace(temperature=1.0), "reward": None}
        call = compiled(heldout.answer_rows, mesh=scorer.mesh, **settings)
        given, heat = place_rows(_filled(prompts, scorer.mesh), scorer.mesh), np.float32(temperature)
        calls = [call(params, given, np.int32(seed), np.int32(number), heat) for number in range(samples)]
        rows = [_first(host(pending)[0], len(known)) for pending in calls]
        found = [records(experiment.data, rollouts) for rollouts in rows]
        out = []
        for p, is_known in enumerate(known):
            texts_of = [found[s][p] for s in range(samples)]
            reward = scorer.score(texts_of)[0] if is_known else None
            for s, text in enumerate(texts_of):
                scores = {} if reward is None else {n: float(values[s]) for n, values in reward.components.items()}
                valid = reward is not None and bool(reward.valid[s])
                out.append(_row(text, s, scores if valid else None, is_known))
    return out


def _row(text: Record, sample: int, scores: dict[str, float] | None, known: bool) -> dict[str, Any]:
    return {
        "prompt": text.prompt,
        "sample": sample,
        "completion": text.completion,
        "length": len(text.tokens),
        "stopped": text.stopped,
        "answer": text.answer if known else None,
        "scores": scores,
    }


def sample_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `sample_again` returned, as text without control characters: a prompt, below it its completions."""
    parts = []
    for row in rows:
        if row["sample"] == 0:
            answer = "answer unknown" if row["answer"] is None else f"answer {report.clean(row['answer'])}"
            parts.append(Text(f"{report.clean(row['prompt'])}  ({answer})", style="bold", overflow="fold"))
        scores = row["scores"]
        worth = "  ".join(f"{report.clean(name)} {value:.3g}" for name, value in (scores or {}).items())
        worth = worth or ("no score" if row["answer"] is not None else "")
        end = "" if row["stopped"] else "cut off"
        notes = "  ".join(part for part in (worth, end, f"{row['length']} tokens") if part)
        parts.append(Text(f"  {report.clean(row['completion'])}  [{notes}]", overflow="fold"))
    return report.rendered(*parts)


@dataclasses.dataclass(frozen=True)
class Revisited:
    """A checkpoint of a run, with the parameters that it does not hold because GRPO leaves them as they are."""

    state: TrainState
    meta: dict[str, Any]
    frozen: Params | None

    @property
    def policy(self) -> Params:
        """All parameters."""
        return join(self.state.params, self.frozen)


def restore(kept: Checkpoints, experiment: Experiment, which: str = NEWEST) -> Revisited:
    """The newest good checkpoint, or the one that `which` names. Raises ValueError where there is none such."""
    mesh = None if experiment.mesh is None else make_mesh(experiment.mesh)
    index = None if which == NEWEST else _index(kept.notes(), which)
    first = first_states(experiment, mesh)
    restored = kept.restore(abstract(first.state), abstract(first.grpo), index=index)
    if restored is None:
        raise ValueError("RUN: got a run without a checkpoint, allowed is one that has saved: wait, or train it longer")
    if restored.meta["phase"] != PHASES[-1] or not jax.tree.leaves(first.frozen):
        return Revisited(restored.state, restored.meta, None)
    frozen = _kept_frozen(kept.directory.parent, first.frozen) if experiment.warm_start else first.frozen
    return Revisited(restored.state, restored.meta, frozen)


def _kept_frozen(run: Path, like: Params | None) -> Params:
    """What a run has written down of the parameters that its GRPO leaves as they are."""
    kept = Checkpoints(run / FROZEN, identity={}, read_only=True)
    try:
        found = kept.restore_params(abstract(like))
    finally:
        kept.close()
    if found is None:
        raise ValueError(
            f"RUN: got {run} without the folder {FROZEN!r}, which holds the parameters that its GRPO does not train,"
            " allowed is a run with it: restore that folder"
        )
    return found


def _index(notes: Mapping[int, Mapping[str, Any]], which: str) -> int:
    """The number of the checkpoint that `which` names, of those with `notes`, the newest first."""
    ranking = [row["index"] for row in next(iter(notes.values()), {}).get("best", [])]
    named = {_step(meta): index for index, meta in sorted(notes.items())}
    if ranking and ranking[0] in notes:
        named[BEST] = ranking[0]
    if which in named:
        return named[which]
    there = [f"{name} ({_step(notes[index])})" if name == BEST else name for name, index in named.items()]
    why = ", which this run does not rank (saving.best)" if which == BEST and not ranking else ""
    raise ValueError(
        f"--checkpoint: got {which}{why}, allowed {', '.join([NEWEST, *there])}: choose one that is there; a number is"
        " a step of GRPO"
    )


def _step(meta: Mapping[str, Any]) -> str:
    return str(meta["step"]) if meta["phase"] == PHASES[-1] else f"{meta['phase']}/{meta['step']}"


def typed(task: Task, texts: Sequence[str]) -> tuple[Prompts, list[bool]]:
    """Prompts that a person typed, leaf shapes [P, prompt_width] and [P], and of which of them the answer is known."""
    read = [task.read_prompt(text) for text in texts]
    tokens = np.full((len(read), task.prompt_width), task.tokenizer.pad, np.int32)
    for line, (ids, _) in zip(tokens, read, strict=True):
        line[: len(ids)] = ids
    known = [row is not None for _, row in read]
    lengths = [len(ids) for ids, _ in read]
    # A row has to be there for `records`; the answer of one that is not known is not used.
    return numpy_prompts(tokens, lengths, np.arange(len(read)), [row or 0 for _, row in read]), known


def _first_heldout(experiment: Experiment) -> tuple[Prompts, list[bool]]:
    prompts = jax.tree.map(lambda x: x[:SHOWN], experiment.data.heldout(experiment.evaluation.full_prompts))
    return prompts, [True] * prompts.length.shape[0]


def _filled(prompts: Prompts, mesh: Mesh | None) -> Prompts:
    """`prompts`, filled up with copies of the first to as many as the mesh can split."""
    count, parts = prompts.length.shape[0], 1 if mesh is None else mesh.size
    index = np.arange(-(-count // parts) * parts)
    return jax.tree.map(lambda x: np.asarray(x)[np.where(index < count, index, 0)], prompts)


def _first(rollouts: Rollouts, count: int) -> Rollouts:
    return jax.tree.map(lambda x: x[:count], rollouts)


def _check_count(name: str, got: int | None) -> None:
    if got is not None and got < 1:
        raise ValueError(f"{name}: got {got}, allowed >= 1: give a positive number")


def _checked_seed(experiment: Experiment, seed: int | None) -> int:
    seed = experiment.seed if seed is None else seed
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed: got {seed}, allowed 0 to 2^31 - 1: change it to a number in that range")
    return seed
