"""Sampling of completions: `generate` is the reference."""

from grpo_jax.sampling.generate import row_keys
from grpo_jax.sampling.samplers import generate
from grpo_jax.sampling.settings import Sampling

__all__ = ["Sampling", "generate", "row_keys"]
