"""The small run with two further held-out sets, with categories, and with the best state kept."""

import dataclasses

from grpo_jax.data import Chain
from tests.system.small_run import PLAIN

EXPERIMENT = dataclasses.replace(
    PLAIN,
    name="sets",
    heldout={"longer": Chain(operands=4), "mixed": Chain(operands=3, fewest=2)},
    evaluation=dataclasses.replace(PLAIN.evaluation, category="operands", small_samples=2, ks=(1, 2)),
    saving=dataclasses.replace(PLAIN.saving, every=4, keep=1, best="length/mixed", best_mode="min"),
)
