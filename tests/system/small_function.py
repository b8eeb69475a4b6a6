"""The experiment of `small_run` as a function: what it trains is said on the command line."""

import dataclasses
from functools import partial

from grpo_jax import cli
from grpo_jax.experiment import Experiment
from tests.system.small_run import PLAIN


def small(*, checkpoint: str, steps: int = 2, rate: float = 1e-2) -> Experiment:
    """`checkpoint` names the run."""
    if rate == 13:
        raise KeyError("unlucky")
    return dataclasses.replace(
        PLAIN,
        name=checkpoint,
        train=dataclasses.replace(PLAIN.train, steps=steps),
        optimizer=dataclasses.replace(PLAIN.optimizer, learning_rate=rate),
        warm_start=None,
        evaluation=dataclasses.replace(PLAIN.evaluation, every=2),
    )


EXPERIMENT = small
VARIANTS = {"slow": partial(small, rate=1e-3), "fast": partial(small, rate=1e-2)}

if __name__ == "__main__":
    cli.main_for(__file__)
