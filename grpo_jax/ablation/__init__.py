"""Several variants over several seeds in one process: runs, a table, a figure, and which variants should coincide."""

from grpo_jax.ablation.coincide import Claim, claims
from grpo_jax.ablation.student import Interval, interval

__all__ = ["Claim", "Interval", "claims", "interval"]
