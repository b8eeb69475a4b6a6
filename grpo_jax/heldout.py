"""Held-out evaluation of a policy: sample, greedy, score as text, compare with the scores on token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.compiled import compiled
from grpo_jax.data import Task, records
from grpo_jax.evaluate import summarize
from grpo_jax.lifeline import DataError
from grpo_jax.models import ModelConfig
from grpo_jax.rewards.pool import Pool
from grpo_jax.rewards.text import (
    DisagreementError,
    Record,
    Scores,
    TextRewards,
    compare_twins,
    find_answer,
    score,
)
from grpo_jax.sampling import Sampling, generate
from grpo_jax.sharding import place_rows
from grpo_jax.train import Stream, TokenReward, host, stream
from grpo_jax.types import Array, Params, Prompts, Reward, Rollouts

CHUNK = 512
"""Prompts per call of the compiled function: every evaluation, small or full, sampled or greedy, shares it."""


@dataclass(frozen=True)
class Judge:
    """What evaluates the policies of a run; all of it is fixed."""

    task: Task
    model: ModelConfig
    sampling: Sampling
    text_rewards: TextRewards
    reward: TokenReward | None
    seed: int
    prompts: Prompts  # the held-out set; small evaluations take its beginning
    mesh: Mesh | None = None
    pool: Pool | None = None  # the processes that score; None: this one

    def score(self, rows: Sequence[Record]) -> tuple[Reward, Scores]:
        """Apply the text rewards to every record."""
        return score(rows, self.text_rewards) if self.pool is None else self.pool.score(rows)


@dataclass(frozen=True)
class Verdict:
    """Scores of S completions for each of P prompts."""

    records: Sequence[Record]  # P * S rows, sample by sample: row s * P + p
    components: Mapping[str, np.ndarray]  # name -> f32[P, S]
    valid: np.ndarray  # bool[P, S], False where the completion could not be scored
    length: np.ndarray  # i32[P, S]
    stopped: np.ndarray  # bool[P, S]
    entropy: np.ndarray  # f32[P, S], nats, mean of -log p over the tokens of the row, an unbiased estimate


def evaluate(
    params: Params, judge: Judge, *, prompts: int | None, samples: int, show: int, name: str = "heldout"
) -> tuple[dict[str, float], dict[str, list[tuple[Record, dict[str, float]]]]]:
    """Metrics on the first `prompts` held-out problems (None: all), `samples` completions each and a greedy one.

    The second value is for looking at: it maps "<set>" and "<set>/greedy" to the completions of the first `show`
    problems, with their scores.
    """
    chosen = jax.tree.map(lambda x: x[:prompts], judge.prompts)
    metrics, shown = {}, {}
    for greedy in (False, True):
        verdict = answer(params, chosen, 1 if greedy else samples, judge, greedy=greedy)
        metrics |= measure(verdict, name, greedy=greedy)
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
    model: ModelConfig,
    sampling: Sampling,
    reward: TokenReward | None,
    mesh: Mesh | None,
) -> tuple[Rollouts, Reward | None]:
    """One completion of every prompt, number `sample` i32[], at a temperature that is data: 0 is greedy."""
    key = jax.random.fold_in(stream(seed, Stream.EVALUATION), sample)
    rollouts = generate(params, model, prompts, sampling.replace(temperature=temperature), key, mesh, group_size=1)
    return rollouts, None if reward is None else reward(rollouts)


def answer(params: Params, prompts: Prompts, samples: int, judge: Judge, *, greedy: bool = False) -> Verdict:
    """Score `samples` completions of each of `prompts`, sampled as in training, or the greedy one.

    Raises DataError when the token reward and its text twin differ on any row.
    """
    call = compiled(
        answer_rows,
        mesh=judge.mesh,
        model=judge.model,
        sampling=judge.sampling.replace(temperature=1.0),
        reward=judge.reward,
    )
    temperature = np.float32(0.0 if greedy else float(judge.sampling.temperature))
    seed, count = np.int32(judge.seed), prompts.length.shape[0]
    parts = [place_rows(part, judge.mesh) for part in _chunks(prompts)]
    calls = [call(params, part, seed, np.int32(sample), temperature) for sample in range(samples) for part in parts]
    results = [host(pending) for pending in calls]
    each = len(parts)
    rows = [_joined(results[s * each : (s + 1) * each], count) for s in range(samples)]
    rollouts, token_reward = _joined(rows, samples * count)
    texts = records(judge.task, rollouts)
    reward, _ = judge.score(texts)
    if token_reward is not None:
        _check_twins(token_reward, reward, texts)

    def table(x: np.ndarray) -> np.ndarray:
        return x.reshape(samples, count).T

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


def measure(verdict: Verdict, name: str, *, greedy: bool) -> dict[str, float]:
    """Metrics of a held-out set: accuracy, pass@k and maj@k with intervals, the other components, length, entropy.

    Names are ``accuracy/<set>`` with ``/low`` and ``/high``; greedy ones begin with ``greedy``.
    """
    values: dict[str, float] = {}
    for component, table in verdict.components.items():
        if component != "accuracy":
            scored = table[verdict.valid]
            values[f"{'greedy_' if greedy else ''}{component}/{name}"] = float(scored.mean()) if scored.size else 0.0
    if "accuracy" in verdict.components:
        values |= _estimates(verdict, name, greedy=greedy)
    if not greedy:
        values[f"length/{name}"] = float(verdict.length.mean())
        values[f"stopped/{name}"] = float(verdict.stopped.mean())
        values[f"entropy/{name}"] = float(verdict.entropy.mean())
    return values


def _estimates(verdict: Verdict, name: str, *, greedy: bool) -> dict[str, float]:
    """Accuracy and, from several samples, pass@k and maj@k, each with its interval."""
    correct = verdict.components["accuracy"] > 0.5
    prompts, samples = correct.shape
    said = [[find_answer(verdict.records[s * prompts + p]) for s in range(samples)] for p in range(prompts)]
    found = summarize(correct, (samples,), answers=said, valid=verdict.valid)
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


def _chunks(prompts: Prompts) -> list[Prompts]:
    """Pieces of exactly `CHUNK` prompts; the last is filled up with copies of its first."""
    count = prompts.length.shape[0]
    index = [np.arange(begin, begin + CHUNK) for begin in range(0, count, CHUNK)]
    index = [np.where(i < count, i, i[0]) for i in index]
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], prompts) for i in index]


def _joined(pieces: Sequence[tuple[Rollouts, Reward | None]], count: int) -> tuple[Rollouts, Reward | None]:
    """The first `count` rows of all pieces as one record; prompts are numbered through."""
    offset, shifted = 0, []
    for rollouts, reward in pieces:
        shifted.append((rollouts.replace(prompt=rollouts.prompt + offset), reward))
        offset += rollouts.prompts.length.shape[0]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *shifted)
