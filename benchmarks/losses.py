"""Claim: loss and gradient of any recipe over [1024, 1024] float32 take 150 ms and 12 arrays of that size on 2 cores.

    python benchmarks/losses.py [--rows 1024] [--width 1024] [--repeats 10] [--only NAME ...]

Every entry of `RECIPES`: milliseconds of a call of the compiled loss and its gradient in the statistics of the forward
pass, the result ready, and the memory that the compiler sets aside for it (what goes in, what comes out and what lies
between), in arrays f32[rows, width]. Prepare steps, which run once before an update, are measured beside it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _record import write

from grpo_jax import objectives
from grpo_jax.types import Array, Batch, Prompts, Reward, Rollouts, TokenStats

LIMIT_MS = 150.0
LIMIT_ARRAYS = 12.0


def drawn(recipe: objectives.Recipe, rows: int, width: int) -> tuple[TokenStats, Batch]:
    """Rows of all lengths with every field that a term of `recipe` may read, and the weights of its parts."""
    rng = np.random.default_rng(0)
    wanted = objectives.wants(recipe)

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    def uniform(low: float, high: float) -> Array:
        return jnp.asarray(rng.uniform(low, high, (rows, width)), jnp.float32)

    index = jnp.arange(rows, dtype=jnp.int32)
    length = jnp.asarray(rng.integers(1, width + 1, rows), jnp.int32)
    mask = jnp.arange(width, dtype=jnp.int32)[None, :] < length[:, None]
    logp = uniform(-3.0, -0.05)
    old, behavior = logp + normal(rows, width, scale=0.1), logp + normal(rows, width, scale=0.1)
    rollouts = Rollouts(
        prompts=Prompts(tokens=index[:, None], length=jnp.ones_like(index), draw=index, row=index),
        prompt=index // 8,
        sample=index % 8,
        tokens=jnp.zeros((rows, width), jnp.int32),
        length=length,
        stopped=jnp.ones(rows, bool),
        mask=mask,
        logp=behavior,
        logp_full=behavior,
        version=index % 3 - 1,
    )
    made = {"entropy": (0.0, 2.0), "value": (-1.0, 1.0), "sum_pi_squared": (0.1, 1.0), "kl_full": (0.0, 1.0)}
    stats = TokenStats(logp=logp, **{name: uniform(*ends) for name, ends in made.items() if name in wanted})
    batch = Batch(
        rollouts=rollouts,
        mask=mask,
        weight={},
        advantage=normal(rows, width),
        logp_old=old,
        logp_behavior=behavior,
        group=index // 8,
        reward=Reward(outcome=normal(rows), valid=jnp.ones(rows, bool)),
        logp_ref=logp + normal(rows, width, scale=0.1),
        returns=normal(rows, width),
        value_old=normal(rows, width),
        coef=objectives.initial_values(recipe.coefficients),
    )
    return stats, batch.replace(weight=objectives.weights(recipe.parts, batch))


def prepared(stats: TokenStats, batch: Batch, *, recipe: objectives.Recipe) -> Batch:
    """`batch` after the prepare steps of the recipe."""
    for number, prepare in enumerate(recipe.prepare):
        batch = prepare(stats, batch, jax.random.key(number))
    return batch


def loss_and_gradient(stats: TokenStats, batch: Batch, *, recipe: objectives.Recipe) -> tuple[Array, TokenStats]:
    """Loss of the recipe, and its gradient in everything that the forward pass says."""
    return jax.value_and_grad(objectives.loss, argnums=1)(recipe.parts, stats, batch)


def arrays_in_memory(compiled: Any, rows: int, width: int) -> float:
    """What a compiled program holds at once by its own account, in arrays f32[rows, width]."""
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return round((held - found.alias_size_in_bytes) / (4 * rows * width), 2)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, the first of which is left out."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(1e3 * (time.perf_counter() - begin))
    return round(statistics.median(found), 2)


def figures(name: str, *, rows: int, width: int, repeats: int) -> dict[str, float]:
    """Memory of a recipe, and its time unless `repeats` is 0."""
    recipe = objectives.RECIPES[name]
    stats, batch = drawn(recipe, rows, width)
    prepare = jax.jit(partial(prepared, recipe=recipe))
    ready = prepare(stats, batch)
    compiled = jax.jit(partial(loss_and_gradient, recipe=recipe)).lower(stats, ready).compile()
    found = {"arrays": arrays_in_memory(compiled, rows, width)}
    if repeats:
        if not math.isfinite(float(compiled(stats, ready)[0])):
            raise RuntimeError(f"{name}: the loss of drawn rows is not finite")
        found["ms"] = milliseconds(partial(compiled, stats, ready), repeats)
    if repeats and recipe.prepare:
        found["prepare_ms"] = milliseconds(partial(prepare, stats, batch), repeats)
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1024), ("width", 1024), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=sorted(objectives.RECIPES), default=list(objectives.RECIPES))
    given = parser.parse_args()
    sizes = {"rows": given.rows, "width": given.width, "repeats": given.repeats}
    found = {name: figures(name, **sizes) for name in given.only}
    slowest = max(found, key=lambda name: found[name]["ms"])
    largest = max(found, key=lambda name: found[name]["arrays"])
    write(
        "losses",
        {
            "command": "python benchmarks/losses.py " + " ".join(f"--{name} {n}" for name, n in sizes.items()),
            "limit_ms": LIMIT_MS,
            "limit_arrays": LIMIT_ARRAYS,
            "slowest": {slowest: found[slowest]["ms"]},
            "largest": {largest: found[largest]["arrays"]},
            "within_limits": found[slowest]["ms"] <= LIMIT_MS and found[largest]["arrays"] <= LIMIT_ARRAYS,
            "recipes": found,
        },
    )


if __name__ == "__main__":
    main()
