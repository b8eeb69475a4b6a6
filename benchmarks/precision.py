"""What bfloat16 does to the gap between the sampler and the scorer: the same tokens, said by both, in every precision.

    python benchmarks/precision.py [--prompts 8] [--group 4] [--tokens 48]

Models of three families with random weights of a modest size (width 128, 4 layers, 1,024 tokens), whose logits are
spread so that the entropy is about that of a language model. Completions are sampled; `gap` is what sampler and trainer
disagree about the log-probability of a sampled token, in nats, as ``logp_gap`` in the journal of a run; `error` is the
distance of what the trainer says from what it says in float32 throughout.
"""

import argparse
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _record import write

from grpo_jax import models
from grpo_jax.models import ModelConfig
from grpo_jax.sampling import Sampling, generate
from grpo_jax.types import Array, Params, Prompts, Rollouts

VOCAB, WIDTH, PROMPT = 1024, 128, 24
SPREAD = 3.1
"""Deviation of the logits: an entropy of about log V - SPREAD^2 / 2 nats."""
QWEN3 = ModelConfig(
    vocab=VOCAB,
    width=WIDTH,
    layers=4,
    heads=8,
    kv_heads=4,
    head_width=16,
    hidden=384,
    activation="silu",
    gated=True,
    query_key_norm=True,
    rope_theta=1e6,
    embed_std=1.0,
    head_std=SPREAD * WIDTH**-0.5,
)
FAMILIES = {
    "qwen3": QWEN3,
    "llama": dataclasses.replace(QWEN3, query_key_norm=False, rope_theta=5e5),
    "gemma3": dataclasses.replace(
        QWEN3,
        activation="gelu",
        post_norms=True,
        norm_offset=1.0,
        windows=(16, 16, 16, 0),
        local_rope_theta=1e4,
        embed_scale=WIDTH**0.5,
    ),
}
PRECISIONS = {
    "float32 throughout": {},
    "bfloat16 computation": {"compute_dtype": "bfloat16"},
    "bfloat16 parameters and computation": {"compute_dtype": "bfloat16", "param_dtype": "bfloat16"},
    "bfloat16 throughout, log-probabilities too": dict.fromkeys(
        ("compute_dtype", "param_dtype", "logprob_dtype"), "bfloat16"
    ),
}


def prompts(count: int) -> Prompts:
    """Random prompts of half to the whole width."""
    draw, index = np.random.default_rng(0), jnp.arange(count, dtype=jnp.int32)
    length = draw.integers(PROMPT // 2, PROMPT + 1, count)
    tokens = draw.integers(0, VOCAB, (count, PROMPT)) * (np.arange(PROMPT)[None] < length[:, None])
    return Prompts(tokens=jnp.asarray(tokens, jnp.int32), length=jnp.asarray(length, jnp.int32), draw=index, row=index)


def both(params: Params, asked: Prompts, config: ModelConfig, sampling: Sampling, group: int) -> tuple[Rollouts, Array]:
    """Completions, and what the trainer says of their tokens."""
    rows = generate(params, config, asked, sampling, jax.random.key(1), group_size=group)
    return rows, models.logprobs(params, config, rows, temperature=1.0, group_size=group).logp


def exact(params: Params, rows: Rollouts, config: ModelConfig, group: int) -> tuple[Array, Array]:
    """Log-probabilities and entropies in float32 throughout, with the parameters before they were rounded."""
    stats = models.logprobs(params, config, rows, temperature=1.0, want=("entropy",), group_size=group)
    assert stats.entropy is not None
    return stats.logp, stats.entropy


def figures(difference: Any) -> dict[str, float]:
    """Of absolute differences in nats."""
    size = np.abs(np.asarray(difference, np.float64))
    return {
        "mean": float(f"{size.mean():.2e}"),
        "p99": float(f"{np.quantile(size, 0.99):.2e}"),
        "max": float(f"{size.max():.2e}"),
    }


def measured(config: ModelConfig, changes: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """One model in one precision."""
    whole = models.init(jax.random.key(0), config)
    change = dataclasses.replace(config, **changes)
    params = jax.tree.map(lambda x: x.astype(change.param_dtype), whole)
    sampling = Sampling(max_tokens=given.tokens, stop=())
    how = {"config": change, "sampling": sampling, "group": given.group}
    rows, said = jax.jit(partial(both, **how))(params, prompts(given.prompts))
    truth, entropy = jax.jit(partial(exact, config=config, group=given.group))(whole, rows)
    return {
        "gap": figures(np.asarray(rows.logp_full, np.float64) - np.asarray(said, np.float64)),
        "error": figures(np.asarray(said, np.float64) - np.asarray(truth, np.float64)),
        "entropy": round(float(entropy.mean()), 2),
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 8), ("group", 4), ("tokens", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    found = {
        family: {name: measured(config, changes, given) for name, changes in PRECISIONS.items()}
        for family, config in FAMILIES.items()
    }
    size = f"--prompts {given.prompts} --group {given.group} --tokens {given.tokens}"
    write("precision", {"command": f"python benchmarks/precision.py {size}", "nats": found})


if __name__ == "__main__":
    main()
