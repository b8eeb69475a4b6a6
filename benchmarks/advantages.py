"""Claim: an advantage over 16,384 rows in 2,048 groups takes at most 5 ms on 2 cores after compilation.

    python benchmarks/advantages.py [--rows 16384] [--groups 2048] [--width 32] [--repeats 50]

Every entry of `ADVANTAGES`, and those of their conventions that cost more, on rows of interleaved groups of unequal
size: milliseconds of a call of the compiled strategy, the result ready. The strategies write f32[rows, width].
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _record import write

from grpo_jax import advantages
from grpo_jax.types import Collected, Prompts, Reward, Rollouts

LIMIT_MS = 5.0
COSTLY: dict[str, advantages.Advantage] = {
    "group_leave_one_out, deviation of the others": partial(advantages.group_leave_one_out, std="sample"),
    "passk, k=16": partial(advantages.passk, k=16),
    "whitened gae": partial(advantages.whitened, advantage=advantages.gae),
    "role_baseline, row by row": partial(advantages.role_baseline, update="row"),
}
"""Conventions beside the defaults; the last sorts the rows, which is what it costs."""


def drawn(rows: int, groups: int, width: int) -> Collected:
    """Rows of `groups` prompts in any order, rewards 0 and 1, every optional field."""
    rng = np.random.default_rng(0)
    prompt = np.concatenate([np.arange(groups), rng.integers(0, groups, rows - groups)])
    rng.shuffle(prompt)
    length = rng.integers(1, width + 1, rows)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    index = jnp.arange(groups, dtype=jnp.int32)
    mask = jnp.asarray(np.arange(width)[None, :] < length[:, None])
    logp = -jnp.abs(normal(rows, width)) - 0.1
    outcome = jnp.asarray(rng.uniform(size=rows) < 0.5, jnp.float32)
    reward = Reward(
        outcome=outcome,
        valid=jnp.asarray(rng.uniform(size=rows) < 0.99),
        token=normal(rows, width),
        components={"accuracy": outcome, "format": normal(rows), "length": normal(rows)},
        step_end=jnp.asarray(rng.uniform(size=(rows, width)) < 0.2),
        greedy=normal(rows),
    )
    prompts = Prompts(
        tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index, label={"role": index % 2}
    )
    rollouts = Rollouts(
        prompts=prompts,
        prompt=jnp.asarray(prompt, jnp.int32),
        sample=jnp.arange(rows, dtype=jnp.int32),
        tokens=jnp.zeros((rows, width), jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        stopped=jnp.ones(rows, bool),
        mask=mask,
        logp=logp,
        logp_full=logp,
        version=jnp.zeros(rows, jnp.int32),
    )
    value, squares = normal(rows, width), jnp.exp(2 * logp) + 0.01
    return Collected(
        rollouts=rollouts, reward=reward, logp_old=logp, logp_ref=logp, value_old=value, sum_pi_squared=squares
    )


def milliseconds(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and smallest time of a call, the first of which is left out."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - begin))
    return {"median_ms": round(statistics.median(found), 3), "min_ms": round(min(found), 3)}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 16384), ("groups", 2048), ("width", 32), ("repeats", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    collected = drawn(given.rows, given.groups, given.width)
    labels = collected.rollouts.prompt
    found = {}
    for name, strategy in {**advantages.ADVANTAGES, **COSTLY}.items():
        memory = advantages.initial_memory(strategy)
        found[name] = milliseconds(partial(jax.jit(strategy), collected, labels, memory), given.repeats)
    entries = {name: found[name]["median_ms"] for name in advantages.ADVANTAGES}
    size = f"--rows {given.rows} --groups {given.groups} --width {given.width} --repeats {given.repeats}"
    write(
        "advantages",
        {
            "command": f"python benchmarks/advantages.py {size}",
            "limit_ms": LIMIT_MS,
            "slowest_entry": max(entries, key=lambda name: entries[name]),
            "slowest_entry_ms": max(entries.values()),
            "within_limit": max(entries.values()) <= LIMIT_MS,
            "milliseconds": found,
        },
    )


if __name__ == "__main__":
    main()
