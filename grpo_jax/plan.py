"""What a run would be, before it is one: settings, sizes, memory, a prompt on its way. Nothing is trained."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from grpo_jax import report
from grpo_jax.data import Jsonl
from grpo_jax.experiment import Experiment, settings, step_settings
from grpo_jax.footprint import footprint, told
from grpo_jax.loop.setup import judge, problems, workers
from grpo_jax.models import abstract, divide, trained
from grpo_jax.rewards.text import Record, Scores
from grpo_jax.train import start

MEGABYTE = 1e6


def sizes(experiment: Experiment) -> dict[str, float]:
    """Letters of the shapes (P, G, N, S, T, V), `parameters`, and the MB that parameters and optimiser state take.

    Shapes are worked out without making an array; MB are 10^6 bytes over all devices together.
    """
    train, data, model = experiment.train, experiment.data, experiment.model
    whole = abstract(model)
    own, _ = divide(whole, trained(model, train.frozen))
    state = jax.eval_shape(lambda tree: start(tree, step_settings(experiment).gradient), own)
    return {
        "P": train.prompts,
        "G": train.group_size,
        "N": train.prompts * train.group_size,
        "S": data.prompt_width,
        "T": experiment.sampling.max_tokens,
        "V": model.vocab,
        "parameters": _count(whole),
        "trained": _count(own),
        "parameters_mb": _megabytes(whole),
        "optimizer_mb": _megabytes(state.opt_state),
    }


def _count(tree: object) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _megabytes(tree: object) -> float:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / MEGABYTE


def demonstration(experiment: Experiment) -> tuple[Record, tuple[int, ...]]:
    """The first demonstration of the data as a record, and the token ids of its prompt.

    Raises ValueError where the data has none.
    """
    task = experiment.data
    shown = task.demonstrations(experiment.seed, np.arange(1))
    row = tuple(shown.tokens[0, : shown.length[0]].tolist())
    stopped = bool(row) and row[-1] == task.tokenizer.eos
    record = Record(
        prompt=task.prompt_text(shown.prompts, 0),
        completion=task.tokenizer.decode(row[:-1] if stopped else row),
        tokens=row,
        answer=task.answers(shown.prompts)[0],
        metadata=task.metadata(shown.prompts)[0],
        stopped=stopped,
    )
    return record, tuple(np.asarray(shown.prompts.tokens)[0, : int(shown.prompts.length[0])].tolist())


class Preview(NamedTuple):
    """What is said of a run beforehand."""

    page: str
    trouble: str | None
    """Why the run would come to nothing although its settings are in order; None where it would not."""


def preview(experiment: Experiment) -> Preview:
    """All that can be said of a run beforehand; the data is checked as at the start of a run.

    A right completion and one that is junk are scored. Raises ValueError for settings or data that cannot be run.
    """
    heldout = problems(experiment)
    lines = [f"{name} = {value}" for name, value in settings(experiment).items()]
    devices = math.prod((experiment.mesh or {}).values())
    lines += ["", *_sized(sizes(experiment)), told(footprint(experiment), devices=devices)]
    lines += [f"{heldout.length.shape[0]} held-out problems", *_dropped(experiment), ""]
    shown, trouble = _scored(experiment)
    return Preview("\n".join([*lines, *shown]) + "\n", trouble)


def _dropped(experiment: Experiment) -> list[str]:
    """How many lines of the data are left out because they are too long."""
    task = experiment.data
    if not isinstance(task, Jsonl) or task.too_long != "drop":
        return []
    every = len(task.dropped) + len(task.lines)
    return [
        f"{len(task.dropped)} of {every} lines dropped and {task.unshown} solutions not shown (data.too_long): prompts"
        f" have up to {task.prompt_width} tokens, completions {task.completion_width}"
    ]


def _sized(found: Mapping[str, float]) -> list[str]:
    shapes = ", ".join(f"{letter} = {found[letter]}" for letter in "PGNSTV")
    words = "P prompts, G samples each, N rows, S and T tokens of prompt and completion, V vocabulary"
    memory = f"memory: parameters {found['parameters_mb']:.3f} MB, optimiser state {found['optimizer_mb']:.3f} MB"
    part = "" if found["trained"] == found["parameters"] else f", of which {found['trained']:,} are trained"
    return [f"{found['parameters']:,} parameters{part}", f"{shapes}  ({words})", memory]


def _right(experiment: Experiment) -> tuple[Record, tuple[int, ...], str]:
    """A completion that should be rewarded, the token ids of its prompt, and what to call it."""
    try:
        return *demonstration(experiment), "demonstration"
    except ValueError:  # no line of the data shows a solution: the answer alone, in the form of R1
        task = experiment.data
        prompts = task.draw(experiment.seed, np.arange(1))
        answer = task.answers(prompts)[0]
        text = f"</think><answer>{answer}</answer>"
        record = Record(
            prompt=task.prompt_text(prompts, 0),
            completion=text,
            tokens=(*task.tokenizer.encode(text, specials=True), task.tokenizer.eos),
            answer=answer,
            metadata=task.metadata(prompts)[0],
        )
        return record, tuple(np.asarray(prompts.tokens)[0, : int(prompts.length[0])].tolist()), "right answer as"


def _scored(experiment: Experiment) -> tuple[list[str], str | None]:
    """One prompt through the tokenizer, what the text rewards say of two completions of it, and what is wrong there."""
    right, ids, called = _right(experiment)
    # Of junk there is no better known than the question said again.
    junk = dataclasses.replace(right, completion=right.prompt, tokens=ids, stopped=False)
    with workers(experiment) as pool:
        reward, scores = judge(experiment, experiment.data.heldout(1), pool).score([right, junk])
    lines = [
        f"prompt: {report.clean(right.prompt)}",
        f"  {len(ids)} tokens: {list(ids)}",
        f"{called}: {report.clean(right.completion)}",
        f"  {len(right.tokens)} tokens: {list(right.tokens)}",
        f"right answer: {report.clean(right.answer)}",
    ]
    for row, what in enumerate(
        (f"text rewards of this {called.split()[0]}:", "text rewards of the prompt said again:")
    ):
        lines.append(what)
        for name, column in scores.items():
            detail = f": {report.clean(column[row].detail)}" if column[row].detail else ""
            weight = experiment.text_rewards[name][1]
            lines.append(f"  {name} {column[row].value:.3g} ({column[row].status}{detail}), weight {weight:g}")
        total = f"{float(reward.outcome[row]):.4g}" if bool(reward.valid[row]) else "none, it could not be scored"
        lines.append(f"  reward {total}")
    if np.asarray(reward.valid).all() and not reward.outcome[0] > reward.outcome[1]:
        lines.append("look at this: the prompt said again earns as much; rewards should tell right from wrong")
    return lines, _trouble(scores)


def _trouble(scores: Scores) -> str | None:
    """The first reward that could not do its work."""
    for name, column in scores.items():
        for score, what in zip(column, ("a right completion", "the prompt said again"), strict=True):
            if score.status in ("error", "timeout"):
                return (
                    f"text_rewards[{name!r}]: got {score.status} for {what} ({score.detail}), allowed is a number for"
                    " every completion: correct the reward or its settings"
                )
    return None
