"""The phases of a GRPO step as they run: rollout, reward, reference, update, each compiled by itself, with a clock.

A phase only starts its work where it can: arrays are promises, and nothing here waits for one that the next phase does
not need. What the clock reads are the moments at which promises were kept, seen after everything was started, so
measuring delays nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from grpo_jax import STARTED
from grpo_jax.compiled import compiled
from grpo_jax.data import records
from grpo_jax.data.tasks import shown
from grpo_jax.demonstrations import mixed
from grpo_jax.heldout import Judge
from grpo_jax.loop.greedy import Greedy
from grpo_jax.loop.scoring import check_scored, submitted, together
from grpo_jax.objectives import wants
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.rewards.text import Record, Scores
from grpo_jax.sharding import place_rows
from grpo_jax.train import (
    Step,
    Stream,
    compares_with_greedy,
    host,
    learn_rows,
    look_rows,
    looks,
    sample_rows,
    score_rows,
    stream,
)
from grpo_jax.types import Batch, Metrics, Params, Prompts, Reward, Rollouts, Seen, TrainState, row_axis

PHASES = ("rollout", "reward", "reference", "update")


class Stopwatch:
    """Seconds since the last mark go to a name, so that a lap is accounted for without a gap."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._last = now, now()
        self._seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """What has passed since the last mark was `name`; parts of one name add up."""
        now = self._now()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def lap(self) -> dict[str, float]:
        """Seconds by name since the last lap."""
        seconds, self._seconds = self._seconds, {}
        return seconds


_UNCLAIMED = [(STARTED, 0.0)]


def begun() -> tuple[float, float]:
    """Wall and CPU seconds (`time.monotonic`, `time.process_time`) from which the time of a run that begins now counts.

    The first run of a process pays for all of it, imports included; one that follows begins now.
    """
    return _UNCLAIMED.pop() if _UNCLAIMED else (time.monotonic(), time.process_time())


@dataclass(frozen=True)
class Scored:
    """What a step was sampled and what that earned."""

    rollouts: Rollouts
    reward: Reward
    scores: Scores | None = None  # of rewards on text
    texts: Sequence[Record] | None = None  # the rows as text, where somebody needed them
    seen: Seen | None = None  # where it was begun already
    replayed: bool | None = None  # where rollouts are recorded: whether another run sampled these
    told: Mapping[str, float] = field(default_factory=dict)  # further metrics of the step
    statuses: Mapping[str, int] | None = None  # status -> scores of all that was sampled, where that is more
    tokens: int | None = None  # of all that was sampled, where that is more
    written: int | None = None  # how many rows, from the first on, are trained on; None: all


@dataclass(frozen=True)
class Learned:
    """What a step leaves to be written down. Arrays may still be promises."""

    metrics: Metrics
    batch: Batch
    scored: Scored


