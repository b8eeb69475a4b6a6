"""Held-out evaluation of a policy: sample, greedy, score as text, compare with the scores on token ids.

Every set is sampled by the same compiled program, the problems of all sets together. What is measured of the
completions, and by which names, is in `grpo_jax.verdict`.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.compiled import compiled
from grpo_jax.data import Task, records
from grpo_jax.experiment import OWN_SET, Experiment
from grpo_jax.lifeline import DataError
from grpo_jax.models import AnyModel
from grpo_jax.questions import Questions, together
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import (
    DisagreementError,
    Record,
    Scores,
    TextRewards,
    compare_twins,
    score,
)
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import place_rows
from grpo_jax.train import Stream, TokenReward, host, stream
from grpo_jax.types import Array, Params, Prompts, Reward, Rollouts
from grpo_jax.verdict import Verdict, measure, metric_names

CHUNK = 512
"""Prompts per call of the compiled function: every evaluation, small or full, sampled or greedy, shares it."""
Shown = dict[str, list[tuple[Record, dict[str, float]]]]
"""Name of a set -> completions to look at, with their scores."""


@dataclass(frozen=True)
class Judge:
    """What evaluates the policies of a run; all of it is fixed."""

    task: Task
    model: AnyModel
    sampling: Sampling
    text_rewards: TextRewards
    reward: TokenReward | None
    seed: int
    prompts: Prompts  # the held-out set of `task`; small evaluations take its beginning
    mesh: Mesh | None = None
    pool: Pool | None = None  # the processes that score; None: this one
    further: Mapping[str, tuple[Task, Prompts]] = field(default_factory=dict)  # other sets by name
    category: str | None = None  # key of the metadata that names a category
    ks: tuple[int, ...] | None = None  # of pass@k and maj@k; None: as many as there are samples

    def score(self, rows: Sequence[Record]) -> tuple[Reward, Scores]:
        """Apply the text rewards to every record."""
        return score(rows, self.text_rewards) if self.pool is None else self.pool.score(rows)

    @cached_property
    def sets(self) -> dict[str, Questions]:
        """Every set by name, that of the data first, with prompts of one width. ValueError for a wrong category."""
        return together({OWN_SET: (self.task, self.prompts), **self.further}, self.category)


def check(judge: Judge, experiment: Experiment) -> None:
    """Raise a ValueError for categories that cannot be named, and for a `saving.best` that is never measured."""
    sizes, best = experiment.evaluation, experiment.saving.best
    labels = {name: questions.first(sizes.prompts).labels for name, questions in judge.sets.items()}
    if best is None:
        return
    names = metric_names(labels, tuple(judge.text_rewards), samples=sizes.small_samples, ks=judge.ks)
    if best not in names:
        near = difflib.get_close_matches(best, names, n=1)
        listed = ", ".join(name for name in names if not name.endswith(("/low", "/high")))
        raise ValueError(
            f"saving.best: got {best!r}, allowed is a metric of the small evaluations: {listed}: "
            + (f"did you mean {near[0]}?" if near else "choose one of these")
        )


def evaluate(
    params: Params,
    judge: Judge,
    *,
    prompts: int | None,
    samples: int,
    show: int,
    sets: Collection[str] | None = None,
) -> tuple[dict[str, float], Shown]:
    """Metrics on the first `prompts` problems (None: all) of every set, `samples` completions each and a greedy one.

    `sets` names those that are evaluated; None is all. The second value is for looking at: it maps "<set>" and
    "<set>/greedy" to the completions of the first `show` problems, with their scores.
    """
    chosen = {name: q.first(prompts) for name, q in judge.sets.items() if sets is None or name in sets}
    found = [answer(params, chosen, 1 if greedy else samples, judge, greedy=greedy) for greedy in (False, True)]
    metrics: dict[str, float] = {}
    shown: Shown = {}
    for name, questions in chosen.items():
        for greedy, verdicts in zip((False, True), found, strict=True):
            verdict = verdicts[name]
            metrics |= measure(verdict, name, greedy=greedy, ks=judge.ks, labels=questions.labels)
            shown[f"{name}/greedy" if greedy else name] = [
                (verdict.records[p], {component: float(x[p, 0]) for component, x in verdict.components.items()})
                for p in range(min(show, verdict.length.shape[0]))
            ]
    return metrics, shown


def answer_rows(
    params: Params,
    prompts: Prompts,
    seed: Array,
    sample: Array,
    temperature: Array,
    *,
    model: AnyModel,
    sampling: Sampling,
    reward: TokenReward | None,
    mesh: Mesh | None,
) -> tuple[Rollouts, Reward | None]:
    """One completion of every prompt, number `sample` i32[], at a temperature that is data: 0 is greedy."""
    key = jax.random.fold_in(stream(seed, Stream.EVALUATION), sample)
    rollouts = generate(params, model, prompts, sampling.replace(temperature=temperature), key, mesh, group_size=1)
    return rollouts, None if reward is None else reward(rollouts)


def answer(
    params: Params, sets: Mapping[str, Questions], samples: int, judge: Judge, *, greedy: bool = False
) -> dict[str, Verdict]:
    """Score `samples` completions of each problem of `sets`, sampled as in training, or the greedy one.

    The problems of all sets go through the compiled program together. Raises DataError when the token reward and its
    text twin differ on any row of the data's own set; the token reward knows nothing of the others.
    """
    call = compiled(
        answer_rows,
        mesh=judge.mesh,
        model=judge.model,
        sampling=judge.sampling.replace(temperature=1.0),
        reward=judge.reward,
    )
    temperature = np.float32(0.0 if greedy else float(judge.sampling.temperature))
    prompts = jax.tree.map(lambda *x: np.concatenate(x), *(questions.prompts for questions in sets.values()))
    seed, count = np.int32(judge.seed), prompts.length.shape[0]
    parts = [place_rows(part, judge.mesh) for part in _chunks(prompts)]
    calls = [call(params, part, seed, np.int32(sample), temperature) for sample in range(samples) for part in parts]
    results = [host(pending) for pending in calls]
    each = len(parts)
    rows = [_joined(results[s * each : (s + 1) * each], count) for s in range(samples)]
    verdicts, begin = {}, 0
    for name, questions in sets.items():
        end = begin + questions.prompts.length.shape[0]
        answered = _joined([_rows(row, begin, end) for row in rows], samples * (end - begin))
        verdicts[name] = _scored(*answered, questions.task, judge, samples=samples, twins=name == OWN_SET)
        begin = end
    return verdicts


def _scored(
    rollouts: Rollouts, token_reward: Reward | None, task: Task, judge: Judge, *, samples: int, twins: bool
) -> Verdict:
    """What the completions of one set, sample by sample, are worth."""
    texts = records(task, rollouts)
    reward, _ = judge.score(texts)
    if token_reward is not None and twins:
        _check_twins(token_reward, reward, texts)

    def table(x: np.ndarray) -> np.ndarray:
        return x.reshape(samples, -1).T

    tokens = np.maximum(rollouts.length, 1)
    surprise = -np.where(rollouts.mask, rollouts.logp_full, 0).sum(1) / tokens
    return Verdict(
        records=texts,
        components={name: table(np.asarray(x)) for name, x in reward.components.items()},
        valid=table(np.asarray(reward.valid)),
        length=table(np.asarray(rollouts.length)),
        stopped=table(np.asarray(rollouts.stopped)),
        entropy=table(surprise),
    )


def _check_twins(token: Reward, text: Reward, texts: Sequence[Record]) -> None:
    try:
        compare_twins(token, text, texts)
    except DisagreementError as error:
        raise DataError(f"The token reward and the text rewards disagree: {error}.") from error


def _chunks(prompts: Prompts) -> list[Prompts]:
    """Pieces of exactly `CHUNK` prompts; the last is filled up with copies of its first."""
    count = prompts.length.shape[0]
    index = [np.arange(begin, begin + CHUNK) for begin in range(0, count, CHUNK)]
    index = [np.where(i < count, i, i[0]) for i in index]
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], prompts) for i in index]


def _rows(answered: tuple[Rollouts, Reward | None], begin: int, end: int) -> tuple[Rollouts, Reward | None]:
    """Rows `begin` to `end` of records with one row a prompt."""
    rollouts, reward = jax.tree.map(lambda x: x[begin:end], answered)
    return rollouts.replace(prompt=rollouts.prompt - begin), reward


def _joined(pieces: Sequence[tuple[Rollouts, Reward | None]], count: int) -> tuple[Rollouts, Reward | None]:
    """The first `count` rows of all pieces as one record; prompts are numbered through."""
    offset, shifted = 0, []
    for rollouts, reward in pieces:
        shifted.append((rollouts.replace(prompt=rollouts.prompt + offset), reward))
        offset += rollouts.prompts.length.shape[0]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *shifted)
