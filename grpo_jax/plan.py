"""What a run would be, before it is one: settings, sizes, memory, a prompt on its way. Nothing is trained."""

import math
from collections.abc import Mapping

import jax
import numpy as np

from grpo_jax import report
from grpo_jax.experiment import Experiment, settings, step_settings
from grpo_jax.rewards.text import Record
from grpo_jax.setup import judge, problems, workers
from grpo_jax.train import init_state

MEGABYTE = 1e6


def sizes(experiment: Experiment) -> dict[str, float]:
    """Letters of the shapes (P, G, N, S, T, V), `parameters`, and the MB that parameters and optimiser state take.

    Shapes are worked out without making an array; MB are 10^6 bytes over all devices together.
    """
    train, data = experiment.train, experiment.data
    state = jax.eval_shape(lambda: init_state(experiment.seed, step_settings(experiment).gradient))

    def megabytes(tree: object) -> float:
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / MEGABYTE

    return {
        "P": train.prompts,
        "G": train.group_size,
        "N": train.prompts * train.group_size,
        "S": data.prompt_width,
        "T": experiment.sampling.max_tokens,
        "V": experiment.model.vocab,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        "parameters_mb": megabytes(state.params),
        "optimizer_mb": megabytes(state.opt_state),
    }


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


def preview(experiment: Experiment) -> str:
    """All that can be said of a run beforehand, as text; the data is checked as at the start of a run.

    Raises ValueError for settings or data that cannot be run.
    """
    heldout = problems(experiment)
    lines = [f"{name} = {value}" for name, value in settings(experiment).items()]
    lines += ["", *_sized(sizes(experiment)), f"{heldout.length.shape[0]} held-out problems", ""]
    return "\n".join([*lines, *_scored(experiment)]) + "\n"


def _sized(found: Mapping[str, float]) -> list[str]:
    shapes = ", ".join(f"{letter} = {found[letter]}" for letter in "PGNSTV")
    words = "P prompts, G samples each, N rows, S and T tokens of prompt and completion, V vocabulary"
    return [
        f"{found['parameters']:,} parameters",
        f"{shapes}  ({words})",
        f"memory: parameters {found['parameters_mb']:.3f} MB, optimiser state {found['optimizer_mb']:.3f} MB",
    ]


def _scored(experiment: Experiment) -> list[str]:
    """One prompt through the tokenizer, and what the text rewards say of a demonstration of it."""
    try:
        record, ids = demonstration(experiment)
    except ValueError as error:
        prompts = experiment.data.draw(experiment.seed, np.arange(1))
        ids = np.asarray(prompts.tokens)[0, : int(prompts.length[0])].tolist()
        text = report.clean(experiment.data.prompt_text(prompts, 0))
        return [f"prompt: {text}", f"  {len(ids)} tokens: {list(ids)}", f"no demonstration: {error}"]
    with workers(experiment) as pool:
        reward, scores = judge(experiment, experiment.data.heldout(1), pool).score([record])
    said = [
        f"  {name} {row[0].value:.3g} ({row[0].status}{': ' + report.clean(row[0].detail) if row[0].detail else ''}),"
        f" weight {experiment.text_rewards[name][1]:g}"
        for name, row in scores.items()
    ]
    total = f"{float(reward.outcome[0]):.4g}" if bool(reward.valid[0]) else "none, it could not be scored"
    return [
        f"prompt: {report.clean(record.prompt)}",
        f"  {len(ids)} tokens: {list(ids)}",
        f"demonstration: {report.clean(record.completion)}",
        f"  {len(record.tokens)} tokens: {list(record.tokens)}",
        f"right answer: {report.clean(record.answer)}",
        "text rewards of the demonstration:",
        *said,
        f"  reward {total}",
    ]
