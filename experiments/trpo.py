"""TRPO on the task of the quickstart: natural gradients within a trust region in place of Adam.

    python experiments/trpo.py [--variant exact] [--set optimizer.delta=0.01]

The model, the data and the supervised warm start are those of `experiments/quickstart.py`. From there on every step is
one update on its whole batch: the surrogate of TRPO without clip or penalty (`objectives.trpo`), under a bound on the
mean divergence of the new policy from the old one over the whole vocabulary, which a line search proves. The bound
falls over the run: the step goes to it however small the gradient is. There is no learning rate.

The curvature is computed from a quarter of the prompts here, `exact` takes all of them, and `natural` leaves the line
search out. What an update costs, and the equations, are in `docs/trust_region.md`.
"""

from dataclasses import replace
from pathlib import Path

from grpo_jax import cli
from grpo_jax.experiment import Experiment, Train
from grpo_jax.objectives import trpo
from grpo_jax.updates import TrustRegion

QUICKSTART: Experiment = cli.load(Path(__file__).with_name("quickstart.py")).EXPERIMENT
REGION = TrustRegion(delta=0.01, final=0.1, fisher_share=0.25)

EXPERIMENT = replace(
    QUICKSTART,
    name="trpo",
    recipe=trpo(),
    train=Train(steps=200, prompts=32, group_size=8),
    optimizer=REGION,
)

VARIANTS = {
    "exact": replace(EXPERIMENT, name="trpo-exact", optimizer=replace(REGION, fisher_share=1.0)),
    "natural": replace(EXPERIMENT, name="trpo-natural", optimizer=replace(REGION, backtracks=0)),
}
SEEDS = (0, 1, 2)

if __name__ == "__main__":
    cli.main_for(__file__)
