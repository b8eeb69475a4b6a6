"""Conjugate gradients on trees of parameters: a linear system whose matrix is known by its products alone.

Inner products are sums over leaves, so leaves that are split over a mesh stay split.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.types import Array, Params


class Solution(NamedTuple):
    """What `solve` found."""

    x: Params
    quadratic: Array  # f32[], x^T A x, read off the residual: x^T (b - r)
    residual: Array  # f32[], |b - A x| / |b|; 0 for b = 0
    products: Array  # i32[], products with A that were computed


class _Iterate(NamedTuple):
    count: Array
    x: Params
    residual: Params
    direction: Params
    squared: Array  # |residual|^2
    flat: Array  # bool[], the direction had no curvature


def inner(a: Params, b: Params) -> Array:
    """Inner product of two trees, f32[] (f64[] if a leaf is): the sum over leaves of ``sum(a * b)``."""
    products = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
    return sum(products[1:], start=jnp.asarray(products[0]))


def add_scaled(a: Params, by: Array, b: Params) -> Params:
    """``a + by * b``, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + by * y, a, b)


def solve(product: Callable[[Params], Params], b: Params, *, iterations: int, tolerance: float) -> Solution:
    """x with ``A x = b`` nearly, for A symmetric without negative eigenvalues and ``product(v) = A v``.

    Begins at 0 and ends after `iterations` products, as soon as ``|b - A x| <= tolerance |b|``, or where a direction
    has no curvature left (the null space of A, which a singular A has and rounding finds). Every iterate minimises
    ``x^T A x / 2 - b^T x`` over the span of b, A b, A^2 b, ..., so stopping early is safe: b^T x is positive and grows.
    What is not finite in A or b makes `quadratic` so. Source: Hestenes and Stiefel 1952, section 3.
    """
    size = inner(b, b)

    def unfinished(now: _Iterate) -> Array:
        return (now.count < iterations) & ~now.flat & (now.squared > tolerance**2 * size)

    def advance(now: _Iterate) -> _Iterate:
        image = product(now.direction)
        curvature = inner(now.direction, image)
        flat = curvature <= 0  # nan is not flat: it goes on into x, where it is seen
        length = jnp.where(flat, 0, now.squared / jnp.where(flat, jnp.ones_like(curvature), curvature))
        residual = add_scaled(now.residual, -length, image)
        squared = inner(residual, residual)
        return _Iterate(
            count=now.count + 1,
            x=add_scaled(now.x, length, now.direction),
            residual=residual,
            direction=add_scaled(residual, squared / now.squared, now.direction),
            squared=squared,
            flat=flat,
        )

    zero = jax.tree.map(jnp.zeros_like, b)
    start = _Iterate(jnp.zeros((), jnp.int32), zero, b, b, size, jnp.zeros((), bool))
    end = jax.lax.while_loop(unfinished, advance, start)
    return Solution(
        x=end.x,
        quadratic=inner(end.x, add_scaled(b, jnp.full_like(size, -1), end.residual)),
        residual=jnp.sqrt(end.squared / jnp.where(size > 0, size, jnp.ones_like(size))),
        products=end.count,
    )
