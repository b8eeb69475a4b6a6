"""Solutions of linear systems on trees, against those of NumPy and by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.types import Array, Params
from grpo_jax.updates.conjugate_gradient import Solution, add_scaled, inner, solve


def tree(x: object) -> Params:
    """Six numbers as a tree of a matrix [2, 2] and a vector [2]."""
    numbers = jnp.asarray(x, jnp.float32)
    return {"a": {"matrix": numbers[:4].reshape(2, 2)}, "b": numbers[4:]}


def flat(x: Params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(x)])


def positive(rank: int = 6) -> np.ndarray:
    root = np.random.default_rng(0).normal(size=(6, rank))
    return root @ root.T + (0.5 if rank == 6 else 0.0) * np.eye(6)


def apply(matrix: Array, vector: Params) -> Params:
    return tree(matrix @ jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(vector)]))


@partial(jax.jit, static_argnames=("iterations", "tolerance"))
def solved(matrix: Array, b: Params, *, iterations: int, tolerance: float) -> Solution:
    return solve(partial(apply, matrix), b, iterations=iterations, tolerance=tolerance)


def solution(matrix: np.ndarray, b: object, *, iterations: int = 6, tolerance: float = 0.0) -> Solution:
    return solved(jnp.asarray(matrix, jnp.float32), tree(b), iterations=iterations, tolerance=tolerance)


B = np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])


def test_inner_products_and_sums_are_those_of_all_entries_together():
    # 1*2 + 2*3 + 3*4 + 4*5 + 5*6 + 6*7 = 112
    assert inner(tree([1, 2, 3, 4, 5, 6]), tree([2, 3, 4, 5, 6, 7])) == 112
    moved = add_scaled(tree([1, 2, 3, 4, 5, 6]), jnp.float32(-2), tree([1, 1, 1, 0, 0, 3]))
    np.testing.assert_array_equal(flat(moved), [-1, 0, 1, 4, 5, 0])


def test_as_many_products_as_unknowns_solve_the_system():
    found = solution(positive(), B)
    exact = np.linalg.solve(positive(), B)
    np.testing.assert_allclose(flat(found.x), exact, rtol=1e-3)
    np.testing.assert_allclose(found.quadratic, B @ exact, rtol=1e-4)  # x^T A x = x^T b for A x = b
    assert found.residual < 1e-4 and found.products <= 6


def test_the_first_product_is_steepest_descent_by_hand():
    matrix = np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = solution(matrix, np.ones(6), iterations=1)
    # |b|^2 = 6, b^T A b = 21: x = 6/21 b, residual b - 6/21 A b, of norm sqrt(6 - 2 * 6 * 6/21 * 21/6 + (6/21)^2 * 91)
    np.testing.assert_allclose(flat(found.x), np.full(6, 6 / 21), rtol=1e-6)
    np.testing.assert_allclose(found.quadratic, 21 * (6 / 21) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.residual, np.sqrt((6 - 12 + (6 / 21) ** 2 * 91) / 6), rtol=1e-5)
    assert found.products == 1


def test_it_ends_when_the_residual_is_small():
    loose = solution(positive(), B, tolerance=0.3)
    assert loose.products < 6 and 1e-4 < loose.residual <= 0.3
    residual = B - positive() @ flat(loose.x)
    np.testing.assert_allclose(loose.residual, np.linalg.norm(residual) / np.linalg.norm(B), rtol=1e-3)


def test_an_early_end_has_gone_downhill():
    """With A x = b - r and r orthogonal to x: the model falls by b^T x / 2, which is more with every product."""
    falls = [float(solution(positive(), B, iterations=k).quadratic) for k in (1, 2, 3, 4)]
    assert 0 < falls[0] < falls[1] < falls[2] < falls[3] <= B @ np.linalg.solve(positive(), B) * (1 + 1e-4)


def test_a_singular_system_has_the_shortest_solution():
    matrix = positive(rank=3)
    b = matrix @ B
    found = solution(matrix, b, iterations=20, tolerance=1e-4)
    np.testing.assert_allclose(flat(found.x), np.linalg.pinv(matrix) @ b, rtol=0, atol=2e-3)
    assert found.residual <= 1e-4


def test_no_curvature_ends_it_where_it_is():
    found = solution(np.zeros((6, 6)), B)
    np.testing.assert_array_equal(flat(found.x), np.zeros(6))
    assert found.quadratic == 0 and found.residual == 1 and found.products == 1


def test_nothing_to_solve_needs_no_product():
    found = solution(positive(), np.zeros(6))
    np.testing.assert_array_equal(flat(found.x), np.zeros(6))
    assert found.quadratic == 0 and found.residual == 0 and found.products == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    spoilt = positive()
    spoilt[2, 2] = bad
    assert not np.isfinite(solution(spoilt, B).quadratic)
    assert not np.isfinite(solution(positive(), np.where(np.arange(6) == 3, bad, B)).quadratic)
