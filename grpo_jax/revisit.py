"""A run looked at again: its newest good checkpoint evaluated in other sizes, or asked for completions."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.text import Text

from grpo_jax import heldout, report
from grpo_jax.checkpoint import Checkpoints, Restored, abstract
from grpo_jax.compiled import compiled
from grpo_jax.data import Task, records
from grpo_jax.data.tasks import numpy_prompts
from grpo_jax.experiment import Experiment, step_settings, warm_settings
from grpo_jax.folder import visit
from grpo_jax.journal import write_json
from grpo_jax.rewards.text import Record
from grpo_jax.setup import judge, problems, workers
from grpo_jax.sharding import make_mesh, place_rows
from grpo_jax.train import host, init_state, place_state
from grpo_jax.types import Prompts, Rollouts

SHOWN = 4
"""Held-out problems whose completions are shown where no prompt is given."""


def evaluate_again(
    run: Path,
    experiment: Experiment,
    *,
    prompts: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Metrics of the newest good checkpoint of `run` on `prompts` held-out problems, `samples` completions each.

    None is what the experiment says of a full evaluation; then the numbers are those that the run wrote itself. Writes
    `eval.json` beside the run and returns the same. Raises ValueError for sizes out of range and for an experiment
    that is not that of the run.
    """
    sizes = experiment.evaluation
    prompts = sizes.full_prompts if prompts is None else prompts
    samples = sizes.samples if samples is None else samples
    seed = _checked_seed(experiment, seed)
    _check_count("--prompts", prompts)
    _check_count("--samples", samples)
    # `prompts` is the size of the small evaluations of training, which are not made here.
    asked = dataclasses.replace(sizes, prompts=1, full_prompts=prompts, samples=samples)
    given = problems(dataclasses.replace(experiment, evaluation=asked))
    with visit(run, experiment) as kept, workers(experiment) as pool:
        restored = newest(kept, experiment)
        judging = dataclasses.replace(judge(experiment, given, pool), seed=seed)
        metrics, _ = heldout.evaluate(restored.state.params, judging, prompts=None, samples=samples, show=0)
        result = {
            "checkpoint": {key: restored.meta[key] for key in ("phase", "step")},
            "prompts": int(given.length.shape[0]),
            "samples": samples,
            "seed": seed,
            "metrics": metrics,
        }
        write_json(run / "eval.json", result)
    return result


def evaluation_table(result: Mapping[str, Any]) -> str:
    """What `evaluate_again` returned, as text for the terminal."""
    at = result["checkpoint"]
    head = (
        f"checkpoint of {at['phase']} step {at['step']}: {result['prompts']} held-out problems, {result['samples']}"
        f" completions each, seed {result['seed']}; intervals are at 95 %"
    )
    return report.rendered(Text(head), report.measured(result["metrics"]))


def sample_again(
    run: Path,
    experiment: Experiment,
    *,
    texts: Sequence[str] = (),
    samples: int = 1,
    temperature: float | None = None,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """`samples` completions of each prompt of `texts`, or of the first held-out problems, from the newest checkpoint.

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
        params, scorer = newest(kept, experiment).state.params, judge(experiment, prompts, pool)
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


def newest(kept: Checkpoints, experiment: Experiment) -> Restored:
    """The newest good checkpoint. Raises ValueError where there is none yet."""
    warm = experiment.warm_start
    first = warm_settings(experiment, warm) if warm else step_settings(experiment).gradient
    mesh = None if experiment.mesh is None else make_mesh(experiment.mesh)
    fresh = place_state(init_state(experiment.seed, first), experiment.model, mesh)
    restored = kept.restore(abstract(fresh))
    if restored is None:
        raise ValueError("RUN: got a run without a checkpoint, allowed is one that has saved: wait, or train it longer")
    return restored


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
