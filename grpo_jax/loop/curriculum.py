"""Prompts by difficulty in a run: drawn with the rates that a step begins with, which its rows then move."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from grpo_jax.data.difficulty import Classed, Difficulty, chosen, initial, measured, probabilities, told
from grpo_jax.experiment import Experiment
from grpo_jax.loop.phases import Scored
from grpo_jax.train import host
from grpo_jax.types import Array, Prompts


def first_rates(experiment: Experiment) -> Mapping[str, np.ndarray]:
    """What a run begins with to draw by, by the names of `TrainState.memory`; nothing where it draws by number."""
    settings = experiment.train.difficulty
    return {} if settings is None else initial(settings, cast(Classed, experiment.data).class_shares())


class Curriculum:
    """The rates of one run on the host, from the `memory` of the state that it goes on from."""

    def __init__(self, experiment: Experiment, settings: Difficulty, memory: Mapping[str, Array]) -> None:
        self._task, self._seed, self._settings = cast(Classed, experiment.data), experiment.seed, settings
        self._shares = self._task.class_shares()
        begun = first_rates(experiment)
        self._rates: Mapping[str, np.ndarray] = {name: np.asarray(host(memory[name])) for name in begun}
        self._probability = probabilities(settings, self._rates, self._shares)

    def draw(self, draws: np.ndarray) -> Prompts:
        """The prompts of these draws at this step."""
        return self._task.draw_class(self._seed, draws, chosen(self._seed, draws, self._probability))

    def after(self, sampled: Sequence[Scored]) -> tuple[Mapping[str, np.ndarray], dict[str, float]]:
        """The rates after a step in which all rows of `sampled` were scored, for its state, and what there is to tell.

        Rows that could not be scored, or lack the component, tell nothing.
        """
        settings, classes, won, counted = self._settings, [], [], []
        for scored in sampled:
            rollouts, reward = scored.rollouts, scored.reward
            asked = reward.components[settings.component]
            row, index, values, valid = host((rollouts.prompts.row, rollouts.prompt, asked, reward.valid))
            classes.append(self._task.class_of(np.asarray(row))[np.asarray(index)])
            won.append(values >= settings.success)
            counted.append(valid & ~np.isnan(values))
        drawn = np.concatenate(classes)
        self._rates = measured(settings, self._rates, drawn, np.concatenate(won), np.concatenate(counted))
        notes = told(self._rates, self._probability, drawn)
        self._probability = probabilities(settings, self._rates, self._shares)
        return self._rates, notes
