"""Sums over prompts of what a forward pass pulls back, and inner products of trees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.objectives.pullback import Walk, products, walked
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Params, Prompts, Rollouts, TokenStats

INDEX = np.arange(2, dtype=np.int32)
WEIGHT: Params = {"w": jnp.asarray([2.0, 3.0, 5.0])}


def record(kind: Any, **fields: Any) -> Any:
    """A record of numpy arrays."""
    return kind(**fields)


def rollouts(prompt: tuple[int, ...]) -> Rollouts:
    """Rows of two tokens; row n has the tokens n mod 3 and 2."""
    rows = np.arange(len(prompt), dtype=np.int32)
    tokens = np.stack([rows % 3, np.full_like(rows, 2)], axis=1)
    zero = np.zeros(tokens.shape, np.float32)
    made = record(
        Rollouts,
        prompts=record(Prompts, tokens=INDEX[:, None] + 7, length=INDEX + 1, draw=INDEX, row=INDEX),
        prompt=np.asarray(prompt, np.int32),
        sample=rows,
        tokens=tokens,
        length=np.full_like(rows, 2),
        stopped=rows >= 0,
        mask=tokens >= 0,
        logp=zero,
        logp_full=zero,
        version=rows * 0,
    )
    return jax.tree.map(jnp.asarray, made)


def product(params: Params, rows: Rollouts) -> TokenStats:
    """logp = (first token of the row's prompt) * w[token]: linear, so that its derivative can be seen."""
    first = rows.prompts.tokens[rows.prompt, 0].astype(jnp.float32)
    return TokenStats(logp=first[:, None] * params["w"][rows.tokens])


@pytest.mark.parametrize("block", [1, 3])
def test_prompts_add_up_and_can_be_kept_apart(block: int):
    """Prompts start with 7 and 8; rows 0, 2 answer prompt 1 and row 1 prompt 0, with tokens (0, 2), (2, 2), (1, 2)."""
    walk = Walk(product, WEIGHT, rollouts((1, 0, 1)), 2, block)
    slope = jnp.asarray([[[1.0, 0.0], [1.0, 2.0], [0.0, 3.0]], [[0.0] * 2] * 2 + [[4.0, 0.0]]])  # of two losses
    total, squares, each = walked(walk, TokenStats(logp=slope), keep=True)
    by_prompt = np.asarray(
        [
            [[0, 7 * 1, 7 * 2], [0, 0, 0]],  # prompt 0: row 1
            [[8 * 1, 0, 8 * 3], [0, 0, 8 * 4]],  # prompt 1: rows 0 and 2
        ],
        np.float32,
    )
    np.testing.assert_allclose(each["w"], by_prompt)
    np.testing.assert_allclose(total["w"], by_prompt.sum(0))
    np.testing.assert_allclose(squares, (by_prompt**2).sum((0, 2)))


def test_a_row_without_a_place_is_never_lost_in_silence():
    walk = Walk(product, WEIGHT, rollouts((1, -1, 1)), 2, 1)
    slope = jnp.asarray([[[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]])
    assert np.isfinite(walked(walk, TokenStats(logp=slope), keep=False)[0]["w"]).all()  # it has no gradient to lose
    lost = walked(walk, TokenStats(logp=slope + 1.0), keep=False)[0]["w"][0]
    np.testing.assert_array_equal(np.isnan(lost), [True, False, True])  # no row has the token 1


def test_inner_products_are_sums_over_leaves_wherever_these_lie():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 8, 4)).astype(np.float32), "b": rng.normal(size=(3, 16)).astype(np.float32)}
    flat = np.concatenate([x.reshape(3, -1) for x in tree.values()], axis=1)
    np.testing.assert_allclose(products(tree, tree), flat @ flat.T, rtol=1e-5)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    places = {"a": PartitionSpec(None, "fsdp", "tensor"), "b": PartitionSpec(None, ("fsdp", "tensor"))}
    split = {name: jax.device_put(x, NamedSharding(mesh, places[name])) for name, x in tree.items()}
    program = jax.jit(products).lower(split, split).compile()
    np.testing.assert_allclose(program(split, split), flat @ flat.T, rtol=1e-5)
    assert "all-gather" not in (program.as_text() or "all-gather")  # each shard sums its own part
