"""Where the rows of a step come from: draws, rounds of them, and what the state remembers for the next step.

A step begins with the sampling of its first round, so that the journal of the step before is written meanwhile. Without
dynamic sampling that is all there is to it. With it the host reads of every round, once it is scored, how many groups
are informative by now, and begins another one or not: rounds follow one another and do not overlap. Draws are counted
here as the state counts them.

What a step leaves over (`grpo_jax.dynamic`) and the success rates that prompts are drawn by (`loop.curriculum`) lie in
`TrainState.memory`, which is changed between two steps only: a run that was killed in any round begins that step again.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grpo_jax import dynamic
from grpo_jax.compiled import compiled
from grpo_jax.data import difficulty
from grpo_jax.dynamic import Dynamic, Groups
from grpo_jax.experiment import Experiment
from grpo_jax.loop.curriculum import Curriculum, first_rates
from grpo_jax.loop.phases import Learned, Phases, Scored, Stopwatch
from grpo_jax.loop.recorded import Tape
from grpo_jax.models import ModelConfig
from grpo_jax.rewards.text import STATUSES, Score, Scores, status_counts, weigh
from grpo_jax.sharding import place_rows, replicate
from grpo_jax.train import host
from grpo_jax.types import Array, Prompts, Rollouts, TrainState

OWN = (dynamic.PREFIX, difficulty.PREFIX)
"""How the names in `TrainState.memory` begin that belong here; the others belong to the recipe."""


def first_memory(experiment: Experiment) -> dict[str, Array]:
    """What is remembered before the first step of GRPO, name -> array."""
    groups = {} if experiment.train.dynamic is None else dynamic.to_memory(nothing(experiment))
    rates = {name: jnp.asarray(value) for name, value in first_rates(experiment).items()}
    return {**groups, **rates}


def nothing(experiment: Experiment) -> Groups:
    """Places for as many groups as a step has, none of them taken.

    Raises ValueError where the reward lacks the component that has to differ.
    """
    train = experiment.train
    prompts = experiment.data.draw(experiment.seed, np.arange(train.prompts))
    model, shape = experiment.model, {"group_size": train.group_size, "width": experiment.sampling.max_tokens}
    mixture = model if isinstance(model, ModelConfig) and model.experts else None
    choices = None if mixture is None else (mixture.layers, mixture.experts_per_token)
    rollouts = dynamic.blank(prompts, choices=choices, **shape)
    reward, codes = None, None
    if experiment.reward is None:
        names, rows = experiment.text_rewards, rollouts.prompt.shape[0]
        scores = {name: (Score(0.0),) * rows for name in names}
        reward, codes = weigh(scores, names, rows), _codes(scores)
    else:
        reward = jax.eval_shape(experiment.reward, rollouts)
    component = None if train.dynamic is None else train.dynamic.component
    put = partial(dynamic.grouped, group_size=train.group_size, component=component)
    return dynamic.empty(jax.eval_shape(put, rollouts, reward, codes))


class Rounds:
    """The rows of one run, step by step: `begin`, `finish`, `learn`."""

    def __init__(
        self,
        experiment: Experiment,
        phases: Phases,
        tape: Tape,
        state: TrainState,
        *,
        clock: Stopwatch,
        mesh: Mesh | None = None,
    ) -> None:
        train = experiment.train
        self._experiment, self._phases, self._tape, self._mesh = experiment, phases, tape, mesh
        self._cursor, self._parts = int(state.cursor), list[Rollouts]()
        self._known: Scored | None = None
        self._sampled: list[Scored] = []
        self._left: Mapping[str, Array] = {}
        self._curriculum = Curriculum(experiment, train.difficulty, state.memory) if train.difficulty else None
        self._gathering = Gathering(experiment, train.dynamic, clock, mesh) if train.dynamic else None

    def begin(self, step: int, state: TrainState) -> None:
        """Begin to sample the first round of `step`, unless it is recorded."""
        prompts = self._draw()
        self._sampled, self._known = [], self._tape.find(step, prompts)
        self._parts = self._phases.rollout(state, prompts) if self._known is None else []

    def finish(self, step: int, state: TrainState) -> Scored:
        """The scored rows of `step`, after as many rounds as it takes."""
        if self._known is not None:
            return self._known
        if self._gathering is None:
            return self._tape.keep(step, self._round(state, look=True))
        gathering, most = self._gathering, self._gathering.settings.rounds
        gathering.open(state)
        while not gathering.add(self._round(state, look=False)) and len(self._sampled) < most:
            self._parts = self._phases.rollout(state, self._draw())
        scored, self._left = gathering.close(state)
        drawn = self._cursor * self._experiment.train.group_size
        return dataclasses.replace(scored, told={**scored.told, "samples/drawn": float(drawn)})

    def learn(self, state: TrainState, scored: Scored) -> tuple[TrainState, Learned]:
        """Begin to learn from the rows; `state` is used up. The one returned remembers what the next step needs."""
        others = {name: value for name, value in state.memory.items() if not name.startswith(OWN)}
        state, learned = self._phases.learn(state.replace(memory=others), scored)
        memory, told = {**state.memory, **self._left}, dict(scored.told)
        if self._curriculum is not None:
            rates, notes = self._curriculum.after(self._sampled)
            memory, told = {**memory, **self._placed(rates)}, {**told, **notes}
        if len(self._sampled) > 1:  # a step of learning counts one round
            state = state.replace(cursor=self._placed(np.int32(self._cursor)))
        return state.replace(memory=memory), dataclasses.replace(learned, scored=dataclasses.replace(scored, told=told))

    def _draw(self) -> Prompts:
        """The prompts of the next draws."""
        count, experiment = self._experiment.train.prompts, self._experiment
        draws = np.arange(self._cursor, self._cursor + count)
        self._cursor += count
        return (
            experiment.data.draw(experiment.seed, draws) if self._curriculum is None else self._curriculum.draw(draws)
        )

    def _round(self, state: TrainState, *, look: bool) -> Scored:
        scored = self._phases.score(state, self._parts, look=look)
        self._sampled.append(scored)
        return scored

    def _placed(self, tree: Any) -> Any:
        """Host arrays where the rest of the state is."""
        return jax.device_put(tree, jax.local_devices()[0]) if self._mesh is None else replicate(tree, self._mesh)


class Gathering:
    """The informative groups of one step after the other, as compiled functions and what they tell."""

    def __init__(self, experiment: Experiment, settings: Dynamic, clock: Stopwatch, mesh: Mesh | None) -> None:
        train = experiment.train
        self.settings, self._clock, self._mesh, self._prompts = settings, clock, mesh, train.prompts
        self._open = compiled(dynamic.opened, mesh=mesh, max_age=settings.max_age)
        how = {"group_size": train.group_size, "component": settings.component}
        self._add = compiled(dynamic.gathered, mesh=mesh, **how)
        self._close = compiled(dynamic.closed, mesh=mesh)
        self._like = nothing(experiment)
        self._names = tuple(experiment.text_rewards) if experiment.reward is None else ()

    def open(self, state: TrainState) -> None:
        """Begin a step with what the one before has left over."""
        kept = dynamic.from_memory(state.memory, self._like)
        held, told = self._open(kept, state.step)
        self._held: Groups = place_rows(held, self._mesh)
        self._told: list[Any] = []
        self._expired = told["expired"]
        self._statuses: Counter[str] = Counter()

    def add(self, scored: Scored) -> bool:
        """Add a scored round; whether there are groups enough. The host waits for the rewards here."""
        jax.block_until_ready(scored.rollouts)
        self._clock.mark("rollout")
        codes = place_rows(_codes(scored.scores), self._mesh)
        held, told = self._add(self._held, scored.rollouts, place_rows(scored.reward, self._mesh), codes)
        self._held = place_rows(held, self._mesh)
        self._told.append(host(told))
        self._clock.mark("reward")
        self._statuses.update(status_counts(scored.scores or {}))
        return int(self._told[-1]["informative"]) >= self._prompts

    def close(self, state: TrainState) -> tuple[Scored, Mapping[str, Array]]:
        """What the step is trained on, and what is left over, for the memory of its state."""
        trained, kept, told = self._close(self._held, state.step)
        told, expired, codes, components = host((told, self._expired, trained.status, trained.reward.components))
        scored = Scored(
            rollouts=trained.rollouts,
            reward=trained.reward,
            scores=_scores(codes, components) if self._names else None,
            told={**self._notes(), "dynamic/expired": float(expired), **_named(told)},
            statuses=dict(self._statuses) if self._names else None,
            written=int(trained.reward.valid.shape[0] * (self._prompts - int(told["filled"])) // self._prompts),
            tokens=sum(int(found["tokens"]) for found in self._told),
        )
        return scored, dynamic.to_memory(replicate(kept, self._mesh))

    def _notes(self) -> dict[str, float]:
        """What there is to tell of all rows sampled at a step, refused ones included."""
        rounds = len(self._told)
        found = sum(int(told["found"]) for told in self._told)
        notes = {"dynamic/rounds": float(rounds), "dynamic/refused": 1.0 - found / (rounds * self._prompts)}
        for name in self._told[0]["sum"]:
            total, count = (sum(float(told[what][name]) for told in self._told) for what in ("sum", "count"))
            notes[f"sampled/{name}"] = total / max(count, 1.0)
        return notes


def _named(told: Mapping[str, Any]) -> dict[str, float]:
    return {f"dynamic/{name}": float(value) for name, value in told.items()}


def _codes(scores: Scores | None) -> dict[str, np.ndarray]:
    """The statuses of all rows as numbers."""
    return {
        name: np.array([STATUSES.index(score.status) for score in row], np.int32)
        for name, row in (scores or {}).items()
    }


def _scores(codes: Mapping[str, np.ndarray], components: Mapping[str, np.ndarray]) -> Scores:
    """Scores of these statuses and values; what a reward said besides is not kept."""
    return {
        name: tuple(Score(value, STATUSES[code]) for value, code in zip(components[name].tolist(), row, strict=True))
        for name, row in codes.items()
    }


def refuse_recording(experiment: Experiment, path: Any) -> None:
    """Raise a ValueError where rollouts are to be recorded of a run whose draws depend on what its policy earns."""
    asked: Sequence[str] = [name for name in ("dynamic", "difficulty") if getattr(experiment.train, name) is not None]
    if path is not None and asked:
        raise ValueError(
            f"rollouts: got {path} with train.{asked[0]}, allowed are runs that draw the same prompts whatever their"
            f" policy earns: leave the file out, or set train.{asked[0]}=None"
        )