class Phases:
    """The phases of one run. `reference` are the parameters of the reference policy, None for a recipe without one.

    A reference that moves is in the states instead. Parameters that are `frozen` are in none, and belong to both.
    With rewards on text the prompts of a step are sampled in `chunks`, and each is scored while the next is sampled.
    """

    def __init__(
        self,
        settings: Step,
        judge: Judge,
        reference: Params | None,
        *,
        clock: Stopwatch,
        failures: FailureLimit,
        chunks: int = 1,
        frozen: Params | None = None,
    ) -> None:
        change, mesh = settings.gradient, judge.mesh
        shared = {"mesh": mesh, "model": change.model, "group_size": change.group_size}
        self._shows, count = settings.demonstrations > 0, change.group_size - settings.demonstrations
        self._sample = compiled(sample_rows, sampling=settings.sampling, **{**shared, "group_size": count})
        self._want, how = looks(change.recipe), {"temperature": change.temperature, "chunk": change.chunk}
        self._look = compiled(look_rows, want=self._want, replay=change.replay_experts, **how, **shared)
        self._learn = compiled(learn_rows, mesh=mesh, donate=("state",), settings=change)
        self._reward = None if settings.reward is None else compiled(score_rows, mesh=mesh, reward=settings.reward)
        self._keys = [stream(judge.seed, name) for name in (Stream.ROLLOUT, Stream.UPDATE)]
        self._judge, self._reference, self._clock, self._failures = judge, reference, clock, failures
        self._frozen = {"frozen": frozen}
        self._greedy = Greedy(settings, judge, failures, frozen) if compares_with_greedy(change.recipe) else None
        self._compares = "kl_full" in wants(change.recipe)
        self._chunks = chunks if self._reward is None else 1  # on token ids there is nothing to wait for

    def rollout(self, state: TrainState, prompts: Prompts) -> list[Rollouts]:
        """Begin to sample: the chunks of a step, prompts in order, which become ready one after the other."""
        size, mesh = prompts.length.shape[0] // self._chunks, self._judge.mesh
        cuts = [slice(begin, begin + size) for begin in range(0, size * self._chunks, size)]
        parts = [jax.tree.map(lambda x, cut=cut: x[cut], prompts) for cut in cuts]
        placed, key = [place_rows(part, mesh) for part in parts], self._keys[0]
        rows = [self._sample(state.params, part, key, state.step, **self._frozen) for part in placed]
        if self._shows:
            mix = compiled(mixed, mesh=mesh)
            taught = [place_rows(shown(self._judge.task, self._judge.seed, part), mesh) for part in parts]
            rows = [mix(row, *demonstrated) for row, demonstrated in zip(rows, taught, strict=True)]
        return [place_rows(row, mesh) for row in rows]

    def score(self, state: TrainState, parts: Sequence[Rollouts], *, look: bool = True) -> Scored:
        """Score the rows: begin to, on token ids; wait for it, on text, while the policies look at them.

        Without `look` they do so once it is known which rows are learned from, and so are greedy completions sampled.

        Raises RunStopped (code 5) where text rewards fail too often.
        """
        if self._reward is not None:
            (rollouts,) = parts
            reward = place_rows(self._reward(rollouts), self._judge.mesh)
            return Scored(rollouts, self._against_greedy(state, rollouts, reward) if look else reward)
        rows, texts, pending = [], [], []
        for part in parts:
            rows.append(host(part))
            found = records(self._judge.task, rows[-1])
            texts += found
            pending.append(submitted(self._judge, found))
        greedy = self._greedy.begin(state, parts) if self._greedy is not None and look else None
        self._clock.mark("rollout")
        rollouts = place_rows(joined(rows), self._judge.mesh) if len(parts) > 1 else parts[0]
        seen = self._look_at(state, rollouts) if look else None  # computed while the rewards are waited for
        reward, scores = together([wait() for wait in pending])
        self._clock.mark("reward")
        check_scored(reward, scores)
        self._failures.check(texts, scores)
        if self._greedy is not None and greedy is not None:
            reward = self._greedy.compared(rollouts, reward, greedy)
        return Scored(rollouts, reward, scores, texts, seen)

    def learn(self, state: TrainState, scored: Scored) -> tuple[TrainState, Learned]:
        """Begin to learn from the rows; `state` is used up."""
        mesh, rollouts = self._judge.mesh, place_rows(scored.rollouts, self._judge.mesh)
        reward = self._against_greedy(state, rollouts, place_rows(scored.reward, mesh))
        seen = self._look_at(state, rollouts) if scored.seen is None else scored.seen
        reference = self._reference if self._compares else None
        given = (state, rollouts, reward, self._keys[1], seen, reference)
        state, metrics, batch = self._learn(*given, **self._frozen)
        for name, promise in zip(PHASES, (rollouts, reward, seen), strict=False):
            if promise is not None:
                jax.block_until_ready(promise)
                self._clock.mark(name)
        return state, Learned(metrics, batch, scored)

    def _against_greedy(self, state: TrainState, rollouts: Rollouts, reward: Reward) -> Reward:
        """`reward` with the greedy baseline, where the recipe reads one and it is not there yet."""
        if self._greedy is None or reward.greedy is not None:
            return reward
        return self._greedy.compared(rollouts, reward, self._greedy.begin(state, [rollouts]))

    def _look_at(self, state: TrainState, rollouts: Rollouts) -> Seen | None:
        """What the recipe wants to know of the rows, begun; a policy that it does not ask is not handed over."""
        if not self._want:
            return None
        params = None if self._want == ("logp_ref",) else state.params
        reference = self._reference if state.reference is None else state.reference
        reference = reference if "logp_ref" in self._want else None
        return place_rows(self._look(params, reference, rollouts, **self._frozen), self._judge.mesh)


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """The rows of all `parts` (numpy) in order, as one record whose prompts are numbered through."""
    begins = np.cumsum([0, *(part.prompts.length.shape[0] for part in parts)]).astype(np.int32)
    shifted = [part.replace(prompt=part.prompt + begin) for part, begin in zip(parts, begins, strict=False)]
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: np.concatenate(leaves, axis=row_axis(path)), *shifted)
