"""Two 32-bit sums of the bits of an array: the same on every mesh, other after any flipped bit."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from grpo_jax.types import Array


def _words(x: Array) -> Array:
    """The bits of an array as uint32: narrower types are zero-extended, 64-bit ones split in two on a last axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if not jnp.issubdtype(x.dtype, jnp.integer) and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"A train state holds bools, integers, floats and random keys, got an array of {x.dtype}.")
    if x.dtype.itemsize == 8:
        return lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _pair(x: Array) -> Array:
    """u32[2]: sum of w_i and sum of (i + 1) w_i, modulo 2^32, over the words w_i in row-major order.

    The index is made of one iota an axis, because flattening a sharded array would gather it.
    """
    words = _words(x)
    index = jnp.ones(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack([jnp.sum(words, dtype=jnp.uint32), jnp.sum(words * index, dtype=jnp.uint32)])


@jax.jit
def _pairs(leaves: list[Array]) -> Array:
    return jnp.stack([_pair(leaf) for leaf in leaves])


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, ``opt_state/1/0/mu/w``; refuses two leaves of one name."""
    paths, _ = jax.tree.flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(named) != len(paths):
        raise ValueError("Two arrays of the tree have the same path once it is joined with '/': rename a key with '/'.")
    return named


def leaf_digests(tree: Any) -> dict[str, tuple[int, int]]:
    """Two 32-bit sums of the bits of every array: name -> (sum of words, sum of words weighted by position).

    Modulo 2^32 and hence independent of the order of summation, of mesh and of sharding. A change of one word always
    changes the first sum, an exchange of two different words the second (unless 2^32 words apart). One compiled
    call for the whole tree.

    Args:
      tree: arrays of bools, integers, floats or typed random keys, of any shape and sharding.
    """
    named = named_leaves(tree)
    if not named:
        return {}
    rows = np.asarray(_pairs([jnp.asarray(leaf) for leaf in named.values()]))
    return {name: (int(row[0]), int(row[1])) for name, row in zip(named, rows, strict=True)}


def state_digest(tree: Any) -> str:
    """sha256 (hex) over the sorted names and pairs of `leaf_digests`: one word to compare two states by."""
    return sha256(sorted((name, *pair) for name, pair in leaf_digests(tree).items()))


def sha256(content: Any) -> str:
    """sha256 (hex) of the canonical JSON text of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def layout(tree: Any) -> dict[str, str]:
    """Name -> ``float32[3,4]``."""
    return {name: f"{x.dtype}[{','.join(map(str, x.shape))}]" for name, x in named_leaves(tree).items()}
