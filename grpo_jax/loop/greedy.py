"""The greedy completion of every prompt of a step, as a baseline: what it earns is known to all rows of the prompt.

It costs one more row a prompt, sampled at temperature 0 by the policy of the step and scored like any other. Nothing
random goes into it, so the rows that are learned from come out as they would without it.
"""

from collections.abc import Callable, Sequence
from functools import partial

from grpo_jax.compiled import compiled
from grpo_jax.data import records
from grpo_jax.heldout import Judge
from grpo_jax.loop.scoring import submitted, together
from grpo_jax.rewards.guards import FailureLimit
from grpo_jax.sharding import place_rows
from grpo_jax.train import Step, Stream, against_greedy, host, sample_rows, score_rows, stream
from grpo_jax.types import Params, Reward, Rollouts, TrainState

Pending = Callable[[], Reward]
"""What the greedy completions of all prompts earned, in the order of the prompts: waits for it."""


class Greedy:
    """Samples and scores the greedy completions of a step."""

    def __init__(self, settings: Step, judge: Judge, failures: FailureLimit, frozen: Params | None = None) -> None:
        shared = {"mesh": judge.mesh, "model": settings.gradient.model}
        sampling = settings.sampling.replace(temperature=0.0)
        self._sample = compiled(sample_rows, sampling=sampling, group_size=1, **shared)
        self._reward = (
            None if settings.reward is None else compiled(score_rows, mesh=judge.mesh, reward=settings.reward)
        )
        self._compare = compiled(against_greedy, mesh=judge.mesh)
        self._key = stream(judge.seed, Stream.ROLLOUT)  # which temperature 0 does not read
        self._judge, self._failures, self._frozen = judge, failures, frozen

    def begin(self, state: TrainState, parts: Sequence[Rollouts]) -> Pending:
        """Begin with the prompts of `parts`, the pieces of a step."""
        mesh = self._judge.mesh
        asked = [place_rows(part.prompts, mesh) for part in parts]
        how = {"frozen": self._frozen}
        rows = [self._sample(state.params, prompts, self._key, state.step, **how) for prompts in asked]
        if self._reward is not None:
            (found,) = (self._reward(row) for row in rows)
            return partial(_made, found)
        texts = [records(self._judge.task, host(row)) for row in rows]
        pending = [submitted(self._judge, found) for found in texts]

        def known() -> Reward:
            reward, scores = together([wait() for wait in pending])
            self._failures.check([text for part in texts for text in part], scores)
            return reward

        return known

    def compared(self, rollouts: Rollouts, reward: Reward, pending: Pending) -> Reward:
        """`reward` with what the greedy completion of each row's prompt earned."""
        mesh = self._judge.mesh
        return self._compare(place_rows(rollouts, mesh), place_rows(reward, mesh), place_rows(pending(), mesh))


def _made(reward: Reward) -> Reward:
    return reward
