"""What the completions of a held-out set are worth: metrics by set and by category.

Names of metrics are ``<measure>/<set>``, and ``<measure>/<set>[<category>]`` for the problems of one category; ``/low``
and ``/high`` behind them are the bounds of the 95 % interval. ``accuracy`` is the share of correct samples, averaged
over problems: avg@k and pass@1, whatever the number of samples, so neither has a name of its own. ``pass@k`` and
``maj@k`` are those of `grpo_jax.evaluate`, ``greedy`` is the accuracy of the most likely completion, ``n`` the number
of problems that could be scored; other text rewards go by their own name, and ``length``, ``stopped`` and ``entropy``
describe the samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_jax.evaluate import summarize
from grpo_jax.rewards.text import Record, find_result


@dataclass(frozen=True)
class Verdict:
    """Scores of S completions for each of P prompts."""

    records: Sequence[Record]  # P * S rows, sample by sample: row s * P + p
    components: Mapping[str, np.ndarray]  # name -> f32[P, S]
    valid: np.ndarray  # bool[P, S], False where the completion could not be scored
    length: np.ndarray  # i32[P, S]
    stopped: np.ndarray  # bool[P, S]
    entropy: np.ndarray  # f32[P, S], nats, mean of -log p over the tokens of the row, an unbiased estimate

    def part(self, prompts: np.ndarray) -> "Verdict":
        """That of the `prompts` i64[Q] alone."""
        count, samples = self.length.shape
        return Verdict(
            records=[self.records[s * count + p] for s in range(samples) for p in prompts],
            components={name: table[prompts] for name, table in self.components.items()},
            valid=self.valid[prompts],
            length=self.length[prompts],
            stopped=self.stopped[prompts],
            entropy=self.entropy[prompts],
        )


def measure(
    verdict: Verdict,
    name: str,
    *,
    greedy: bool,
    ks: Sequence[int] | None = None,
    labels: Sequence[str | None] = (),
) -> dict[str, float]:
    """Metrics of the set `name`, and of each category that its problems have by their `labels`.

    `ks` are those of pass@k and maj@k; larger ones than there are samples are left out, and None is the number of
    samples. A measure of which no row could be scored is NaN.
    """
    values = _measured(verdict, name, greedy=greedy, ks=ks)
    for category in sorted({label for label in labels if label is not None}):
        inside = np.flatnonzero([label == category for label in labels])
        values |= _measured(verdict.part(inside), f"{name}[{category}]", greedy=greedy, ks=ks)
    return values


def _measured(verdict: Verdict, name: str, *, greedy: bool, ks: Sequence[int] | None) -> dict[str, float]:
    values: dict[str, float] = {}
    for component, table in verdict.components.items():
        if component != "accuracy":
            scored = table[verdict.valid]
            label = f"{'greedy_' if greedy else ''}{component}/{name}"
            values[label] = float(scored.mean()) if scored.size else float("nan")
    if "accuracy" in verdict.components:
        values |= _estimates(verdict, name, greedy=greedy, ks=ks)
    if not greedy:
        values[f"length/{name}"] = float(verdict.length.mean())
        values[f"stopped/{name}"] = float(verdict.stopped.mean())
        values[f"entropy/{name}"] = float(verdict.entropy.mean())
        values[f"n/{name}"] = float(verdict.valid.any(axis=1).sum())
    return values


def _estimates(verdict: Verdict, name: str, *, greedy: bool, ks: Sequence[int] | None) -> dict[str, float]:
    """Accuracy and, from several samples, pass@k and maj@k, each with its interval."""
    correct = verdict.components["accuracy"] > 0.5
    samples = correct.shape[1]
    wanted = (samples,) if ks is None else tuple(sorted({k for k in ks if k <= samples}))
    found = summarize(correct, wanted, answers=_votes(verdict, correct), valid=verdict.valid)
    values = {}
    for label, estimate in found.items():
        label = {"pass@1": "greedy" if greedy else "accuracy"}.get(label, label)
        if not greedy or label == "greedy":
            values |= {
                f"{label}/{name}": estimate.value,
                f"{label}/{name}/low": estimate.low,
                f"{label}/{name}/high": estimate.high,
            }
    return values


def _votes(verdict: Verdict, correct: np.ndarray) -> list[list[tuple[str, bool] | None]]:
    """What each completion votes for: its answer without white space around it; None where there is none.

    A reward of the user's own may judge more than the answer, so that the same one is right once and wrong once: these
    are two candidates.
    """
    prompts, samples = correct.shape
    said = [[find_result(verdict.records[s * prompts + p]) for s in range(samples)] for p in range(prompts)]
    return [
        [
            (text.strip(), bool(right)) if text and text.strip() else None
            for text, right in zip(row, rights, strict=True)
        ]
        for row, rights in zip(said, correct, strict=True)
    ]


def metric_names(
    labels: Mapping[str, Sequence[str | None]],
    components: Sequence[str],
    *,
    samples: int,
    ks: Sequence[int] | None,
) -> list[str]:
    """The names of the metrics of an evaluation: `labels` of the problems of every set, `components` of the reward."""
    nothing = Record(prompt="", completion="", tokens=(), answer="")
    names: list[str] = []
    for name, kinds in labels.items():
        for greedy in (False, True):
            shape = (len(kinds), 1 if greedy else samples)
            blank = Verdict(
                records=[nothing] * (shape[0] * shape[1]),
                components={component: np.zeros(shape, np.float32) for component in components},
                valid=np.ones(shape, bool),
                length=np.zeros(shape, np.int32),
                stopped=np.zeros(shape, bool),
                entropy=np.zeros(shape, np.float32),
            )
            names += measure(blank, name, greedy=greedy, ks=ks, labels=kinds)
    return names
