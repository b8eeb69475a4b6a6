"""Rows for the twins of kernels, in float64: groups of unequal size, interleaved, one tied, one alone; rows out."""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NUMBER, WIDTH = 40, 6


def _draw(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(-1, 5, NUMBER)
    group[7] = 20  # alone
    reward = np.where(group == 4, 0.95, rng.normal(size=NUMBER))
    reward[group == 3] = (rng.uniform(size=np.sum(group == 3)) < 0.3).astype(float)
    valid = rng.uniform(size=NUMBER) < 0.85
    valid[7] = True
    mask = rng.uniform(size=(NUMBER, WIDTH)) < 0.7
    mask[3] = False
    shape = (NUMBER, WIDTH)
    return {
        "reward": reward,
        "group": group,
        "valid": valid,
        "mask": mask,
        "token": rng.normal(size=shape),
        "value": rng.normal(size=shape),
        "logp": -rng.uniform(0.1, 3.0, shape),
        "square": rng.uniform(0.1, 0.9, shape),
        "ends": rng.uniform(size=shape) < 0.5,
        "greedy": rng.normal(size=NUMBER),
        "components": np.where(rng.uniform(size=(NUMBER, 3)) < 0.2, np.nan, rng.normal(size=(NUMBER, 3))),
    }


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """The rows, as numpy arrays."""
    return _draw()


@pytest.fixture
def doubled(rows: Mapping[str, np.ndarray]) -> Iterator[dict[str, jax.Array]]:
    """The same as arrays of JAX, with nan in what counts nowhere, where float64 is on."""
    with jax.enable_x64(True):
        out = ~rows["valid"] | (rows["group"] < 0)
        found = {name: jnp.asarray(x, jnp.int32 if name == "group" else x.dtype) for name, x in rows.items()}
        for name in ("reward", "greedy"):
            found[name] = jnp.asarray(np.where(out, np.nan, rows[name]))
        outside = out[:, None] | ~rows["mask"]
        for name in ("token", "value", "logp", "square"):
            found[name] = jnp.asarray(np.where(outside, np.nan, rows[name]))
        yield found


@pytest.fixture
def compiled() -> Callable[..., dict[str, np.ndarray]]:
    """``compiled(name=function, ...)`` calls all functions of no argument in one program."""

    def call(**functions: Callable[[], jax.Array]) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, jax.jit(lambda: {name: f() for name, f in functions.items()})())

    return call


@pytest.fixture
def members(rows: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The row numbers of every group that has a row which counts."""
    group = np.where(rows["valid"], rows["group"], -1)
    return [np.flatnonzero(group == g) for g in sorted(set(group.tolist()) - {-1})]
